"""Estimators of directions: hand numbers, planted directions, shuffled labels, and rows in pieces."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import latentlens as ll
from latentlens import directions
from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

SITE = "resid_post[3]"
POSITIVE, NEGATIVE = [[3.0, 1.0], [1.0, 3.0]], [[1.0, 1.0], [1.0, -1.0]]
ROWS, LABELS = POSITIVE + NEGATIVE, [1, 1, 0, 0]
PAIRS = torch.tensor([[2, 0.1], [2, -0.1], [2.2, 0.3], [1.8, -0.3]])
H = torch.tensor([[3.0, 4.0]])


def planted(n=600, d=24, seed=0, noise=0.3):
    """Pairs of rows that differ along one axis and share a stronger nuisance; x[y] and x[~y] are the pairs."""
    rng = np.random.default_rng(seed)
    axis, nuisance = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    shared = 5 + 3 * rng.normal(size=(n // 2, 1)) * nuisance
    x = np.repeat(shared, 2, axis=0) + noise * rng.normal(size=(n, d))
    y = np.arange(n) % 2 == 0
    return torch.tensor(x + (2 * y[:, None] - 1) * axis), y, torch.tensor(axis)


def cosine(direction, axis):
    return float(direction.unit.double() @ axis / axis.norm())


def acts_of(x, site=SITE, **labels):
    return Activations({Site("resid_post", 3) if site == SITE else site: x}, {"text": np.arange(len(x)), **labels})


# -- hand numbers ---------------------------------------------------------------------------------------


def test_mean_difference_and_mean_centring_by_hand():
    found = directions.mean_difference(ROWS, LABELS, site=SITE)
    assert found.vector.tolist() == [1.0, 2.0]
    assert (str(found.site), found.source["n"], found.frame) == (SITE, [2, 2], "raw")
    centred = directions.mean_centred(ROWS, LABELS, site=SITE)
    assert centred[1].vector.tolist() == [0.5, 1.0]
    assert centred[0].vector.tolist() == [-0.5, -1.0]


def test_the_larger_label_is_positive_and_one_label_can_be_named_against_all_others():
    named = ["sea", "sea", "farm", "city"]
    assert directions.mean_difference(ROWS, ["no", "no", "yes", "yes"], site=SITE).vector.tolist() == [-1.0, -2.0]
    assert directions.mean_difference(ROWS, named, site=SITE, positive="sea").vector.tolist() == [1.0, 2.0]
    found = directions.mean_centred(ROWS, named, site=SITE)
    assert list(found) == ["city", "farm", "sea"]
    assert found["city"].vector.tolist() == [-0.5, -2.0]


def test_t_pca_centring_the_differences_loses_what_the_pairs_share():
    zero, mean = torch.zeros_like(PAIRS), torch.tensor([2.0, 0.0])
    found = {c: directions.pair_component(PAIRS, zero, site=SITE, centring=c) for c in ("uncentred", "centred")}
    torch.testing.assert_close(found["centred"].vector, torch.tensor([0.5257, 0.8507]), atol=1e-4, rtol=0)
    assert cosine(found["centred"], mean.double()) == pytest.approx(0.5257, abs=1e-4)
    assert cosine(found["uncentred"], mean.double()) == pytest.approx(0.99997, abs=1e-5)
    pair_centred = directions.pair_component(PAIRS, zero, site=SITE, centring="pair-centred")
    torch.testing.assert_close(pair_centred.vector, torch.tensor([1.0, 0.0076]), atol=1e-4, rtol=0)
    assert found["uncentred"].source["pairs that agree with the sign"] == 1


def test_the_three_centrings_are_what_repeng_computes_with_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 8))
    a[:, 0] += 3
    middle = (a + b) / 2
    for centring, rows in {"centred": a - b, "pair-centred": np.concatenate([a - middle, b - middle])}.items():
        theirs = PCA(n_components=1).fit(rows).components_[0]
        ours = directions.pair_component(torch.tensor(a), torch.tensor(b), site=SITE, centring=centring)
        assert abs(float(ours.vector.double() @ torch.tensor(theirs))) == pytest.approx(1, abs=1e-6)
    singular = np.linalg.svd(a - b, full_matrices=False)[2][0]
    ours = directions.pair_component(torch.tensor(a), torch.tensor(b), site=SITE)
    assert abs(float(ours.vector.double() @ torch.tensor(singular))) == pytest.approx(1, abs=1e-6)


def test_the_sign_is_that_of_most_pairs_even_where_their_mean_points_the_other_way():
    d = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-9.0, 0.0]])
    found = directions.pair_component(d, torch.zeros_like(d), site=SITE)
    assert float(found.vector[0]) > 0.99  # three of four pairs say so; the mean is -1.5
    assert found.source["pairs that agree with the sign"] == 0.75
    first = directions.PairComponent(SITE).update(d, torch.zeros_like(d)).finish()
    assert float(first.vector[0]) < -0.99
    counter = directions.MajoritySign(first).update(d[:1], 0 * d[:1]).update(d[1:], 0 * d[1:])
    assert float(counter.finish().vector @ found.vector) == pytest.approx(1)


def test_normalised_pairs_count_once_each():
    d = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 50.0]])
    zero = torch.zeros_like(d)
    assert directions.pair_component(d, zero, site=SITE).vector.abs().tolist() == [0.0, 1.0]
    assert directions.pair_component(d, zero, site=SITE, normalise=True).vector.abs().tolist() == [1.0, 0.0]


def test_t_iti_by_hand():
    """x = [1, 0], alpha 15, sigma .5, theta = [.6, .8] -> [5.5, 6]; the other head is left alone."""
    theta = torch.tensor([[[0.6, 0.8], [1.0, 0.0]]])
    heads = ll.HeadDirections((Site("z", 2),), theta, torch.tensor([[0.5, 9.0]]), np.array([[0.9, 0.6]]), "accuracy")
    (edit,) = heads.plan(alpha=15, k=1)
    assert str(edit.site) == "z[2]"
    torch.testing.assert_close(edit.edit(torch.tensor([[1.0, 0.0, 7.0, 7.0]])), torch.tensor([[5.5, 6.0, 7.0, 7.0]]))


def test_t_concept_edit_moves_states_to_the_mean_of_either_class():
    """r = [2, 0], r0 = [-1, 2], h = [3, 4]: a = 0 -> [-1, 4], .5 -> [0, 4], 1 -> [1, 4]."""
    rows = [[1.0, 2.0], [1.0, 2.0], [-1.0, 1.0], [-1.0, 3.0]]
    for amount, expected in {0.0: [-1.0, 4.0], 0.5: [0.0, 4.0], 1.0: [1.0, 4.0]}.items():
        edit = directions.concept_edit(rows, LABELS, amount, site=SITE, where="response")
        assert edit.direction.vector.tolist() == [2.0, 0.0]
        assert edit.reference.tolist() == [-1.0, 2.0]
        torch.testing.assert_close(edit.edit(H), torch.tensor([expected]))


def test_act_add_is_positional_and_keeps_to_the_front():
    prompt, other = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    edit = directions.act_add(prompt, other, site=SITE, coeff=2.0)
    assert str(edit.where) == "first-2"
    states = torch.zeros(4, 2)
    assert edit.edit(states).tolist() == [[2.0, 0.0], [-4.0, -2.0], [0.0, 0.0], [0.0, 0.0]]
    with pytest.raises(BadInput, match="pad the shorter"):
        directions.act_add(prompt, other[:1], site=SITE)
    with pytest.raises(BadInput, match="ONE pair"):
        directions.act_add(acts_of(prompt), acts_of(other))


def test_t_linear_transport_by_hand():
    """[1, 2, 3] -> [2, 4, 9]: w = 3.5, b = -2; order does not matter."""
    edit = directions.linear_transport([[3.0], [1.0], [2.0]], [[4.0], [9.0], [2.0]], site=SITE)
    assert edit.weight.tolist() == pytest.approx([3.5])
    assert edit.bias.tolist() == pytest.approx([-2.0])
    assert edit.edit(torch.tensor([[2.0]])).item() == pytest.approx(5.0)
    half = directions.linear_transport([[1.0], [2.0], [3.0]], [[2.0], [4.0], [9.0]], 0.5, site=SITE)
    assert half.edit(torch.tensor([[2.0]])).item() == pytest.approx(3.5)


def test_transport_of_unequal_sets_is_that_of_their_quantiles_and_a_flat_coordinate_only_moves():
    source, target = (
        torch.tensor([[0.0, 7.0], [4.0, 7.0]]),
        torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]),
    )
    edit = directions.linear_transport(source, target, site=SITE)
    # ranks 1/8, 3/8, 5/8, 7/8 of {0, 4}: 0, 1, 3, 4 -> 0, 1, 2, 3
    slope, offset = np.polyfit([0, 1, 3, 4], [0, 1, 2, 3], 1)
    assert float(edit.weight[0]) == pytest.approx(slope)
    assert float(edit.bias[0]) == pytest.approx(offset)
    assert (float(edit.weight[1]), float(edit.bias[1])) == pytest.approx((1.0, 2.5 - 7.0))


def test_transport_recovers_a_planted_scale_and_shift():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(200, 3)))
    scale, shift = torch.tensor([2.0, 0.5, 1.0]).double(), torch.tensor([1.0, -3.0, 0.0]).double()
    order = np.argsort(rng.random((200, 3)), axis=0)  # every coordinate in an order of its own
    edit = directions.linear_transport(x, scale * x.gather(0, torch.tensor(order)) + shift, site=SITE)
    torch.testing.assert_close(edit.weight.double(), scale, atol=1e-6, rtol=0)
    torch.testing.assert_close(edit.bias.double(), shift, atol=1e-6, rtol=0)
    other = directions.linear_transport(x, scale * torch.tensor(rng.normal(size=(8000, 3))) + shift, site=SITE)
    torch.testing.assert_close(other.weight.double(), scale, atol=0, rtol=0.25)  # 4 standard errors of a spread of 200


def test_t_capping_by_hand():
    """h = [3, 4]: v = [1, 0], tau = 1 -> [1, 4]; v = [-1, 0], tau = -5 -> [5, 4]: the floor v = [1, 0] at 5."""
    axis = ll.Direction(torch.tensor([2.0, 0.0]), SITE)
    rows = [[0.0, 0.0], [1.0, 9.0], [2.0, -9.0]]
    assert directions.capping(axis, rows, percentile=50, side="cap").edit(H).tolist() == [[1.0, 4.0]]
    away = ll.Direction(torch.tensor([-1.0, 0.0]), SITE)
    capped = directions.capping(away, [[5.0, 0.0], [5.0, 1.0]], percentile=75, side="cap")
    assert capped.high == -5
    assert capped.edit(H).tolist() == [[5.0, 4.0]]
    assert directions.capping(axis, [[5.0, 0.0], [5.0, 1.0]]).edit(H).tolist() == [[5.0, 4.0]]
    floor = directions.capping(away, [[5.0, 0.0], [5.0, 1.0]], percentile=25)  # all projections are -5
    assert floor.low == -5
    assert floor.edit(H).tolist() == [[3.0, 4.0]]  # -3 is above -5
    assert floor.edit(torch.tensor([[7.0, 4.0]])).tolist() == [[5.0, 4.0]]
    assert directions.capping(axis, rows, percentile=25).low == pytest.approx(0.5)


def test_the_role_axis_weighs_roles_and_not_rows():
    rows = [[4.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]
    roles = ["default", "pirate", "pirate", "pirate", "ghost"]
    assert directions.role_axis(rows, roles, "default", site=SITE).vector.tolist() == [3.0, -1.0]
    assert directions.mean_difference(rows, roles, site=SITE, positive="default").vector.tolist() == [3.5, -0.5]
    with pytest.raises(BadInput, match="no row has the role"):
        directions.role_axis(rows, roles, "assistant", site=SITE)


def test_the_plane_is_spanned_by_the_most_typical_direction_and_the_first_component():
    vectors = [[1.0, 0.0, 0.0], [1.0, 0.6, 0.0], [1.0, -0.6, 0.0], [1.0, 0.0, 0.1]]
    candidates = [ll.Direction(torch.tensor(v), f"resid_post[{i}]") for i, v in enumerate(vectors)]
    b1, b2 = directions.plane(candidates)
    assert str(b1.site) == "resid_post[0]"
    torch.testing.assert_close(b2.vector.abs(), torch.tensor([0.0, 1.0, 0.0]), atol=0.05, rtol=0)
    assert abs(b1.cosine(b2)) < 1e-6
    turned = ll.Rotate(b1, b2, to=90).edit(torch.tensor([[3.0, 4.0, 2.0]]))
    assert turned.norm().item() == pytest.approx(29**0.5, rel=1e-6)
    assert str(directions.plane(candidates, choose="long")[0].site) == "resid_post[1]"
    with pytest.raises(BadInput, match="parallel"):
        directions.plane([candidates[0], candidates[0].scaled_to(3)])
    with pytest.raises(TooFewExamples):
        directions.plane(candidates[:1])


def test_t_cold_by_hand():
    """z = w x with w = 1, x = 2, L = (z - 5)^2 / 2: grad -6, eps .01 -> z 1.88, eta .1 -> 3.2."""
    edit = directions.cold_edit([[2.0]], [[1.88]], eta=0.1, eps=0.01, site=SITE)
    assert edit.edit(torch.tensor([[2.0]])).item() == pytest.approx(3.2, abs=1e-5)
    found = directions.cold_direction([[2.0], [2.0]], [[1.88], [1.86]], 0.01, site=SITE)
    assert found.vector.item() == pytest.approx(13.0, abs=1e-4)
    assert directions.unit_kernel([[1.0, 0.0], [0.0, 3.0]], site=SITE).vector.tolist() == [-0.5, -1.5]
    with pytest.raises(BadInput, match="did not move"):
        directions.cold_direction([[2.0]], [[2.0]], 0.01, site=SITE)
    with pytest.raises(BadInput, match="eps=0"):
        directions.cold_direction([[2.0]], [[2.0]], 0.0, site=SITE)


# -- planted directions -----------------------------------------------------------------------------------

ESTIMATORS = {
    "mean difference": lambda x, y: directions.mean_difference(x, y, site=SITE),
    "mean-centring": lambda x, y: directions.mean_centred(x, y, site=SITE)[True],
    "lda": lambda x, y: directions.lda(x, y, site=SITE),
    "lda, oas": lambda x, y: directions.lda(x, y, site=SITE, shrinkage="oas"),
    "concept edit": lambda x, y: directions.concept_edit(x, y, site=SITE).direction,
    "role axis": lambda x, y: directions.role_axis(x, y, True, site=SITE),
    "pairs, uncentred": lambda x, y: directions.pair_component(x[y], x[~y], site=SITE),
    "pairs, pair-centred": lambda x, y: directions.pair_component(x[y], x[~y], site=SITE, centring="pair-centred"),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_planted_direction_is_found_and_not_under_shuffled_labels(name):
    x, y, axis = planted(n=4000)
    assert cosine(ESTIMATORS[name](x, y), axis) > 0.99
    assert cosine(ESTIMATORS[name](x, ~y), axis) < -0.99
    rng = np.random.default_rng(1)
    found = [cosine(ESTIMATORS[name](x, rng.permutation(y)), axis) for _ in range(12)]
    assert max(map(abs, found)) < 0.9
    assert abs(np.mean(found)) < 0.35  # 3 standard errors of what the variance along the axis gives by itself


def test_swapping_the_sides_of_pairs_moves_the_sign_of_their_axis_and_not_the_axis():
    """So it is no control: shuffle whole rows, and look at the share of pairs that agree."""
    x, y, _ = planted()
    swap = torch.tensor(np.random.default_rng(0).random(300) < 0.5)[:, None]
    a, b = torch.where(swap, x[~y], x[y]), torch.where(swap, x[y], x[~y])
    straight = directions.pair_component(x[y], x[~y], site=SITE)
    found = directions.pair_component(a, b, site=SITE)
    assert abs(found.cosine(straight)) == pytest.approx(1, abs=1e-6)
    assert straight.source["pairs that agree with the sign"] > 0.99
    assert found.source["pairs that agree with the sign"] < 0.6


def test_centred_pca_misses_a_planted_direction_that_all_pairs_share():
    """The trap at scale: the concept is constant over pairs, a nuisance is not."""
    rng = np.random.default_rng(0)
    axis, nuisance = np.linalg.qr(rng.normal(size=(16, 2)))[0].T
    d = torch.tensor(4 * axis + rng.normal(size=(300, 1)) * nuisance + 0.1 * rng.normal(size=(300, 16)))
    zero = torch.zeros_like(d)
    found = {c: directions.pair_component(d, zero, site=SITE, centring=c) for c in ("uncentred", "centred")}
    assert cosine(found["uncentred"], torch.tensor(axis)) > 0.99
    assert abs(cosine(found["centred"], torch.tensor(axis))) < 0.1
    assert abs(cosine(found["centred"], torch.tensor(nuisance))) > 0.99


def test_plain_lda_in_pieces_is_scikit_learns():
    x, y, _ = planted(d=10)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y)
    found = directions.LinearDiscriminant(SITE, shrinkage=0.0).update(x[:7], y[:7]).update(x[7:], y[7:]).finish()
    np.testing.assert_allclose(found.vector.numpy(), theirs.coef_[0], rtol=1e-4, atol=1e-5)


def test_lda_of_ledoit_and_wolf_is_that_of_the_probe():
    x, y, _ = planted(n=120)
    sweep = ll.probe.fit(acts_of(x.float()), y, method="lda", n_controls=1, n_bootstrap=20)
    rows = sweep.train_rows
    found = directions.lda(x[rows], y[rows], site=SITE)
    assert found.cosine(sweep.best().direction) == pytest.approx(1, abs=1e-5)


# -- pieces ------------------------------------------------------------------------------------------------


@st.composite
def cut(draw, n=60):
    """Sizes of pieces, empty ones included."""
    places = sorted(draw(st.lists(st.integers(0, n), max_size=8)))
    return list(zip([0, *places], [*places, n]))


@settings(max_examples=25, deadline=None)
@given(cut(), st.integers(0, 3))
def test_fitters_give_the_batch_result_however_the_rows_are_cut(pieces, seed):
    x, y, _ = planted(n=60, d=8, seed=seed)
    x = 1e4 + x  # a mean that is large against the spread
    pairs = x[:30], x[30:]
    fitters = {
        "mean difference": (directions.MeanDifference(SITE), lambda: directions.mean_difference(x, y, site=SITE)),
        "lda": (directions.LinearDiscriminant(SITE), lambda: directions.lda(x, y, site=SITE, shrinkage="oas")),
        "role axis": (directions.RoleAxis(True, SITE), lambda: directions.role_axis(x, y, True, site=SITE)),
    }
    centring = directions.MeanCentring(SITE)
    components = {c: directions.PairComponent(SITE, centring=c) for c in ("uncentred", "pair-centred", "centred")}
    for low, high in pieces:
        for fitter, _ in fitters.values():
            fitter.update(x[low:high], y[low:high])
        centring.update(x[low:high], y[low:high])
        for component in components.values():
            half = slice(low // 2, high // 2)
            component.update(pairs[0][half], pairs[1][half])
    for fitter, batch in fitters.values():
        expected = batch()
        torch.testing.assert_close(fitter.finish().vector, expected.vector, rtol=1e-5, atol=1e-6 * expected.norm)
    for label, direction in directions.mean_centred(x, y, site=SITE).items():
        torch.testing.assert_close(centring.finish()[label].vector, direction.vector, rtol=1e-5, atol=1e-5)
    for name, component in components.items():
        batch = directions.pair_component(*pairs, site=SITE, centring=name)
        signed = directions.MajoritySign(component.finish()).update(*pairs).finish()
        torch.testing.assert_close(signed.vector, batch.vector, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(cut(n=40))
def test_head_moments_give_the_spreads_of_all_rows_however_they_are_cut(pieces):
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(size=(40, 2, 3)) + 100), np.arange(40) % 2 == 0
    x[torch.tensor(y), 1] += torch.tensor([0.0, 2.0, 0.0])
    fitter = directions.HeadMoments()
    for low, high in pieces:
        fitter.update(acts_of(x[low:high], Site("z", 1)), y[low:high])
    found = fitter.finish()
    for head in range(2):
        difference = x[torch.tensor(y), head].mean(0) - x[torch.tensor(~y), head].mean(0)
        unit = difference / difference.norm()
        torch.testing.assert_close(found.theta[0, head].double(), unit, atol=1e-6, rtol=0)
        assert float(found.sigma[0, head]) == pytest.approx(float((x[:, head] @ unit).std(correction=0)), rel=1e-5)
    assert found.best(1) == [(0, 1)]


@settings(max_examples=15, deadline=None)
@given(cut(n=50))
def test_effects_of_steering_are_the_same_however_the_vectors_are_cut(pieces):
    rng = np.random.default_rng(0)
    s, y = torch.tensor(rng.normal(size=(50, 4))), torch.tensor(rng.normal(size=(50, 6)) + 3)
    fitter = directions.EffectFit(SITE, ridge=0.1)
    for low, high in pieces:
        fitter.update(s[low:high], y[low:high])
    found = fitter.finish()
    units = s / s.norm(dim=1, keepdim=True)
    z, t = units - units.mean(0), y - y.mean(0)
    penalty = 0.1 * z.square().mean() * len(z)
    weights = torch.linalg.solve(z.T @ z + penalty * torch.eye(4), z.T @ t)
    torch.testing.assert_close(found.weights, weights, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.bias, y.mean(0) - units.mean(0) @ weights)


@settings(max_examples=15, deadline=None)
@given(cut(n=60))
def test_edits_bounds_and_candidates_are_the_same_however_the_rows_are_cut(pieces):
    x, y, _ = planted(n=60, d=5)
    last = Activations({Site("resid_post", b): x + b for b in (0, 1)},
                       {"text": np.arange(60) // 2, "position": np.arange(60) % 2})  # fmt: skip
    axis = ll.Direction(torch.ones(5), SITE)
    edit, bound, candidates = directions.ConceptMeans(SITE), directions.ProjectionBound(axis), directions.RefusalMeans()
    codes = torch.relu(x[:, :4])
    model = ll.EffectModel(torch.eye(4), torch.zeros(4), SITE)
    latents = directions.FeatureContrast(model)
    for low, high in pieces:
        edit.update(x[low:high], y[low:high])
        bound.update(x[low:high])
        texts = np.arange(2 * (low // 2), 2 * (high // 2))
        candidates.update(last.rows(texts), y[texts // 2])
        for side in (True, False):
            latents.update(codes[low:high][torch.tensor(y[low:high] == side)], side)
    expected = directions.concept_edit(x, y, 0.5, site=SITE)
    torch.testing.assert_close(edit.finish(0.5).reference, expected.reference)
    torch.testing.assert_close(edit.finish(0.5).direction.vector, expected.direction.vector)
    assert bound.finish(40).low == pytest.approx(directions.capping(axis, x, percentile=40).low)
    for one, other in zip(candidates.finish(), directions.refusal_candidates(last, y[:30]), strict=True):
        assert (str(one.site), one.source["offset"], one.source["n"]) == (
            str(other.site), other.source["offset"], other.source["n"])  # fmt: skip
        torch.testing.assert_close(one.vector, other.vector, rtol=1e-4, atol=1e-5)
    guided = directions.feature_guided(codes[torch.tensor(y)], codes[torch.tensor(~y)], model, densest=1.0)
    torch.testing.assert_close(latents.finish(densest=1.0).vector, guided.vector)


def test_fitters_say_what_is_missing_and_what_does_not_fit():
    axis, model = ll.Direction(torch.ones(2), SITE), ll.EffectModel(torch.eye(2), torch.zeros(2), SITE)
    with pytest.raises(TooFewExamples, match="no rows"):
        directions.ProjectionBound(axis).finish()
    with pytest.raises(TooFewExamples, match="no texts"):
        directions.RefusalMeans().finish()
    with pytest.raises(TooFewExamples, match="1 positive and 0 negative"):
        directions.FeatureContrast(model).update(torch.ones(1, 2), True).finish()
    with pytest.raises(BadInput, match="codes of 3 latents, the model has 2"):
        directions.FeatureContrast(model).update(torch.ones(1, 3), True)
    with pytest.raises(BadInput, match="has 2 entries, the rows"):
        directions.ProjectionBound(axis).update([[1.0, 2.0, 3.0]])
    labels = {"text": np.array([0, 0, 1, 1]), "position": np.array([0, 1, 0, 1])}
    acts = Activations({Site("resid_post", 1): torch.tensor(ROWS)}, labels)
    fitter = directions.RefusalMeans().update(acts, [True, False])
    with pytest.raises(BadInput, match="the same every time"):
        fitter.update(acts.rows([0, 2]), [True, False])


def test_a_million_rows_fit_because_no_row_is_kept():
    """A million rows of 16 in pieces; what is held afterwards is what a hundred rows leave behind."""

    def held(rows, pieces):
        fitters = [directions.MeanDifference(SITE), directions.LinearDiscriminant(SITE), directions.ConceptMeans(SITE)]
        pairs = directions.PairComponent(SITE)
        x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(0))
        y = np.arange(rows) % 2
        for _ in range(pieces):
            for fitter in fitters:
                fitter.update(x, y)
            pairs.update(x[y == 1], x[y == 0])
        return sum(len(pickle.dumps(one)) for one in (*fitters, pairs)), fitters[0].finish().source["n"]

    small, big = held(100, 1), held(50_000, 20)
    assert big[1] == [500_000, 500_000]
    assert big[0] <= small[0] + 200


# -- heads, refusal, latents ---------------------------------------------------------------------------------


def head_rows(n=240, seed=0):
    """Eight heads in two blocks; one of them holds the label in a direction of its own, all are noisy."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2 == 0
    values = {Site("z", b): torch.tensor(rng.normal(size=(n, 4, 6)) * 2, dtype=torch.float32) for b in (1, 4)}
    theta = torch.tensor([0.0, 0.6, 0.0, 0.0, -0.8, 0.0])
    values[Site("z", 4)][torch.tensor(y), 2] += 6 * theta
    return Activations(values, {"text": np.arange(n)}), y, theta


@pytest.mark.parametrize("theta", ["mean difference", "probe"])
def test_the_planted_head_is_found_with_its_direction_and_spread(theta):
    acts, y, axis = head_rows()
    found = directions.head_directions(acts, y, theta=theta, n_controls=10)
    assert found.best(1) == [(1, 2)]
    assert float(found.theta[1, 2] @ axis) > 0.95
    rows = acts["z[4]"][:, 2] @ found.theta[1, 2]
    assert float(found.sigma[1, 2]) == pytest.approx(float(rows.std(correction=0)), rel=1e-4)
    assert found.score[1, 2] > found.best_of_shuffled.high
    assert np.delete(found.score.ravel(), 6).max() <= found.best_of_shuffled.high + 0.1
    (only,) = found.directions(1)
    assert str(only.site) == "z[4]"
    assert only.vector.reshape(4, 6)[[0, 1, 3]].any().item() is False
    assert [str(d.site) for d in found.directions(8)] == ["z[1]", "z[4]"]
    assert len(found.to_frame()) == 8
    assert "z[4], head 2" in repr(found)


def test_no_head_stands_out_under_shuffled_labels():
    acts, y, _ = head_rows()
    shuffled = np.random.default_rng(5).permutation(y)
    found = directions.head_directions(acts, shuffled, n_controls=20)
    assert found.score.max() <= found.best_of_shuffled.high + 0.05


def test_heads_are_read_at_z_only_and_k_has_a_range():
    acts, y, _ = head_rows(40)
    with pytest.raises(BadInput, match=r"z\[\*\]"):
        directions.head_directions(acts_of(torch.zeros(4, 3)), [0, 1, 0, 1])
    with pytest.raises(BadInput, match="choose 1 to 8"):
        directions.head_directions(acts, y, n_controls=0).best(9)
    with pytest.raises(BadInput, match="theta"):
        directions.head_directions(acts, y, theta="pca")


def candidates():
    return [ll.Direction(torch.eye(6)[i], f"resid_post[{i}]", name=str(i)) for i in range(6)]


def test_refusal_selection_obeys_every_constraint():
    """Lowest ablation score wins, unless the KL is large, nothing is induced, or the block is among the last fifth."""
    ablation = [-1.0, -9.0, -3.0, -5.0, float("nan"), -8.0]
    kl, induce = [0.01, 0.5, 0.02, 0.05, 0.0, 0.0], [1.0, 1.0, 2.0, -0.1, 1.0, 1.0]
    choice = directions.select_refusal(candidates(), ablation, kl, induce, n_blocks=6)
    assert choice.direction.name == "2"
    assert [c.rejected for c in choice.candidates] == [
        "", "KL above 0.1", "", "induces less than 0", "not a number", "at or behind block 4.8",
    ]  # fmt: skip
    assert choice.to_frame()["chosen"].tolist() == [False, False, True, False, False, False]
    loose = directions.select_refusal(candidates(), ablation, kl, induce, n_blocks=6, max_kl=1.0)
    assert loose.direction.name == "1"
    with pytest.raises(TooFewExamples, match="5 KL above 0; 1 not a number"):
        directions.select_refusal(candidates(), ablation, np.array(kl) + 0.001, induce, n_blocks=60, max_kl=0.0)
    with pytest.raises(BadInput, match="one number each"):
        directions.select_refusal(candidates(), ablation[:2], kl, induce, n_blocks=6)


def test_candidates_of_refusal_are_mean_differences_by_position_from_the_end():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(12, 3)))
    labels = {"text": np.repeat([0, 1, 2, 3], 3), "position": np.tile([7, 8, 9], 4) + np.repeat([0, 2, 1, 5], 3)}
    harmful = [True, False, True, False]
    found = directions.refusal_candidates(Activations({Site("resid_post", 1): x}, labels), harmful)
    assert [d.source["offset"] for d in found] == [-1, -2, -3]
    expected = (x[1] + x[7]) / 2 - (x[4] + x[10]) / 2
    torch.testing.assert_close(found[1].vector.double(), expected, atol=1e-6, rtol=0)
    with pytest.raises(BadInput, match="same last ones"):
        directions.refusal_candidates(
            Activations({Site("resid_post", 1): x}, {**labels, "text": np.repeat([0, 1, 2], [3, 3, 6])}), harmful[:3]
        )


def test_t_sae_ts_by_hand():
    """W = [[1, 0, .5], [0, 1, .5]], b = [.2, 0, .4], latent 0 -> [.2298, -.9732]."""
    model = ll.EffectModel([[1, 0, 0.5], [0, 1, 0.5]], [0.2, 0, 0.4], SITE)
    torch.testing.assert_close(model.latent(0).vector, torch.tensor([0.2298, -0.9732]), atol=1e-4, rtol=0)
    assert model.latent(0, balance=0).vector.tolist() == [1.0, 0.0]
    torch.testing.assert_close(model.predict(torch.tensor([[3.0, 0.0]])), torch.tensor([[1.2, 0, 0.9]]).double())
    with pytest.raises(BadInput, match="no latent 3"):
        model.latent(3)
    with pytest.raises(BadInput, match="never moved"):
        ll.EffectModel([[1, 0], [0, 0]], [0, 0], SITE).latent(1)


def test_the_effect_model_finds_planted_effects_and_says_how_well():
    rng = np.random.default_rng(0)
    truth, bias = torch.tensor(rng.normal(size=(6, 9))), torch.tensor(rng.normal(size=9))
    s = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(300, 6))), dim=1)
    y = s @ truth + bias + 0.05 * torch.tensor(rng.normal(size=(300, 9)))
    model = directions.EffectFit(SITE).update(5 * s[:200], y[:200]).finish()  # lengths do not count
    torch.testing.assert_close(model.weights, truth, atol=0.1, rtol=0)
    assert model.r2(s[200:], y[200:]) > 0.98
    broken = directions.EffectFit(SITE).update(s[:200], y[torch.randperm(200)]).finish()
    assert broken.r2(s[200:], y[200:]) < 0.1
    with pytest.raises(TooFewExamples, match="without ridge"):
        directions.EffectFit(SITE, ridge=0).update(s[:6], y[:6]).finish()


def test_feature_guided_addition_keeps_the_latents_that_differ_and_are_not_dense():
    model = ll.EffectModel(torch.eye(4), torch.zeros(4), SITE)
    off = torch.zeros(10, 4)
    off[:, 0] = 1.0  # dense: fires everywhere
    on = off.clone()
    on[:, 0] = 5.0
    on[0] += torch.tensor([0.0, 4.0, 3.0, 0.1])
    found = directions.feature_guided(on, off, model, k=2, densest=0.1)
    assert found.source["latents"] == [1, 2]
    torch.testing.assert_close(found.vector, torch.tensor([0.0, 0.8, 0.6, 0.0]))
    assert directions.feature_guided(on, off, model, k=1, densest=0.1, exclude=[1]).vector.tolist() == [0, 0, 1, 0]
    sparse = [ll.Codes.from_dense(codes) for codes in (on, off)]
    assert directions.feature_guided(*sparse, model, k=2, densest=0.1) == found
    with pytest.raises(TooFewExamples, match="raise densest"):
        directions.feature_guided(on, off, model, densest=0.0)


def test_a_latent_direction_is_the_decoder_row_in_the_frame_of_the_sae():
    from latentlens.values.sae import SAE

    parts = {"W_enc": torch.randn(3, 5), "b_enc": torch.zeros(5), "W_dec": torch.randn(5, 3), "b_dec": torch.zeros(3)}
    sae = SAE("relu", site=Site("resid_post", 2), **parts)
    found = directions.latent_direction(sae, 4)
    torch.testing.assert_close(found.vector, parts["W_dec"][4])
    assert (str(found.site), found.frame, found.source["latent"]) == ("resid_post[2]", "raw", 4)
    assert (
        directions.latent_direction(SAE("relu", site=Site("resid_post", 2), centre=True, **parts), 4).frame == "centred"
    )
    with pytest.raises(BadInput, match="no latent 5"):
        directions.latent_direction(sae, 5)


# -- errors -----------------------------------------------------------------------------------------------


def test_what_has_no_contrast_is_refused_by_name():
    with pytest.raises(TooFewExamples, match="both sides"):
        directions.mean_difference(ROWS, [1, 1, 1, 1], site=SITE)
    with pytest.raises(TooFewExamples, match="update"):
        directions.MeanDifference(SITE).finish()
    with pytest.raises(BadInput, match="same mean"):
        directions.mean_difference([[1.0, 2.0]] * 4, LABELS, site=SITE)
    with pytest.raises(BadInput, match="3 labels"):
        directions.mean_difference(ROWS, ["a", "b", "c", "c"], site=SITE)
    with pytest.raises(BadInput, match="positive='sea'"):
        directions.mean_difference(ROWS, ["a", "b", "c", "c"], site=SITE, positive="sea")
    with pytest.raises(TooFewExamples, match="two on each side"):
        directions.lda(ROWS[1:], LABELS[1:], site=SITE)
    with pytest.raises(TooFewExamples, match="one pair"):
        directions.pair_component(PAIRS[:1], 0 * PAIRS[:1], site=SITE, centring="centred")
    with pytest.raises(BadInput, match="no axis"):
        directions.pair_component(PAIRS, PAIRS, site=SITE)
    with pytest.raises(BadInput, match="same variance"):
        directions.pair_component(torch.eye(2), torch.zeros(2, 2), site=SITE)


def test_shapes_labels_and_numbers_are_checked():
    with pytest.raises(BadInput, match="3 labels for 4 rows"):
        directions.mean_difference(ROWS, LABELS[:3], site=SITE)
    with pytest.raises(BadInput, match="NaN"):
        directions.mean_difference(ROWS, [1.0, 0.0, float("nan"), 0.0], site=SITE)
    with pytest.raises(NonFiniteActivations, match="row 1"):
        directions.mean_difference([[1.0], [float("inf")]], [0, 1], site=SITE)
    with pytest.raises(BadInput, match="give site="):
        directions.mean_difference(ROWS, LABELS)
    with pytest.raises(BadInput, match="rows of shape"):
        directions.MeanDifference(SITE).update(ROWS, LABELS).update([[1.0, 2.0, 3.0]], [1])
    with pytest.raises(BadInput, match="pairs, row by row"):
        directions.pair_component(PAIRS, PAIRS[:2], site=SITE)
    with pytest.raises(BadInput, match="different widths"):
        directions.linear_transport(PAIRS, PAIRS[:, :1], site=SITE)
    with pytest.raises(TooFewExamples, match="two on each side"):
        directions.linear_transport(PAIRS[:1], PAIRS, site=SITE)
    with pytest.raises(BadInput, match="percentile=101"):
        directions.capping(ll.Direction(torch.ones(2), SITE), PAIRS, percentile=101)


def test_activations_of_several_sites_ask_which_one():
    values = {Site("resid_post", i): torch.tensor(ROWS) * (i + 1) for i in range(2)}
    acts = Activations(values, {"text": np.arange(4)}, {"model": "tiny"})
    with pytest.raises(BadInput, match=r"2 sites \(resid_post\[0\], resid_post\[1\]\)"):
        directions.mean_difference(acts, LABELS)
    found = directions.mean_difference(acts, LABELS, site="resid_post[-1]")
    assert (found.vector.tolist(), str(found.site), found.source["model"]) == ([2.0, 4.0], "resid_post[1]", "tiny")


def test_frames_do_not_mix():
    centred = torch.tensor(ROWS) - torch.tensor(ROWS).mean(1, keepdim=True)
    found = directions.mean_difference(centred, LABELS, site=SITE, frame="centred")
    assert found.frame == "centred"
    with pytest.raises(BadInput, match="have a mean over d"):
        directions.mean_difference(ROWS, LABELS, site=SITE, frame="centred")
    with pytest.raises(BadInput, match="raw frame"):
        directions.mean_difference(acts_of(torch.tensor(ROWS)), LABELS, frame="centred")
    with pytest.raises(BadInput, match="to_raw"):
        directions.capping(found, ROWS)
    with pytest.raises(BadInput, match="frame"):
        directions.plane([found, directions.mean_difference(ROWS, LABELS, site=SITE)])
