import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.agreement import cohen_kappa, percent_agreement, spearman, with_interval


def test_kappa_of_a_table_by_hand():
    # 20 both yes, 5 only A, 10 only B, 15 both no: p_o = .7, p_e = .5 * .6 + .5 * .4 = .5
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert percent_agreement(a, b) == 0.7
    assert cohen_kappa(a, b) == pytest.approx(0.4)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_equals_sklearn(weights):
    rng = np.random.default_rng(0)
    for _ in range(5):
        a = rng.integers(5, size=60)
        b = np.where(rng.random(60) < 0.5, a, rng.integers(5, size=60))
        assert cohen_kappa(a, b, weights) == pytest.approx(cohen_kappa_score(a, b, weights=weights))
    assert cohen_kappa([0, 1], [0, 1], weights, classes=range(9)) == pytest.approx(1)


def test_far_disagreement_weighs_more():
    near, far = [1, 2, 3, 2], [1, 2, 3, 3]
    assert cohen_kappa([1, 2, 3, 1], near, "quadratic") > cohen_kappa([1, 2, 3, 1], far, "quadratic")
    assert cohen_kappa([1, 2, 3, 1], near, "linear") > cohen_kappa([1, 2, 3, 1], near)


def test_one_class_only_says_nothing():
    assert np.isnan(cohen_kappa([1, 1], [1, 1]))
    assert cohen_kappa([1, 1, 1], [1, 0, 1]) == pytest.approx(0)


def test_spearman_equals_scipy_with_ties():
    rng = np.random.default_rng(1)
    a, b = rng.integers(8, size=50), rng.integers(8, size=50)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(BadInput, match="shapes"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(BadInput, match="quadratic"):
        cohen_kappa([1], [1], "cubic")
    with pytest.raises(BadInput, match="not among"):
        cohen_kappa([1, 7], [1, 2], classes=[1, 2])
    with pytest.raises(BadInput, match="NaN"):
        spearman([1, np.nan], [1, 2])
    with pytest.raises(TooFewExamples):
        spearman([1], [1])
    with pytest.raises(TooFewExamples):
        percent_agreement([], [])


def test_intervals_cover_what_is_planted():
    """Two judges that see one truth through noise of equal strength: rho of the ranks is known from a large sample."""
    rng = np.random.default_rng(2)

    def draw(n):
        truth = rng.normal(size=n)
        return truth + rng.normal(size=n), truth + rng.normal(size=n)

    rho = spearman(*draw(100_000))
    covered = 0
    for seed in range(60):
        _, low, high = with_interval(spearman, *draw(60), n=200, seed=seed)
        covered += low <= rho <= high
    assert covered >= 52


def test_groups_that_repeat_make_the_interval_wider():
    rng = np.random.default_rng(3)
    a = rng.integers(2, size=40)
    b = np.where(rng.random(40) < 0.8, a, 1 - a)
    groups, a, b = np.repeat(np.arange(40), 5), np.repeat(a, 5), np.repeat(b, 5)
    value, low, high = with_interval(cohen_kappa, a, b, groups=groups)
    _, low_rows, high_rows = with_interval(cohen_kappa, a, b)
    assert high - low > 1.5 * (high_rows - low_rows)
    assert low < value < high
    undefined = with_interval(cohen_kappa, [1, 1], [1, 1])
    assert all(np.isnan(undefined))


def scores(*values):
    from latentlens.values.judging import Score

    return [Score(v) if v is not None else Score(None, reason="none") for v in values]


def test_two_judges_side_by_side():
    from latentlens.methods.judge_agreement import judge_agreement

    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, 80)
    one, two = truth + rng.normal(0, 10, 80), truth + 5 + rng.normal(0, 10, 80)
    found = judge_agreement(scores(*one, None, 3), scores(*two, 50, None), names=("people", "model"))
    assert found.same.n == 80
    assert found.left_out == (1, 1)
    assert found.bias.covers(5)
    assert found.kappa.low > 0.5
    assert found.spearman.value == pytest.approx(spearmanr(one, two).statistic)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(one >= 50, two >= 50))
    whole = np.rint(one).astype(int), np.rint(two).astype(int)
    labels = np.arange(min(map(min, whole)), max(map(max, whole)) + 1)
    expected = cohen_kappa_score(*whole, weights="quadratic", labels=labels)
    assert found.weighted_kappa.value == pytest.approx(expected)
    assert "model minus people" in found.to_frame()["statistic"].tolist()
    with pytest.raises(TooFewExamples, match="judged by both"):
        judge_agreement(scores(1, None), scores(None, 2))
    with pytest.raises(BadInput, match="one order"):
        judge_agreement(scores(1), scores(1, 2))
