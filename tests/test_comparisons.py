"""Paired tests and effect sizes against hand-worked numbers, scipy's own forms and brute force."""

import math

import numpy as np
import pytest
from scipy import stats

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.comparisons import cliff_delta, cohen_d, mcnemar, paired_t, sign_flip, wilcoxon

A, B = [0.02, 0.01, 0.03], [0.01, 0.005, 0.006]


def test_effect_sizes_of_the_published_example():
    assert cohen_d(A, B) == pytest.approx(1.7773, abs=1e-4)
    assert cliff_delta(A, B) == pytest.approx(0.8889, abs=1e-4)


def test_mcnemar_is_the_exact_binomial_of_discordant_pairs():
    first, second = [1] * 8 + [0] * 2 + [1] * 5, [0] * 8 + [1] * 2 + [1] * 5
    found = mcnemar(first, second)
    assert found[:2] == (8, 2)
    assert found.p == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
    assert mcnemar([1, 0], [1, 0]) == (0, 0, 1.0)


def test_cliffs_delta_equals_counting_all_pairs():
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 5, 17), draw.integers(1, 6, 23)
    brute = np.sign(np.subtract.outer(a, b)).mean()
    assert cliff_delta(a, b) == pytest.approx(brute)


def test_sign_flips_are_exact_for_few_groups_and_follow_the_groups():
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    values = np.array([3.0, -1.0, 2.0, 5.0])
    brute = (np.abs(signs @ values) >= abs(values.sum())).mean()
    assert sign_flip(values) == pytest.approx(brute)
    assert sign_flip([1.0] * 40, [0] * 20 + [1] * 20) == pytest.approx(0.5)  # two groups: four sign vectors
    assert sign_flip([1.0] * 40) == pytest.approx(1 / 10_001)
    assert sign_flip([0.0, 0.0]) == 1.0
    draw = np.random.default_rng(0)
    low = [sign_flip(draw.normal(size=30), n=400, seed=i) < 0.05 for i in range(200)]
    assert 2 <= sum(low) <= 20  # binomial(200, .05): outside in under 1% of cases
    with pytest.raises(BadInput, match="groups"):
        sign_flip([1.0], [1, 2])


def test_one_sided_tests_point_the_right_way():
    assert wilcoxon([3, 4, 5, 6, 7], [1] * 5, "greater") == pytest.approx(1 / 32)
    assert wilcoxon([3, 4, 5, 6, 7], [1] * 5, "less") == 1.0
    assert paired_t(A, B) == pytest.approx(stats.ttest_rel(A, B).pvalue)
    assert math.isnan(wilcoxon([1, 2], [1, 2]))
    assert math.isnan(paired_t([2, 3], [1, 2]))
    assert math.isnan(cohen_d([1, 1], [2, 2]))


@pytest.mark.parametrize("test", [wilcoxon, paired_t])
def test_pairs_must_be_pairs(test):
    with pytest.raises(BadInput, match="pairs"):
        test([1.0, 2.0], [1.0])
    with pytest.raises(BadInput, match="NaN"):
        test([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(TooFewExamples):
        test([], [])


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(BadInput, match="0/1"):
        mcnemar([1, 2], [0, 1])
    with pytest.raises(BadInput, match="shapes"):
        mcnemar([1], [0, 1])
    with pytest.raises(TooFewExamples):
        cohen_d([1], [2, 3])
    with pytest.raises(TooFewExamples):
        cliff_delta([], [1])
