import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_kinds import make
from scipy.stats import mannwhitneyu

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import auroc
from latentlens.methods import latents
from latentlens.values.activations import Activations
from latentlens.values.codes import Codes
from latentlens.values.sites import Site


def labelled(dense, text=None, tokens=None):
    n = len(dense)
    text = np.zeros(n, dtype=int) if text is None else np.asarray(text)
    position = np.array([int((text[:i] == text[i]).sum()) for i in range(n)])
    token = np.array(tokens if tokens is not None else [f"t{i}" for i in range(n)], dtype=object)
    labels = {"text": text, "position": position, "token": token}
    return Codes.from_dense(torch.as_tensor(dense, dtype=torch.float32), labels=labels)


def random_codes(n, d=12, seed=0, share=0.4, **options):
    draw = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, d, generator=draw) * (torch.rand(n, d, generator=draw) < share)
    return labelled((dense * 4).round() / 4, **options)


def test_firing_statistics_by_hand():
    found = latents.firing(labelled([[0.0, 2.0, 0.0], [0.0, 4.0, 1.0]]))
    assert found.rate.tolist() == [0.0, 1.0, 0.5]
    assert found.mean.tolist() == [0.0, 3.0, 0.5]
    assert found.max.tolist() == [0.0, 4.0, 1.0]
    assert found.active_mean[1:].tolist() == [3.0, 1.0]
    assert np.isnan(found.active_mean[0])
    assert found.dead.tolist() == [True, False, False]
    assert found.l0 == 1.5
    assert found.top(5) == [1, 2]
    assert list(found.to_frame().columns) == ["latent", "rate", "mean", "active_mean", "max"]
    with pytest.raises(TooFewExamples):
        latents.firing(Codes.from_dense(torch.zeros(0, 3)))
    with pytest.raises(BadInput, match="by="):
        found.top(by="median")


def test_activations_are_encoded_with_the_labels_of_their_rows():
    sae = make(site="resid_post[1]")
    x = torch.randn(9, 6)
    acts = Activations({Site("resid_post", 1): x}, {"text": np.arange(9), "token": np.array(list("abcdefghi"))})
    codes = latents.encode(acts, sae)
    torch.testing.assert_close(codes.dense(), sae.encode(x))
    assert codes.labels["token"][3] == "d"
    assert codes.about["sae"] == sae.fingerprint
    frame = latents.top(acts, 4, sae=sae)
    dense = sae.encode(x)
    best = int(dense.mean(0).argmax())
    assert frame["latent"][0] == best
    assert frame["token"][0] == "abcdefghi"[int(dense[:, best].argmax())]
    with pytest.raises(BadInput, match="sae="):
        latents.top(acts)


def test_examples_are_the_strongest_tokens_in_their_context():
    dense = torch.zeros(10, 3)
    dense[2, 1], dense[3, 1], dense[8, 1] = 5.0, 1.0, 7.0
    codes = labelled(dense, [0] * 5 + [1] * 5, list("abcdefghij"))
    found = latents.examples(codes, 1, before=1, after=2)
    assert [(e.text, e.position, e.peak) for e in found] == [(1, 3, 7.0), (0, 2, 5.0)]
    assert found[0].tokens == ("h", "i", "j")
    assert found[1].tokens == ("b", "c", "d", "e")
    assert found[1].values == (0.0, 5.0, 1.0, 0.0)
    assert found.rate == pytest.approx(0.3)
    assert len(latents.examples(codes, 1, per_text=2)) == 3
    assert len(latents.examples(codes, 2)) == 0
    assert "fires on 0.00%" in str(latents.examples(codes, 2))
    assert list(found.to_frame()["token"]) == ["i", "c"]


def test_examples_that_read_the_same_are_shown_once():
    codes = labelled(torch.tensor([[3.0], [2.0], [1.0]]), [0, 1, 2], ["same", "same", "other"])
    assert [e.tokens for e in latents.examples(codes, 0)] == [("same",), ("other",)]


def test_rows_out_of_order_keep_their_context():
    dense = torch.tensor([[0.0], [9.0], [0.0]])
    codes = labelled(dense, [0, 0, 0], ["c", "b", "a"])
    codes.labels["position"][:] = [2, 1, 0]
    assert latents.examples(codes, 0)[0].tokens == ("a", "b", "c")


def test_no_token_is_live_in_the_html_and_hidden_characters_are_written_out():
    nasty = ["<script>alert(1)</script>", "<img onerror=x>", "\u202edrow", "\x1b[31m"]
    codes = labelled(torch.ones(4, 1), [0] * 4, nasty)
    found = latents.examples(codes, 0)
    for shown in (found._repr_html_(), str(found)):
        assert "\u202e" not in shown
        assert "\x1b" not in shown
    assert "<script" not in found._repr_html_()
    assert "<img" not in found._repr_html_()
    lens = latents.logit_lens(make(), [1], torch.randn(4, 6), nasty)
    assert "<script" not in lens._repr_html_()


def test_pooling_takes_the_largest_or_the_mean_over_a_text():
    codes = random_codes(30, text=np.repeat([7, 3, 5], 10))
    dense = codes.dense()
    for how, reduce in (("max", lambda t: t.amax(0)), ("mean", lambda t: t.mean(0))):
        found = latents.pooled(codes, how)
        expected = torch.stack([reduce(dense[torch.from_numpy(codes.labels["text"] == t)]) for t in (3, 5, 7)])
        torch.testing.assert_close(found.dense(), expected)
        assert found.labels["text"].tolist() == [3, 5, 7]
    with pytest.raises(BadInput, match="turn"):
        latents.pooled(codes, by="turn")
    with pytest.raises(BadInput, match="how="):
        latents.pooled(codes, "median")


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 25), m=st.integers(1, 25), seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_auroc_of_every_latent_is_the_pairwise_one(n, m, seed, share):
    """sparse ranks against scipy's U statistic, ties and silent rows included"""
    on, off = random_codes(n, seed=seed, share=share), random_codes(m, seed=seed + 1, share=share)
    found = latents.detectors(on, off, n_permutations=2)
    a, b = on.dense().numpy(), off.dense().numpy()
    expected = [mannwhitneyu(a[:, j], b[:, j]).statistic / (n * m) for j in range(12)]
    np.testing.assert_allclose(found.auroc, expected, atol=1e-12)
    labels = np.r_[np.ones(n), np.zeros(m)]
    assert found.auroc[0] == pytest.approx(auroc(np.r_[a[:, 0], b[:, 0]], labels))


def test_a_planted_detector_is_found_beyond_chance_and_nothing_under_the_control():
    on, off = random_codes(60, d=200, seed=1).dense(), random_codes(60, d=200, seed=2).dense()
    on[:, 17] += 2.0
    planted = latents.detectors(labelled(on), labelled(off))
    assert planted.best(1) == [17]
    assert planted.beyond_chance == [17]
    assert planted.estimate(17).low > 0.9
    on[:, 17] -= 2.0
    assert len(latents.detectors(labelled(on), labelled(off)).beyond_chance) <= 1
    frame = planted.to_frame(5)
    assert frame["beyond_chance"].tolist() == [True] + [False] * 4
    assert "by chance the best of all reaches" in repr(planted)
    assert "<table" in planted._repr_html_()


def test_detectors_need_both_sides_and_one_sae():
    with pytest.raises(TooFewExamples):
        latents.detectors(random_codes(3), Codes.from_dense(torch.zeros(0, 12)))
    with pytest.raises(BadInput, match="different SAEs"):
        latents.detectors(random_codes(3), random_codes(3, d=5))


def test_matched_controls_fire_like_the_latents_they_match():
    draw = torch.Generator().manual_seed(0)
    rate = torch.linspace(0.01, 0.9, 400)[torch.randperm(400, generator=draw)]
    size = 10 ** (2 * torch.rand(400, generator=draw))
    codes = labelled((torch.rand(500, 400, generator=draw) < rate) * size)
    found = latents.firing(codes)
    target = [int(j) for j in np.flatnonzero(found.rate > 0.7)[:20]]
    near = latents.matched(found, target, seed=1)
    far = latents.uniform(400, 20, exclude=target, seed=1)
    for statistic in (found.rate, found.mean):
        log = np.log(statistic)
        assert np.abs(log[near] - log[target]).mean() < 0.5 * np.abs(log[far] - log[target]).mean()
    assert not set(near) & set(target)
    assert len(set(near)) == 20
    assert near == latents.matched(found, target, seed=2)  # the nearest is the nearest
    several = [latents.matched(found, target, n=10, seed=s) for s in (1, 2)]
    assert several[0] != several[1]
    assert several[0] == latents.matched(found, target, n=10, seed=1)
    assert not set(latents.matched(found, target, exclude=near)) & set(near)
    with pytest.raises(TooFewExamples):
        latents.matched(found, range(300))


def test_uniform_controls_leave_out_what_is_excluded():
    assert sorted(latents.uniform(6, 4, exclude=[0, 5])) == [1, 2, 3, 4]
    assert latents.uniform(1000, 26, seed=42) == latents.uniform(1000, 26, seed=42)
    assert latents.uniform(1000, 26, seed=42) != latents.uniform(1000, 26, seed=43)
    with pytest.raises(TooFewExamples):
        latents.uniform(6, 5, exclude=[0, 5])


def test_the_logit_lens_ranks_tokens_by_the_decoder_row():
    sae = make()
    unembedding = torch.cat([torch.eye(6), torch.full((2, 6), 100.0)])  # two rows of padding
    weight = torch.tensor([0.1, -2.0, 0.5, 0.0, 5.0, -1.0])
    found = latents.logit_lens(sae, [4], unembedding, list("abcdef"), k=2, norm_weight=weight)
    row = sae.W_dec[4] * weight
    assert int(row.argmax()) != int(sae.W_dec[4].argmax())
    assert found.raised[0][0] == ("abcdef"[int(row.argmax())], pytest.approx(float(row.max())))
    assert found.lowered[0][0][0] == "abcdef"[int(row.argmin())]
    frame = found.to_frame()
    assert len(frame) == 4
    assert "latent 4: +" in repr(found)
    assert latents.logit_lens(sae, [4], torch.eye(6), k=50).raised[0][0][0] == str(int(sae.W_dec[4].argmax()))
    with pytest.raises(BadInput, match="unembedding"):
        latents.logit_lens(sae, [4], torch.eye(5))
