"""Intention metrics: numbers worked out by hand, and what each of them cannot be fooled by."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.methods import intention
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

EIGHT = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).log()
LAYER_A = [(3.0, 0.0), (-3.0, 0.0), (0.0, 2.0), (0.0, -2.0)]
LAYER_B = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)]


def acts_of(*layers, **labels):
    values = {Site("resid_post", i): torch.as_tensor(np.asarray(x), dtype=torch.float32) for i, x in enumerate(layers)}
    n = len(layers[0])
    return Activations(values, {"text": np.arange(n), **labels})


# -- entropy (T1) ---------------------------------------------------------------------------------


def test_entropy_of_probabilities_eight_four_two_two():
    assert intention.entropy(EIGHT)[0] == pytest.approx(1.75, abs=1e-6)
    assert intention.entropy(EIGHT, base=math.e)[0] == pytest.approx(1.213008, abs=1e-6)


def test_the_codes_top_k_entropy_is_another_number():
    assert intention.entropy(EIGHT, top_k=3)[0] == pytest.approx(1.378783, abs=1e-6)
    assert intention.entropy(EIGHT, top_k=2)[0] == pytest.approx(0.918296, abs=1e-6)
    assert intention.entropy(EIGHT, top_k=100)[0] == pytest.approx(1.75, abs=1e-6)


def test_options_are_renormalised_but_their_mass_is_of_the_full_distribution():
    found = intention.option_entropy(EIGHT, [1, 2])
    assert found.entropy[0] == pytest.approx(0.918296, abs=1e-6)
    assert found.mass[0] == pytest.approx(0.375, abs=1e-6)  # the published code says 1 here
    assert found.bound == pytest.approx(1.0)


def test_options_may_differ_between_texts():
    found = intention.option_entropy(EIGHT.repeat(2, 1), [[1, 2], [2, 3]])
    assert found.entropy == pytest.approx([0.918296, 1.0], abs=1e-6)
    assert found.mass == pytest.approx([0.375, 0.25], abs=1e-6)
    assert list(found.to_frame().columns) == ["entropy", "of_bound", "mass"]


@pytest.mark.parametrize("options", [[1], [1, 1], [0, 4], [[0, 1], [1, 2]], [0.5, 1.0]])
def test_options_that_cannot_be_compared_are_refused(options):
    with pytest.raises(BadInput):
        intention.option_entropy(EIGHT, options)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=40), st.floats(-50, 50), st.integers(1, 50))
def test_entropy_lies_between_zero_and_log_of_the_vocabulary_and_ignores_a_shift(values, shift, k):
    logits = torch.tensor([values], dtype=torch.float64)
    plain = intention.entropy(logits)[0]
    assert -1e-6 <= plain <= math.log2(len(values)) + 1e-5
    assert intention.entropy(logits + shift)[0] == pytest.approx(plain, abs=1e-3)
    assert intention.entropy(logits, top_k=k)[0] <= math.log2(min(k, len(values))) + 1e-5


def test_a_uniform_distribution_has_log_v_bits_and_a_certain_one_none():
    assert intention.entropy(torch.zeros(1, 4096))[0] == pytest.approx(12.0, abs=1e-5)
    assert intention.entropy(torch.tensor([[1e4, 0.0, 0.0]]))[0] == 0
    assert intention.entropy(torch.tensor([[0.0, 0.0, -math.inf]]))[0] == pytest.approx(1.0)


def test_half_precision_logits_do_not_overflow():
    logits = torch.tensor([[6e4, 6e4, 0.0]], dtype=torch.float16)
    assert intention.entropy(logits)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    with pytest.raises(BadInput, match="1 of 2 rows"):
        intention.entropy(torch.tensor([[0.0, 1.0], [bad, 0.0]]))


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"base": 1.0}])
def test_entropy_refuses_settings_without_meaning(wrong):
    with pytest.raises(BadInput):
        intention.entropy(EIGHT, **wrong)
    with pytest.raises(BadInput):
        intention.entropy(EIGHT[0])


def test_the_curve_averages_each_step_over_the_texts_that_reach_it():
    sure, unsure = torch.tensor([9e3, 0.0]), torch.zeros(2)
    rows, text, position = [], [], []
    for i, length in enumerate((3, 3, 3, 2)):
        for step in range(length):
            rows.append(unsure if step == 0 or i == 0 else sure)
            text.append(i)
            position.append(10 + i + step)
    acts = Activations({Site("logits"): torch.stack(rows)}, {"text": np.array(text), "position": np.array(position)})
    curve = intention.entropy_curve(acts)
    assert [round(e.value, 4) for e in curve.by_step] == [1.0, 0.25, 0.3333]
    assert [e.n for e in curve.by_step] == [4, 4, 3]
    assert len(intention.entropy_curve(acts, max_steps=2).steps) == 2
    # two groups only: no interval can be had
    with pytest.raises(TooFewExamples):
        intention.entropy_curve(acts, groups=[0, 0, 1, 1])
    with pytest.raises(BadInput):
        intention.entropy_curve(acts, groups=[0, 1])


def test_groups_of_the_curve_belong_to_texts_by_their_number():
    """Texts 1, 3 and 5 have rows; with groups read off by position they would seem to be two groups only."""
    acts = Activations(
        {Site("logits"): torch.zeros(3, 2)}, {"text": np.array([1, 3, 5]), "position": np.array([4, 4, 4])}
    )
    assert intention.entropy_curve(acts, groups=["a", "a", "b", "b", "c", "c"]).by_step[0].n == 3


# -- dimension (T2) -------------------------------------------------------------------------------


def test_participation_ratio_of_a_cross_by_hand():
    found = intention.effective_dimensionality(acts_of(LAYER_A, LAYER_B))
    a, b = found.layers
    assert a.participation.value == pytest.approx(1.742268, abs=1e-6)
    assert b.participation.value == pytest.approx(2.0)
    assert (a.k90, b.k90) == (2, 2)
    assert (a.variance, b.variance) == pytest.approx((8.666667, 1.333333))
    assert found.to_frame()["weight"].tolist() == pytest.approx([0.866667, 0.133333], abs=1e-6)
    assert found.aggregated == pytest.approx(1.776632, abs=1e-6)
    assert found.median_k90 == 2


def test_the_published_global_number_is_k90_of_the_layers_of_one_item():
    """Five layer vectors of one item have rank 4 at most, and the mean over n items is a multiple of 1/n."""
    rng = np.random.default_rng(0)
    found = intention.effective_dimensionality(acts_of(*rng.normal(size=(5, 40, 64))))
    assert found.per_item_k90.max() <= 4
    assert found.item_k90 * 40 == pytest.approx(round(found.item_k90 * 40))
    line = [np.outer(np.full(40, i), np.ones(64)) + 1e-9 * rng.normal(size=(40, 64)) for i in range(5)]
    assert intention.effective_dimensionality(acts_of(*line)).item_k90 == 1


def test_states_that_do_not_vary_have_no_dimension():
    found = intention.effective_dimensionality(acts_of(np.ones((6, 3)), np.random.default_rng(0).normal(size=(6, 3))))
    assert math.isnan(found.layers[0].participation.value)
    assert math.isnan(found.layers[0].k90)
    assert found.aggregated == pytest.approx(found.layers[1].participation.value)


def test_dimension_does_not_see_rotation_shift_or_scale():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 6)) * [5, 3, 1, 1, 0.5, 0.1]
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    one, other = (intention.effective_dimensionality(acts_of(y)) for y in (x, 3 * x @ turn + 7))
    assert one.aggregated == pytest.approx(other.aggregated, rel=1e-4)
    assert one.median_k90 == other.median_k90


def test_the_interval_covers_the_dimension_of_the_distribution():
    spread = np.array([3.0, 2.0, 1.0])
    truth = (spread**2).sum() ** 2 / (spread**4).sum()
    covered = [
        intention.effective_dimensionality(acts_of(np.random.default_rng(s).normal(size=(120, 3)) * spread))
        .layers[0]
        .participation.covers(truth)
        for s in range(60)
    ]
    assert 0.85 <= np.mean(covered) <= 1.0


def test_repeated_items_do_not_narrow_the_interval_when_they_are_grouped():
    x = np.random.default_rng(2).normal(size=(30, 4))
    repeated, items = np.repeat(x, 4, axis=0), np.repeat(np.arange(30), 4)
    plain = intention.effective_dimensionality(acts_of(x)).layers[0].participation
    naive = intention.effective_dimensionality(acts_of(repeated)).layers[0].participation
    grouped = intention.effective_dimensionality(acts_of(repeated), groups=items).layers[0].participation
    assert grouped.high - grouped.low == pytest.approx(plain.high - plain.low, rel=0.02)
    assert naive.high - naive.low < 0.7 * (plain.high - plain.low)


def test_the_robustness_set_shows_that_dimension_grows_with_the_number_of_items():
    frame = intention.dimension_robustness(
        acts_of(np.random.default_rng(0).normal(size=(120, 40))), sizes=(25, 50, 100, 500), repeats=8
    )
    by_size = frame[frame.estimator == "participation"].set_index("n").value
    assert list(by_size.index) == [25, 50, 100]
    assert by_size[25] < by_size[50] < by_size[100] < 40
    assert set(frame.estimator) == {
        "participation", "TwoNN", "Levina-Bickel", "participation above noise", "eigenvalues above noise",
    }  # fmt: skip


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_items_have_no_dimension(n):
    with pytest.raises(TooFewExamples):
        intention.effective_dimensionality(acts_of(np.ones((n, 2))))


def test_states_with_nan_are_refused_by_name():
    with pytest.raises(NonFiniteActivations, match="1 of 4"):
        intention.effective_dimensionality(acts_of([(math.nan, 0), (1, 0), (0, 1), (1, 1)]))
    with pytest.raises(BadInput):
        intention.effective_dimensionality(acts_of(np.ones((4, 2, 3))))


# -- what the metrics say about answers and regimes -----------------------------------------------


def test_relation_is_the_point_biserial_correlation():
    found = intention.relation([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])
    assert found.value == pytest.approx(0.894427, abs=1e-6)
    assert math.isnan(intention.relation([1.0, 2.0, 3.0], [1, 1, 1]).value)
    assert math.isnan(intention.relation([1.0, 1.0, 1.0], [1, 0, 1]).value)


def test_contrast_is_paired():
    rng = np.random.default_rng(0)
    item = 10 * rng.normal(size=200)
    found = intention.contrast(item, item + 1 + 0.1 * rng.normal(size=200), names=("direct", "steps"))
    assert found.difference.value == pytest.approx(1, abs=0.05)
    assert found.difference.high - found.difference.low < 0.1  # the items' own spread of 10 has cancelled
    assert 0.5 < found.auroc.value < 0.56
    apart = intention.contrast(np.zeros(20), np.ones(20))
    assert apart.auroc.value == 1
    assert 0.7 < apart.auroc.low < 1
    with pytest.raises(BadInput):
        intention.contrast([1.0], [1.0, 2.0])


def test_an_average_resamples_groups():
    values, groups = np.repeat(np.random.default_rng(0).normal(size=20), 5), np.repeat(np.arange(20), 5)
    plain, grouped = intention.average(values), intention.average(values, groups=groups)
    assert plain.value == grouped.value == pytest.approx(values.mean())
    assert grouped.high - grouped.low > 1.8 * (plain.high - plain.low)
    with pytest.raises(BadInput):
        intention.average([1.0, math.nan])
