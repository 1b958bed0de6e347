"""Identity test, TPP, SCR and the SDM head: the worked numbers, then planted data."""

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.methods.identity_test import identity_test, sae_ceiling, scaled_product
from latentlens.methods.latent_scores import (
    choose_latents,
    over_seeds,
    scr,
    spurious_correlation_removal,
    targeted_probe_perturbation,
    tpp,
)
from latentlens.methods.sdm import distance_share, dkw_half_width, fit_sdm, sdm_activation, similarity


def test_t7_the_inverse_passes_and_correlated_directions_fail():
    A = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    W = torch.linalg.inv(A)
    scaled, product = scaled_product(A, W)
    torch.testing.assert_close(product, 0.8 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(scaled, torch.eye(2, dtype=torch.float64))
    _, same = scaled_product(A, A.T)
    assert float(same[0, 1]) == pytest.approx(0.6)
    with pytest.raises(BadInput, match="do not differ"):
        scaled_product(A * 0, W)


def concept_pairs(k=4, n=80, d=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    pairs = {}
    for i in range(k):
        base = torch.randn(n, d, generator=g)
        pairs[f"c{i}"] = (base, base + 2 * torch.eye(d)[i] + 0.2 * torch.randn(n, d, generator=g))
    return pairs


def test_independent_concepts_give_the_identity_and_shuffled_labels_do_not():
    found = identity_test(concept_pairs(), halvings=4)
    np.testing.assert_allclose(found.matrix, np.eye(4), atol=0.25)
    assert found.gap.value > 0.7
    assert found.top1.value == 1
    assert found.gap_shuffled.value < 0.35
    assert found.top1_shuffled.value < 0.9
    assert found.to_frame().shape == (4, 4)
    with pytest.raises(TooFewExamples):
        identity_test(dict(list(concept_pairs().items())[:1]))
    for wrong in ({"halvings": 0}, {"C": 0.0}):
        with pytest.raises(BadInput, match="at least one"):
            identity_test(concept_pairs(), **wrong)


def test_a_latent_that_is_the_probe_scores_one_and_is_chosen_on_training_rows():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 2, generator=g)
    codes = torch.randn(100, 6, generator=g)
    codes[:, 3] = -2 * logits[:, 0] + 1
    found = sae_ceiling(codes, logits, np.arange(50), np.arange(50, 100))
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.5
    codes[:50, 5] = logits[:50, 1]  # on training rows only
    assert sae_ceiling(codes, logits, np.arange(50), np.arange(50, 100))[1] < 0.5


def test_the_ceiling_has_an_interval_that_covers_and_chance_beside_it():
    from latentlens.methods.identity_test import ceiling_estimates

    g = torch.Generator().manual_seed(0)
    logits = torch.randn(800, 1, generator=g)
    codes = torch.randn(800, 6, generator=g)
    codes[:, 3] = logits[:, 0] + torch.randn(800, generator=g)  # r = 1 / sqrt(2)
    train, test = np.arange(400), np.arange(400, 800)
    ((found, chance),) = ceiling_estimates(codes, logits, train, test, groups=np.arange(800) // 2)
    assert found.value == sae_ceiling(codes, logits, train, test)[0]
    assert found.covers(0.5**0.5)
    assert 0.05 < found.high - found.low < 0.2
    assert found.n == 400
    assert chance < 0.2


def test_t12_tpp_and_scr_by_hand():
    assert targeted_probe_perturbation([0.9, 0.8, 0.85], [[0.6, 0.78, 0.85]]) == pytest.approx(0.29)
    assert spurious_correlation_removal(0.6, 0.75, 0.9) == pytest.approx(0.5)
    assert spurious_correlation_removal(0.6, 0.75, 0.6005) == 0
    estimate = over_seeds([0.2, 0.3, 0.4])
    assert estimate.value == pytest.approx(0.3)
    assert estimate.high - 0.3 == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-3)
    with pytest.raises(BadInput, match="several"):
        over_seeds([0.2])


def test_latents_are_chosen_by_activation_and_decoder_together():
    y = np.arange(10) < 5
    codes = torch.zeros(10, 4)
    codes[:5, 0], codes[:5, 1], codes[5:, 2] = 1.0, 1.0, 3.0
    decoder, probe = torch.tensor([[1.0, 0], [0.1, 1], [1, 0], [5, 0]]), torch.tensor([1.0, 0.0])
    assert choose_latents(codes, y, decoder, probe, 1).tolist() == [0]
    assert choose_latents(codes, y, decoder, probe, 1, signed=False).tolist() == [2]
    with pytest.raises(BadInput, match="between 1 and 4"):
        choose_latents(codes, y, decoder, probe, 5)


def axes_sae(d=8):
    """Latent j reads and writes axis j of the states (positive part), latent d + j its negative part."""
    from latentlens.values.sae import SAE

    both = torch.cat([torch.eye(d), -torch.eye(d)])
    return SAE("relu", W_enc=both.T, b_enc=torch.zeros(2 * d), W_dec=both, b_dec=torch.zeros(d), site="resid_post[0]")


def concepts_on_axes(axes=(0, 3, 5), n=200, d=8, seed=0):
    rng = np.random.default_rng(seed)
    data = {}
    for axis in axes:
        y = rng.random(n) < 0.5
        x = 0.5 * rng.normal(size=(n, d))
        x[:, axis] += np.where(y, 2, -2)
        data[f"axis {axis}"] = (torch.tensor(x, dtype=torch.float32), y)
    return data


def test_tpp_of_latents_that_are_the_concepts_is_large_and_of_random_ones_small():
    found = tpp(axes_sae(), concepts_on_axes(), counts=(1, 2), seeds=range(4))
    assert min(e.value for e in found.accuracy.values()) > 0.97
    # both halves of the axis gone, the probe of the concept guesses; the other probes keep what they had
    assert found.chosen[2].value == pytest.approx(0.5, abs=0.08)
    assert found.chosen[2].low > found.random[2].high
    assert found.chosen[2].n == 4
    assert list(found.to_frame()["latents"]) == [1, 2]
    assert "4 seeds" in repr(found)
    again = tpp(axes_sae(), concepts_on_axes(), counts=(1, 2), seeds=range(4))
    assert again.chosen == found.chosen


def test_ablated_latents_lose_what_they_add_and_the_error_stays():
    from sae_kinds import NORMALISATIONS, make

    from latentlens.methods.latent_scores import _without

    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    for normalisation in NORMALISATIONS:
        sae = make(normalisation=normalisation)
        full = sae.encode(x)
        kept = full.clone()
        kept[:, [2, 7]] = 0
        slow = x + sae.decode(kept, x) - sae.decode(full, x)
        torch.testing.assert_close(_without(sae, x, np.array([2, 7])), slow, atol=1e-5, rtol=1e-5)


def test_scr_brings_back_what_a_spurious_axis_took():
    rng = np.random.default_rng(0)
    y, s = rng.random(800) < 0.5, rng.random(800) < 0.5
    x = 0.7 * rng.normal(size=(800, 8))
    x[:, 0] += np.where(y, 1, -1)
    x[:, 4] += np.where(s, 3, -3)  # easier to read than the target
    found = scr(axes_sae(), torch.tensor(x, dtype=torch.float32), y, s, counts=(2,), seeds=range(4))
    assert found.accuracy["biased"].value < found.accuracy["clean"].value - 0.1
    assert found.chosen[2].value > 0.7
    assert found.chosen[2].low > found.random[2].high


def test_tpp_and_scr_refuse_what_they_cannot_score():
    data, sae = concepts_on_axes(), axes_sae()
    x, y = data["axis 0"]
    with pytest.raises(BadInput, match="at least 2"):
        tpp(sae, {"one": (x, y)})
    with pytest.raises(BadInput, match="several"):
        tpp(sae, data, seeds=[0], counts=(1,))
    with pytest.raises(BadInput, match="the SAE reads"):
        tpp(sae, {"a": (x[:, :3], y), "b": (x, y)})
    with pytest.raises(NonFiniteActivations):
        tpp(sae, {"a": (x * torch.nan, y), "b": (x, y)})
    with pytest.raises(TooFewExamples):
        tpp(sae, {"a": (x, np.ones(200)), "b": (x, y)})
    with pytest.raises(TooFewExamples, match="combination"):
        scr(sae, x, y, y)


def test_t14_sdm_by_hand():
    z = torch.tensor([2.0, 0.0], dtype=torch.float64)
    assert float(sdm_activation(z, 3.0, 0.5)[0]) == pytest.approx(0.833333, abs=1e-6)
    assert float(sdm_activation(z, np.e - 2, 1.0)[0]) == pytest.approx(0.880797, abs=1e-6)
    assert float(sdm_activation(z, 3.0, 0.0)[0]) == 0.5
    assert similarity(1, np.array([1, 1, 1, 1]), np.array([1, 1, 0, 1])) == 2
    assert similarity(0, np.array([1, 1]), np.array([1, 1])) == 0
    assert distance_share(2.5, [np.array([1, 2, 3, 4]), np.array([2, 4, 6, 8])]) == 0.5
    assert dkw_half_width(0) == 1
    assert dkw_half_width(1000) == pytest.approx(np.sqrt(np.log(40) / 2000))


def blobs(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    x = rng.normal(size=(n, 2)) * 0.7 + np.where(y[:, None] == 1, 1.5, -1.5) * np.array([1.0, 0]) + shift
    return torch.tensor(x), torch.tensor(np.stack([-2 * x[:, 0], 2 * x[:, 0]], 1)), y


def test_the_head_admits_what_it_gets_right_and_rejects_what_is_far():
    train, cal, test = blobs(600, 0), blobs(600, 1), blobs(600, 2)
    head = fit_sdm(*train, *cal, alpha=0.95)
    inside = head.read(*test[:2])
    assert 0.2 < inside.admitted.mean() < 1
    right = inside.predicted == test[2]
    assert right[inside.admitted].mean() >= 0.95
    assert right[inside.admitted].mean() >= right.mean()
    far = head.read(*blobs(100, 3, shift=30.0)[:2])
    assert far.admitted.sum() == 0
    assert far.distance.max() == 0
    torch.testing.assert_close(far.probabilities, torch.full((100, 2), 0.5, dtype=torch.float64))
    with pytest.raises(TooFewExamples, match="1 of 2 classes"):
        fit_sdm(*train, cal[0], cal[1], np.zeros(600))
    with pytest.raises(BadInput, match="alpha"):
        fit_sdm(*train, *cal, alpha=0.3)


def test_the_cosine_table_of_directions():
    from latentlens.values.direction_table import cosines
    from latentlens.values.directions import Direction

    a, b = (Direction(torch.tensor(v), "resid_post[0]") for v in ([1.0, 0.0], [0.6, 0.8]))
    frame = cosines({"a": a, "b": b})
    np.testing.assert_allclose(frame.values, [[1, 0.6], [0.6, 1]], atol=1e-6)
    assert frame.attrs["random sd"] == pytest.approx(2**-0.5)
    with pytest.raises(BadInput, match="no directions"):
        cosines({})


def test_many_aurocs_at_once_are_the_single_ones():
    from latentlens.maths.statistics import auroc, auroc_rows

    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, size=(6, 30)), rng.random((6, 30)) < 0.4
    np.testing.assert_allclose(auroc_rows(scores, labels), [auroc(s, y) for s, y in zip(scores, labels)])
    assert np.isnan(auroc_rows(scores[:1], np.ones(30, bool))).all()


def test_permutations_keep_labels_as_clustered_as_they_were():
    from latentlens.maths.grouped_splits import permuted

    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 3)
    whole = (np.arange(20) % 2 == 0)[group]
    drawn = permuted(whole, group, rng)
    assert all(len(set(drawn[group == g])) == 1 for g in range(20))
    assert drawn.sum() == whole.sum()
    assert not np.array_equal(drawn, whole)
    mixed = whole.copy()
    mixed[0] = False
    counts = lambda y: sorted(np.bincount(group, weights=y).tolist())
    assert counts(permuted(mixed, group, rng)) == counts(mixed)
