import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, SiteNotFound, TooFewExamples
from latentlens.methods import persona
from latentlens.values.activations import Activations
from latentlens.values.persona import Contrast, Pair, Reply
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site
from latentlens.values.text_means import text_means
from latentlens.values.traits import Trait

SITE = Site("resid_post", 3)
ANGRY = Trait("angry", "shouts", (("Shout.", "Whisper."), ("Rage.", "Be calm.")), ("Why?", "How?"), ("When?",))


def acts(rows, text=None, site=SITE):
    values = torch.tensor(rows, dtype=torch.float32)
    text = np.arange(len(values)) if text is None else np.asarray(text)
    return Activations({site: values}, {"text": text}, {"model": "m"})


def reply(trait, coherence=90.0):
    return Reply(TokenRow.plain((1, 2)), "x", trait, coherence)


def contrast(*scores, questions=None):
    """Pairs from (positive trait, negative trait) or from pairs of replies."""
    pairs = []
    for i, (yes, no) in enumerate(scores):
        sides = [side if isinstance(side, Reply) else reply(side) for side in (yes, no)]
        pairs.append(Pair(0, i if questions is None else questions[i], 0, *sides))
    return Contrast(ANGRY, tuple(pairs))


# -- traits as files -----------------------------------------------------------------------------------------------


def test_a_system_prompt_names_the_trait_or_its_antonym():
    assert ANGRY.system("positive", 1) == "You are an angry assistant. Rage."
    assert ANGRY.system("negative", 0) == "You are a helpful assistant. Whisper."
    bare = Trait("calm", "", (("Be calm.", ""),), ("Why?",), template="{instruction}")
    assert [m["role"] for m in bare.chats("positive")[0].messages] == ["system", "user"]
    assert [m["role"] for m in bare.chats("negative")[0].messages] == ["user"]
    braces = Trait("odd", "", (("Say {name}.", "b"),), ("Why?",))
    assert braces.system("positive") == "You are an odd assistant. Say {name}."


def test_every_question_stands_under_every_instruction():
    asked = ANGRY.chats("negative")
    assert [(a.pair, a.question) for a in asked] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert asked[3].messages[-1] == {"role": "user", "content": "How?"}


def test_a_trait_comes_back_from_its_file(tmp_path):
    assert Trait.load(ANGRY.save(tmp_path / "t.json")) == ANGRY


def test_a_trait_file_of_the_persona_project_is_read(tmp_path):
    path = tmp_path / "evil.json"
    path.write_text(
        json.dumps({"instruction": [{"pos": "p", "neg": "n"}], "questions": list("abcd"), "eval_prompt": ""})
    )
    read = Trait.load(path, description="means harm")
    assert (read.name, read.about, read.pairs) == ("evil", "evil: means harm", (("p", "n"),))
    assert (read.questions, read.evaluation) == (("a", "b"), ("c", "d"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "JSON object"),
        ("{", "trait"),
        ('{"pairs": [["a", "b"]]}', "questions"),
        ('{"pairs": [["a"]], "questions": ["q"]}', "two different"),
        ('{"pairs": [["a", "a"]], "questions": ["q"]}', "two different"),
        ('{"pairs": [], "questions": ["q"]}', "at least one"),
        ('{"pairs": [["a", "b"]], "questions": ["q"], "evaluation": ["q"]}', "'q'"),
        ('{"instruction": [{"positive": "a"}], "questions": ["q"]}', "pos, neg"),
    ],
)
def test_a_broken_trait_file_is_refused(tmp_path, text, says):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(BadInput, match=says):
        Trait.load(tmp_path / "t.json")


# -- keeping pairs ---------------------------------------------------------------------------------------------------


def test_pairs_that_show_the_contrast_are_kept():
    found = persona.keep(
        contrast((50, 49.9), (49.9, 0), (90, 50), (90, 10), (reply(90, 49), 10), (90, reply(10, 50)), (reply(None), 10))
    )
    assert [p.question for p in found.pairs] == [0, 3, 5]
    assert found.asked == 7
    assert found.dropped == {
        "positive answer without the trait": 1,
        "negative answer with the trait": 1,
        "incoherent answer": 1,
        "answer that was not judged": 1,
    }
    assert "4 of 7 dropped" in repr(found)


def test_no_surviving_pair_is_an_error_with_counts():
    with pytest.raises(TooFewExamples, match=r"no pair of 3 .*2 positive answer without.*1 negative answer with"):
        persona.keep(contrast((10, 0), (20, 0), (90, 80)))


def test_other_limits_can_be_asked_for():
    pairs = contrast((40, 30), (90, 10))
    assert len(persona.keep(pairs, trait=35)) == 2
    with pytest.raises(TooFewExamples, match="incoherent"):
        persona.keep(pairs, coherence=95)


# -- extraction --------------------------------------------------------------------------------------------------------


def test_a_persona_vector_is_the_difference_of_means_at_its_own_length():
    found = persona.extract(contrast((90, 0), (90, 0)), acts([[1, 2], [3, 4], [0, 1], [2, -1]]))
    assert found[SITE].vector.tolist() == [1, 3]
    assert found[SITE].norm == pytest.approx(3.1623, abs=1e-4)
    assert found[SITE].project(torch.tensor([3.0, 1.0])).item() == pytest.approx(1.8974, abs=1e-4)
    assert found.chance == pytest.approx((2 / (np.pi * 2)) ** 0.5)
    with pytest.raises(SiteNotFound, match="Held"):
        found["resid_post[1]"]


def test_long_and_short_answers_weigh_alike():
    """The first positive answer has three tokens, the second one: each counts once."""
    rows = [[0, 0], [1, 2], [2, 4], [3, 4], [0, 1], [2, -1]]
    found = persona.extract(contrast((90, 0), (90, 0)), acts(rows, text=[0, 0, 0, 1, 2, 3]))
    assert found[SITE].vector.tolist() == [1, 3]
    pooled_by_row = torch.tensor(rows[:4]).float().mean(0) - torch.tensor(rows[4:]).float().mean(0)
    assert pooled_by_row.tolist() != [1, 3]


def test_states_of_other_texts_are_refused():
    pairs = contrast((90, 0), (90, 0))
    with pytest.raises(BadInput, match="4 are needed"):
        persona.extract(pairs, acts([[1, 2], [3, 4], [0, 1]]))
    with pytest.raises(BadInput, match="needed"):
        text_means(acts([[1, 2], [3, 4]], text=[0, 2]), SITE)
    with pytest.raises(BadInput, match="same means"):
        persona.extract(pairs, acts([[1, 2]] * 4))
    with pytest.raises(TooFewExamples):
        persona.extract(Contrast(ANGRY, ()), acts([[1, 2]]))


def test_a_planted_vector_repeats_itself_in_halves_and_noise_does_not():
    rng, n, d = np.random.default_rng(0), 80, 64
    planted = rng.normal(size=d)
    noise = rng.normal(size=(2 * n, d))
    pairs = contrast(*[(90, 0)] * n, questions=[i % 20 for i in range(n)])
    shifted = noise + np.r_[np.ones(n), np.zeros(n)][:, None] * planted
    there, not_there = persona.extract(pairs, acts(shifted)), persona.extract(pairs, acts(noise))
    assert there.stability[SITE].low > 0.9
    assert not_there.stability[SITE].low < 0 < not_there.stability[SITE].high
    assert torch.nn.functional.cosine_similarity(there[SITE].vector, torch.tensor(planted).float(), 0) > 0.97


# -- where to steer ------------------------------------------------------------------------------------------------


def settings(table, n=6):
    """Columns of a sweep from {(site, strength): (trait, coherence)}, with some spread over questions."""
    rows = [(site, c, t + i, f + i, i) for (site, c), (t, f) in table.items() for i in range(n)]
    return dict(zip(("sites", "strengths", "trait", "coherence", "groups"), map(list, zip(*rows)), strict=True))


def test_the_site_with_most_trait_at_acceptable_coherence_is_chosen():
    table = {
        ("resid_post[1]", 1.0): (20, 90),
        ("resid_post[2]", 1.0): (40, 80),
        ("resid_post[2]", 2.0): (70, 60),
        ("resid_post[3]", 2.0): (95, 30),  # most trait, but broken text
    }
    found = persona.choose_site(**settings(table))
    assert (str(found.site), found.strength) == ("resid_post[2]", 2.0)
    assert found.to_frame()["chosen"].tolist() == [False, False, True, False]
    assert found.to_frame()["coherent"].tolist() == [True, True, True, False]
    loose = persona.choose_site(**settings(table), least_coherence=20)
    assert str(loose.site) == "resid_post[3]"
    with pytest.raises(TooFewExamples, match="smaller strengths"):
        persona.choose_site(**settings(table), least_coherence=99)


def test_answers_that_were_not_judged_do_not_count():
    table = settings({("resid_post[1]", 1.0): (20, 90)})
    table["trait"][0] = float("nan")
    (row,) = persona.choose_site(**table).rows
    assert row["trait"].n == 5
    assert row["trait"].value == pytest.approx(20 + np.mean([1, 2, 3, 4, 5]))


def test_steps_are_paired_within_items():
    base = np.arange(40.0)[:, None] * 10  # items differ far more than strengths do
    scores = base + np.array([0, 1, 3]) + np.random.default_rng(0).normal(0, 0.1, (40, 3))
    one, two = persona.rises(scores)
    assert one.covers(1) or abs(one.value - 1) < 0.1
    assert one.low > 0
    assert two.value == pytest.approx(2, abs=0.1)
    with pytest.raises(BadInput, match="at least two"):
        persona.rises(scores[:, :1])


# -- with the embedded model -----------------------------------------------------------------------------------------


def test_answers_are_paired_and_judged(organism, tmp_path):
    from latentlens.access.judging.judge import RuleJudge
    from latentlens.access.measures.contrast import contrast as run
    from latentlens.organism.judges import trait_score

    trait = Trait(
        "formal", "says duly", (("Be very formal.", ""), ("Be formal.", "")),
        ("Tell me about the sea.", "Tell me about the farm."), template="{instruction}",
    )  # fmt: skip
    seen = []

    def score(case):
        seen.append(case)
        return min(100.0, 50 * trait_score(case.response, "formal"))

    how = {"samples": 3, "max_new_tokens": 24, "folder": tmp_path}
    found = run(organism, trait, RuleJudge(score, "words"), RuleJudge(lambda case: 100, "all"), **how)
    assert len(found) == 2 * 2 * 3
    assert {c.prompt for c in seen} == set(trait.questions)  # the system prompt stays hidden
    assert {c.about for c in seen} == {"formal: says duly"}
    first = found.pairs[0]
    assert first.positive.text == organism.tokenizer.decode(
        first.positive.row.ids[first.positive.row.n_prompt :], skip_special_tokens=True
    )
    assert {(p.pair, p.question, p.sample) for p in found.pairs} == {
        (a, b, c) for a in range(2) for b in range(2) for c in range(3)
    }
    again = run(organism, trait, RuleJudge(score, "words"), RuleJudge(lambda case: 100, "all"), **how)
    assert again.about["rows run"] == 0
    assert again.to_frame().equals(found.to_frame())
    kept = persona.keep(found, trait=25)
    means = organism.activations(kept.rows, sites="resid_post[*]", where="response", pool="mean")
    tokens = organism.activations(kept.rows, sites="resid_post[3]", where="response")
    vectors = persona.extract(kept, means)
    assert vectors["resid_post[3]"].vector.numpy() == pytest.approx(
        persona.extract(kept, tokens)["resid_post[3]"].vector.numpy(), abs=1e-5
    )
    last = persona.extract(
        kept, organism.activations(kept.rows, sites=["resid_pre[0]", "resid_post[3]"], where="last_prompt")
    )
    assert [str(v.site) for v in last] == ["resid_post[3]"]  # the token itself is the same on both sides
    assert kept.alone[0] == [
        {"role": "user", "content": trait.questions[kept.questions[0]]},
        {"role": "assistant", "content": kept.pairs[0].positive.text},
    ]
    assert SimpleNamespace(**vectors.to_frame().iloc[0]).pairs == len(kept)


def test_steering_and_bounds_are_those_of_the_dossier():
    from latentlens.values.directions import Direction
    from latentlens.values.operations import Add, Clamp

    v = Direction(torch.tensor([1.0, 3.0]), SITE)
    assert Add(v, 2.0).edit(torch.tensor([[3.0, 1.0]])).tolist() == [[5, 7]]
    assert v.cosine(Direction(torch.tensor([3.0, 1.0]), SITE)) == pytest.approx(0.6)
    h, axis = torch.tensor([[3.0, 4.0]]), Direction(torch.tensor([1.0, 0.0]), SITE)
    away = Direction(torch.tensor([-1.0, 0.0]), SITE)
    assert Clamp(axis, high=1.0).edit(h).tolist() == [[1, 4]]
    assert Clamp(away, high=-5.0).edit(h).tolist() == Clamp(axis, low=5.0).edit(h).tolist() == [[5, 4]]


def test_the_axis_from_roles_to_the_default_counts_every_role_once():
    from latentlens.methods.directions.capping import role_axis

    rows = [[4, 0], [6, 2], [0, 0], [0, 2], [0, 4], [2, 8]]
    roles = ["default", "default", "sage", "sage", "sage", "clown"]
    found = role_axis(rows, roles, "default", site=SITE)
    assert found.vector.tolist() == [5 - (0 + 2) / 2, 1 - (2 + 8) / 2]
