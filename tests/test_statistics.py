"""Statistics on plain arrays, against numbers worked out by hand, scipy, scikit-learn and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import (
    auroc,
    auroc_score_interval,
    cluster_bootstrap,
    difference_of_proportions,
    wilson,
)


@pytest.mark.parametrize(
    ("scores", "labels", "by_hand"),
    [
        ([0.9, 0.8, 0.3, 0.2], [1, 0, 1, 0], 0.75),  # pairs won: 0.9>0.8, 0.9>0.2, 0.3>0.2 of 4
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([5, 5, 5, 5], [1, 0, 1, 0], 0.5),  # every pair is a tie
        ([1, 1, 2], [0, 1, 1], 0.75),  # one tie (1/2) and one win of 2 pairs
        ([0, 1, 1, 1, 2], [0, 1, 0, 1, 0], 0.5),  # 2 positives at 1: each wins 1, ties 1, loses 1 of 3
    ],
)
def test_auroc_is_the_number_worked_out_by_hand(scores, labels, by_hand):
    assert auroc(scores, labels) == by_hand


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
def test_auroc_equals_counting_all_pairs(rows):
    scores, labels = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    if labels.all() or not labels.any():
        with pytest.raises(TooFewExamples):
            auroc(scores, labels)
        return
    gap = scores[labels][:, None] - scores[~labels][None]
    assert auroc(scores, labels) == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean(), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


def test_auroc_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=500).round(1), rng.random(500) < 0.3
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_refuses_what_has_no_rank_or_no_second_class():
    with pytest.raises(BadInput, match="1 of 3 scores are NaN"):
        auroc([1, np.nan, 2], [0, 1, 1])
    with pytest.raises(BadInput, match="both must be"):
        auroc([1, 2], [0, 1, 1])
    with pytest.raises(BadInput, match="0/1"):
        auroc([1, 2, 3], [1, 2, 3])
    with pytest.raises(TooFewExamples, match="0 negatives"):
        auroc([1, 2], [1, 1])


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 1), (3, 17), (50, 100), (999, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(k, n, level):
    reference = binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k, n, level) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert wilson(0, n)[0] == 0
    assert wilson(n, n)[1] == 1


def test_wilson_refuses_impossible_counts():
    with pytest.raises(TooFewExamples):
        wilson(0, 0)
    with pytest.raises(BadInput):
        wilson(3, 2)
    with pytest.raises(BadInput, match="coverage"):
        wilson(1, 2, level=95)


@pytest.mark.parametrize(
    ("counts", "published"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70, 48, 80), (0.2, 0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.6, 0.1705, 0.8090)),
        ((5, 56, 0, 29), (0.0893, -0.0381, 0.1926)),
        ((0, 10, 0, 10), (0.0, -0.2775, 0.2775)),
        ((10, 10, 0, 10), (1.0, 0.6075, 1.0)),
    ],
)
def test_difference_of_proportions_repeats_the_published_table(counts, published):
    assert difference_of_proportions(*counts) == pytest.approx(published, abs=6e-5)


def test_vectorised_auroc_bootstrap_equals_resampling_one_by_one():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 12, 90)
    labels = rng.random(90) < 0.4
    scores = (labels + rng.normal(size=90)).round(1)  # rounded: ties within and across classes
    fast = cluster_bootstrap(auroc, scores, labels, groups=groups, n=200, seed=3)
    slow = cluster_bootstrap(lambda s, y: auroc(s, y), scores, labels, groups=groups, n=200, seed=3)
    assert fast == pytest.approx(slow, abs=1e-12)


def test_bootstrap_interval_of_a_mean_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = cluster_bootstrap(np.mean, values, n=2000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert low < values.mean() < high


def test_copies_inside_a_group_do_not_narrow_the_interval():
    values, cities = np.random.default_rng(0).normal(size=30), np.arange(30)
    once = cluster_bootstrap(np.mean, values, groups=cities)
    copied = cluster_bootstrap(np.mean, np.repeat(values, 10), groups=np.repeat(cities, 10))
    ignored = cluster_bootstrap(np.mean, np.repeat(values, 10))
    assert copied == pytest.approx(once)
    assert ignored[1] - ignored[0] < 0.5 * (copied[1] - copied[0])


def test_paired_rows_stay_paired():
    prompt = np.random.default_rng(0).normal(size=50) * 100
    low, high = cluster_bootstrap(lambda a, b: a.mean() - b.mean(), prompt + 1, prompt)
    assert (low, high) == pytest.approx((1, 1))


def test_bootstrap_is_decided_by_its_seed():
    values = np.random.default_rng(0).normal(size=40)
    assert cluster_bootstrap(np.mean, values, seed=5) == cluster_bootstrap(np.mean, values, seed=5)
    assert cluster_bootstrap(np.mean, values, seed=5) != cluster_bootstrap(np.mean, values, seed=6)


def test_bootstrap_coverage_of_the_auroc_is_near_nominal():
    rng, inside, truth = np.random.default_rng(2), 0, 0.7602  # Phi(1 / sqrt 2)
    labels = np.arange(80) % 2 == 0
    for seed in range(200):
        scores = labels + rng.normal(size=80)
        low, high = cluster_bootstrap(auroc, scores, labels, n=300, seed=seed)
        inside += low <= truth <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_bootstrap_refuses_one_group_and_classes_that_vanish():
    with pytest.raises(TooFewExamples, match="at least 2"):
        cluster_bootstrap(np.mean, [1.0, 2.0], groups=["a", "a"])
    with pytest.raises(TooFewExamples, match="groups that hold both classes"):
        cluster_bootstrap(auroc, [1, 2], [0, 1], n=100)  # half of the draws repeat one group
    with pytest.raises(BadInput, match="rows"):
        cluster_bootstrap(np.mean, [1.0, 2.0], groups=[0, 1, 2])


def test_score_interval_has_a_width_at_perfect_separation_and_mirrors():
    low, high = auroc_score_interval(1.0, 20, 20)
    assert high == 1
    assert 0.8 < low < 0.95
    assert auroc_score_interval(0.0, 20, 20) == pytest.approx((0, 1 - low))
    assert auroc_score_interval(1.0, 200, 200)[0] > low  # more data, narrower
    inner = auroc_score_interval(0.8, 40, 60)
    assert inner[0] < 0.8 < inner[1]
    assert auroc_score_interval(0.2, 60, 40) == pytest.approx((1 - inner[1], 1 - inner[0]))
    # continuous up to the boundary
    assert auroc_score_interval(1 - 1e-9, 20, 20)[0] == pytest.approx(low, abs=1e-4)
