"""Counting dimensions: by hand, by brute force, and on clouds of known dimension."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths import dimension

CROSS = np.array([(3, 0), (-3, 0), (0, 2), (0, -2)])


def test_spectrum_is_the_covariance_with_n_minus_one():
    assert dimension.spectrum(CROSS) == pytest.approx([6, 8 / 3])
    x = np.random.default_rng(0).normal(size=(20, 5))
    assert dimension.spectrum(x) == pytest.approx(np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1])


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 99))
def test_participation_lies_between_one_and_the_rank(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d))
    assert 1 - 1e-9 <= dimension.participation_ratio(x) <= min(n - 1, d) + 1e-9
    assert 1 <= dimension.components_for(x) <= min(n - 1, d)


def test_the_standard_error_is_the_jackknife_by_brute_force():
    rng = np.random.default_rng(3)
    x, groups = rng.normal(size=(24, 7)) * np.arange(1, 8), np.repeat(np.arange(8), 3)
    left_out = np.array([dimension.participation_ratio(x[groups != g]) for g in range(8)])
    brute = math.sqrt(7 / 8 * ((left_out - left_out.mean()) ** 2).sum())
    assert dimension.participation_error(x, groups) == pytest.approx(brute)


def test_the_standard_error_is_the_spread_over_fresh_samples():
    scale = np.array([3, 2, 1, 1])
    draws = [np.random.default_rng(s).normal(size=(100, 4)) * scale for s in range(80)]
    spread = np.std([dimension.participation_ratio(x) for x in draws])
    assert np.mean([dimension.participation_error(x) for x in draws]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize(("share", "count"), [(0.5, 1), (6 / (6 + 8 / 3), 1), (0.7, 2), (1.0, 2)])
def test_components_are_counted_until_the_share_is_reached(share, count):
    assert dimension.components_for(CROSS, share) == count


def test_marchenko_pastur_keeps_signal_and_drops_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(800, 40))
    assert len(dimension.marchenko_pastur(dimension.spectrum(noise), 800, 40)) <= 2
    strong = noise + 6 * rng.normal(size=(800, 3)) @ np.linalg.qr(rng.normal(size=(40, 3)))[0].T
    assert 3 <= len(dimension.marchenko_pastur(dimension.spectrum(strong), 800, 40)) <= 5


def test_inverting_the_ratio_lowers_the_edge_where_dimensions_outnumber_points():
    values = np.array([40.0, 9.5, 1.0, 1.0, 1.0])
    assert list(dimension.marchenko_pastur(values, 10, 90)) == [40.0]  # edge (1 + 3)^2 = 16
    assert list(dimension.marchenko_pastur(values, 10, 90, inverted=True)) == [40.0, 9.5]  # edge (1 + 1/3)^2 = 1.78
    assert list(dimension.marchenko_pastur(values, 90, 10, inverted=True)) == [40.0, 9.5]


@pytest.mark.parametrize("true", [1, 2, 5])
def test_neighbour_estimates_find_the_dimension_of_a_cloud_in_a_larger_space(true):
    rng = np.random.default_rng(true)
    x = rng.normal(size=(1500, true)) @ np.linalg.qr(rng.normal(size=(30, true)))[0].T
    assert dimension.two_nn(x) == pytest.approx(true, rel=0.12)
    assert dimension.levina_bickel(x) == pytest.approx(true, rel=0.12)
    assert dimension.levina_bickel(x, averaged="plain") > dimension.levina_bickel(x)


def test_two_nn_by_hand():
    # neighbours on a line at 0, 1, 3: ratios 3, 2 and 3/2
    assert dimension.two_nn([[0.0], [1.0], [3.0]]) == pytest.approx(3 / math.log(3 * 2 * 1.5))


def test_levina_bickel_by_hand():
    points = np.array([[0.0], [1.0], [3.0], [7.0]])
    gaps = [(1, 3, 7), (1, 2, 6), (2, 3, 4), (4, 6, 7)]
    inverse = [(math.log(c / a) + math.log(c / b)) / 2 for a, b, c in gaps]
    assert dimension.levina_bickel(points, 3) == pytest.approx(1 / np.mean(inverse))
    assert dimension.levina_bickel(points, 3, averaged="plain") == pytest.approx(np.mean(1 / np.array(inverse)))


def test_duplicates_are_left_out_of_neighbour_estimates():
    x = np.random.default_rng(0).normal(size=(300, 2))
    twice = np.concatenate([x, x[:5]])
    assert dimension.two_nn(twice) == pytest.approx(2, rel=0.2)
    assert dimension.levina_bickel(twice) == pytest.approx(2, rel=0.2)
    with pytest.raises(TooFewExamples):
        dimension.two_nn(np.ones((5, 2)))


@pytest.mark.parametrize("measure", [dimension.spectrum, dimension.two_nn, dimension.levina_bickel])
def test_what_is_no_cloud_is_refused(measure):
    with pytest.raises(BadInput):
        measure(np.ones(5))
    with pytest.raises(TooFewExamples):
        measure(np.ones((1, 2)))
    with pytest.raises(NonFiniteActivations):
        measure(np.full((6, 2), np.nan))


def test_settings_without_meaning_are_refused():
    for wrong in (0.0, 1.1):
        with pytest.raises(BadInput):
            dimension.components_for(CROSS, wrong)
    with pytest.raises(BadInput):
        dimension.levina_bickel(CROSS, 2)
    with pytest.raises(BadInput):
        dimension.levina_bickel(CROSS, 3, averaged="median")
    with pytest.raises(TooFewExamples):
        dimension.marchenko_pastur([], 4, 2)
    with pytest.raises(TooFewExamples):
        dimension.participation_error(CROSS, [0, 0, 1, 1])
    with pytest.raises(BadInput):
        dimension.participation_error(CROSS, [0, 1])
