"""How far two judges agree, on plain arrays.

    percent_agreement   share of cases on which both say the same
    cohen_kappa         the same beyond chance; weighted for ordered classes
    spearman            whether they order the cases alike
    with_interval       any of them with a bootstrap interval, whole groups resampled

Cases that one of the two did not judge are left out: say how many beside the number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import cluster_bootstrap

Weights = Literal["linear", "quadratic"] | None


def percent_agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Share of cases on which two judges give the same class.

    >>> percent_agreement(["yes", "no", "no", "yes"], ["yes", "no", "yes", "yes"])
    0.75

    Args: a, b: (N,), classes of any kind.
    Raises: TooFewExamples: no case. BadInput: lengths differ.
    """
    x, y = _pair(a, b)
    return float((x == y).mean())


def cohen_kappa(a: ArrayLike, b: ArrayLike, weights: Weights = None, classes: ArrayLike | None = None) -> float:
    """Agreement beyond chance.

        kappa = 1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij
        O: shares of the pairs of classes;  E: products of each judge's own shares
        w_ij = 1[i != j]  |  |i - j| (linear)  |  (i - j)^2 (quadratic), i the place in `classes`

    1: same everywhere; 0: as by chance; below: worse. Of judges that agree in a rare class alone it can be low though
    they agree almost always: print `percent_agreement` beside it.

    >>> round(cohen_kappa([1, 1, 0, 0], [1, 0, 0, 0]), 3)
    0.5

    Args:
        a, b: (N,), classes.
        weights: None counts every disagreement alike; the others by distance, for ordered classes.
        classes: in their order; by default all that occur, sorted.
    Returns: NaN when both judges know one class only: nothing can be beyond chance.
    Raises: TooFewExamples: no case. BadInput: lengths differ, an unknown weighting, a class that is not in `classes`.
    Source: Cohen, Educational and Psychological Measurement 20 (1960); weighted: Psychological Bulletin 70 (1968).
    """
    x, y = _pair(a, b)
    if weights not in (None, "linear", "quadratic"):
        raise BadInput(f"weights={weights!r}: allowed are None, 'linear' and 'quadratic'")
    known = np.unique(np.concatenate([x, y])) if classes is None else np.asarray(classes)
    place = {value: i for i, value in enumerate(known.tolist())}
    strange = {*x.tolist(), *y.tolist()} - set(place)
    if strange:
        raise BadInput(f"class {next(iter(strange))!r} is not among {known.tolist()[:10]}")
    i, j = (np.array([place[value] for value in side.tolist()]) for side in (x, y))
    observed = np.zeros((len(known), len(known)))
    np.add.at(observed, (i, j), 1 / len(i))
    expected = np.outer(observed.sum(1), observed.sum(0))
    gap = np.abs(np.subtract.outer(np.arange(len(known)), np.arange(len(known)))).astype(float)
    cost = gap > 0 if weights is None else gap if weights == "linear" else gap**2
    chance = float((cost * expected).sum())
    return 1 - float((cost * observed).sum()) / chance if chance > 0 else float("nan")


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation of two judges' scores, ties at their mid-rank.

        rho = Pearson correlation of the ranks

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8

    Returns: NaN when one of them gives the same score everywhere.
    Raises: TooFewExamples: fewer than two cases. BadInput: lengths differ, or a score is NaN.
    """
    x, y = _pair(a, b, least=2)
    x, y = x.astype(float), y.astype(float)
    if np.isnan(x).any() or np.isnan(y).any():
        raise BadInput("a score is NaN: leave out the cases that one of the judges did not score")
    x, y = (rankdata(side) - (len(side) + 1) / 2 for side in (x, y))
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else float("nan")


def with_interval(
    statistic: Callable[..., float],
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    **options: Any,
) -> tuple[float, float, float]:
    """A statistic of two judges with its bootstrap interval.

    Args: statistic: one of the above. groups: what is drawn as a whole, such as the prompt; None: every case alone.
        options: for the statistic. For `cohen_kappa` the classes of the whole sample are used in every resample.
    Returns: (value, low, high); NaN where the statistic is not defined.
    Raises: TooFewExamples, BadInput.
    """
    x, y = _pair(a, b)
    if statistic is cohen_kappa and "classes" not in options:
        options["classes"] = np.unique(np.concatenate([x, y]))
    value = statistic(x, y, **options)
    if np.isnan(value):
        return value, value, value
    low, high = cluster_bootstrap(
        lambda u, v: statistic(u, v, **options), x, y, groups=groups, n=n, seed=seed, level=level
    )
    return value, low, high


def _pair(a: ArrayLike, b: ArrayLike, least: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
    x, y = np.asarray(a), np.asarray(b)
    if x.ndim != 1 or x.shape != y.shape:
        raise BadInput(f"two judges of the same cases: shapes {x.shape} and {y.shape} came, both must be (N,)")
    if len(x) < least:
        raise TooFewExamples(f"{len(x)} cases judged by both: at least {least} are needed")
    return x, y
