"""Off-topic detectors by three rules, on planted codes; latents to steer with, and how they are drawn."""

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods import latent_sampling, latents, off_topic
from latentlens.values.codes import Codes


def test_the_shipped_rule_on_the_published_example():
    normal, shuffled = [[0, 0, 0.5], [0, 0, 0]], [[1, 0, 2], [1, 3, 2], [1, 0, 2], [1, 1, 0], [0, 2, 1]]
    passes, fires = off_topic.passes_derangement(normal, shuffled)
    assert passes.tolist() == [True, False, False]
    assert fires.tolist() == pytest.approx([0.8, 0.6, 0.8])


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 2, 2], list("aabbcc"), [0, 0, 0, 1, 1, 2]])
def test_a_derangement_moves_every_answer_out_of_its_group(groups):
    for seed in range(100):
        moved = off_topic.derangement(6, seed, groups)
        names = groups or range(6)
        assert sorted(moved) == list(range(6))
        assert all(names[moved[i]] != names[i] for i in range(6))


def test_impossible_derangements_are_refused():
    for groups in ([0, 0, 0, 0, 1, 2], [0, 1], None):
        with pytest.raises(BadInput):
            off_topic.derangement(6 if groups != None else 1, 0, groups)  # noqa: E711


def planted(n=40, seed=0):
    """latent 0: silent on its own, fires off topic; 1: always fires, more so off topic; 2: fires at random; 3: topic"""
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.zeros(n, 30), torch.zeros(n, 30)
    b[:, 0] = 1 + torch.rand(n, generator=draw)
    a[:, 1], b[:, 1] = 1 + torch.rand(n, generator=draw), 3 + torch.rand(n, generator=draw)
    a[:, 2:], b[:, 2:] = torch.rand(n, 28, generator=draw), torch.rand(n, 28, generator=draw)
    a[:, 3] = b[:, 3]
    return Codes.from_dense(a), Codes.from_dense(b)


def test_each_rule_finds_what_it_can_and_nothing_else():
    normal, shuffled = planted()
    assert off_topic.by_derangement(normal, shuffled).latents == (0,)
    assert set(off_topic.by_separability(normal, shuffled).latents) == {0, 1}
    contrast = off_topic.by_contrast(normal, shuffled)
    assert set(contrast.latents) == {0, 1}
    assert contrast.statistic[0] >= contrast.statistic[1] > contrast.null_high
    assert off_topic.by_contrast(normal, shuffled, k=1).latents == contrast.latents[:1]
    assert contrast.level(1) == pytest.approx(3.5, abs=0.1)
    assert contrast.related == (0, 1)


def test_no_rule_finds_anything_where_answers_do_not_depend_on_the_question():
    for seed in range(5):
        normal = planted(seed=seed)[0]
        other = Codes.from_dense(normal.dense()[:, torch.randperm(30, generator=torch.Generator().manual_seed(seed))])
        draw = torch.rand(40, 30, generator=torch.Generator().manual_seed(100 + seed))
        same, also = (Codes.from_dense(draw[:, :30] + 0 * i) for i in range(2))
        for rule in off_topic.RULES.values():
            assert len(rule(same, also)) == 0
        assert other.d_sae == 30


def test_chance_of_the_largest_effect_covers_noise():
    """a rule at the 95% quantile of the largest effect finds something in noise about one time in twenty"""
    hits = 0
    for seed in range(40):
        a, b = (torch.rand(30, 20, generator=torch.Generator().manual_seed(2 * seed + i)) for i in range(2))
        hits += len(off_topic.by_contrast(Codes.from_dense(a), Codes.from_dense(b), n_permutations=100)) > 0
    assert hits <= 8  # binomial(40, .05): above 6 in under 1% of cases


def test_an_effect_without_spread_is_finite():
    assert np.isfinite(off_topic.paired_effect(np.zeros((3, 2)), np.ones((3, 2)))).all()
    with pytest.raises(BadInput, match="same answers"):
        off_topic.by_contrast(planted(10)[0], planted(12)[1])
    with pytest.raises(TooFewExamples, match="two"):
        off_topic.by_contrast(planted(1)[0], planted(1)[1])


# -- latents to steer with ------------------------------------------------------------------------------


def codes(table, **labels):
    return Codes.from_dense(torch.tensor(table), labels={k: np.array(v) for k, v in labels.items()})


def test_relevance_is_exactly_zero_on_every_token_or_outside_the_strongest():
    table = codes([[0.0, 0.1, 2.0, 0.0], [0.0, 0.0, 3.0, 1e-12]])
    assert latent_sampling.silent(table).tolist() == [True, False, False, False]
    pooled = codes([[0.0, 0.1, 2.0, 0.5], [0.0, 0.9, 3.0, 0.2]])
    assert latent_sampling.outside_top(pooled, 1).tolist() == [True, True, False, True]
    assert latent_sampling.outside_top(pooled, 2).tolist() == [True, False, False, False]
    assert latent_sampling.outside_top(pooled, 100).tolist() == [True, False, False, False]


def test_silence_is_counted_by_prompt():
    table = codes([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], text=[0, 0, 1, 2])
    free = latent_sampling.silent_on(table, [1, 0, 1], 2)
    assert free.tolist() == [[True, True, False], [False, False, True]]


def test_labels_are_the_words_around_the_strongest_tokens():
    """latent 0 fires on the full stop of texts about the sea, latent 1 on every full stop, latent 2 twice"""
    texts = [["the", "reef", "and", "tide", "."], ["the", "drum", "and", "song", "."]] * 6
    tokens = [t for text in texts for t in text]
    text, position = zip(*((i, p) for i, row in enumerate(texts) for p in range(len(row))), strict=True)
    table = torch.zeros(len(tokens), 3)
    stops = [i for i, t in enumerate(tokens) if t == "."]
    table[stops, 1] = 1.0
    table[stops[::2], 0] = 1.0
    table[stops[:2], 2] = 1.0
    shuffled = np.random.default_rng(0).permutation(len(tokens))  # the order of rows must not matter
    made = Codes.from_dense(
        table[shuffled],
        labels={k: np.array(v)[shuffled] for k, v in (("token", tokens), ("text", text), ("position", position))},
    )
    labels = latent_sampling.context_labels(made, k=2, window=4)
    assert set(labels[0].split(", ")) == {"reef", "tide"}
    assert labels.get(1, "") == ""  # nothing is more frequent around it than elsewhere
    assert 2 not in labels
    with pytest.raises(BadInput, match="position"):
        latent_sampling.context_labels(codes([[1.0]], token=["a"], text=[0]))


def test_draws_are_fixed_by_the_seed_and_grow_at_the_end():
    asked = []

    def keep(some):
        asked.append(list(some))
        return [j % 3 == 0 for j in some]

    ten, four = latent_sampling.draw(200, 10, keep, seed=1), latent_sampling.draw(200, 4, keep, seed=1)
    assert ten[:4] == four
    assert all(j % 3 == 0 for j in ten)
    assert len(set(ten)) == 10
    assert len(asked[0]) == 30
    assert latent_sampling.draw(200, 10, keep, seed=2) != ten
    assert len(latent_sampling.draw(9, 10, keep, seed=0)) == 3
    with pytest.raises(TooFewExamples, match="none of 9"):
        latent_sampling.draw(9, 2, lambda some: [False] * len(some))
    with pytest.raises(BadInput):
        latent_sampling.draw(9, 0, keep)


def test_prompts_are_drawn_without_replacement_for_each_latent_alone():
    allowed = {4: range(10), 7: [1, 2], 9: []}
    found = latent_sampling.assign([4, 7, 9], lambda j: list(allowed[j]), 5, seed=3)
    assert [f[0] for f in found] == [4] * 5 + [7] * 2
    assert len({f[1] for f in found[:5]}) == 5
    assert all(0 <= f[2] <= 1_000_000 for f in found)
    assert latent_sampling.assign([7, 4], lambda j: list(allowed[j]), 5, seed=3)[2:] == found[:5]


def test_keywords_count_once_at_the_start_of_words():
    weights = {"wait": 3, "correct": 2, "let me": 4}
    assert latent_sampling.keyword_score("Wait, corrections; WAIT", weights) == 5.0
    assert latent_sampling.keyword_score("await the incorrect", weights) == 0.0
    assert latent_sampling.keyword_score("then let me begin", weights) == 4.0


def test_matched_controls_fire_like_the_detectors():
    normal, shuffled = planted()
    firing = latents.firing(Codes.concatenated([normal, shuffled]))
    (found,) = latents.matched(firing, [0], exclude=[0, 1])
    assert found not in (0, 1)
