"""Numbers with intervals, on plain arrays.

    auroc                       how well scores order two classes
    auroc_rows                  the same for many score vectors at once
    auroc_score_interval        interval for an AUROC from the class counts alone (works at 0 and 1)
    wilson                      interval for a share
    difference_of_proportions   interval for the difference of two shares
    cluster_bootstrap           interval for any statistic, whole groups resampled

Rows of one group (the answers to one question, the statements about one city) are not independent:
resampling rows would print intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import root_scalar
from scipy.stats import norm, rankdata
from scipy.stats import t as student_t

from latentlens.errors import BadInput, TooFewExamples

# Elements of the (resample, row) weight matrix that are held at a time: 32 MB of float64.
_CHUNK = 1 << 22


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Chance that a random positive scores above a random negative, ties counting one half.

        auroc = (R - m (m + 1) / 2) / (m n)     R: sum of the mid-ranks of the m positives

    Exact, in O(N log N).

    >>> auroc([0.9, 0.8, 0.3, 0.2], [1, 0, 1, 0])
    0.75

    Args:
        scores: (N,), finite; larger means "more likely positive".
        labels: (N,), bool or 0/1.

    Returns: between 0 and 1, chance .5.
    Raises: TooFewExamples: a class is missing. BadInput: lengths differ, NaN scores, labels not binary.
    Source: Mann and Whitney 1947; Hanley and McNeil, Radiology 143 (1982).
    """
    s, y = _scores_and_labels(scores, labels)
    m, n = int(y.sum()), int((~y).sum())
    if not m or not n:
        raise TooFewExamples(f"AUROC compares two classes: {m} positives and {n} negatives came")
    return float((rankdata(s)[y].sum() - m * (m + 1) / 2) / (m * n))


def auroc_rows(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """`auroc` of many score vectors at once.

    Args: scores: (K, N), finite. labels: (N,) or (K, N), bool.
    Returns: (K,); NaN where a class is missing.
    """
    s = np.asarray(scores, dtype=np.float64)
    y = np.broadcast_to(np.asarray(labels, dtype=bool), s.shape)
    m = y.sum(axis=1)
    pairs = m * (s.shape[1] - m)
    wins = np.where(y, rankdata(s, axis=1), 0).sum(axis=1) - m * (m + 1) / 2
    return np.divide(wins, pairs, out=np.full(len(s), np.nan), where=pairs > 0)


def auroc_score_interval(value: float, n_positive: int, n_negative: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval for an AUROC from the number of positives and negatives alone.

    Both ends t solve `|value - t| = z sqrt(V(t))` with

        V(t) = t (1 - t) (1 + k (1 - t) / (2 - t) + k t / (1 + t)) / (m n),   k = (m + n) / 2 - 1

    so the interval has a width even where the classes separate perfectly and every bootstrap resample
    repeats the same 1. With clustered data give the numbers of groups, not of rows.

    Args:
        value: the AUROC observed.
        n_positive: m, at least 1.
        n_negative: n, at least 1.
        level: coverage.

    Returns: (low, high).
    Raises: TooFewExamples: a class is missing. BadInput: value outside [0, 1].
    Source: Newcombe, Statistics in Medicine 25 (2006) 559-573, method 5.
    """
    m, n = n_positive, n_negative
    if m < 1 or n < 1:
        raise TooFewExamples(f"an AUROC needs both classes: {m} positives and {n} negatives came")
    if not 0 <= value <= 1:
        raise BadInput(f"an AUROC lies between 0 and 1, not {value}")
    if value == 0:  # the variance is symmetric in t and 1 - t
        return 0.0, 1 - auroc_score_interval(1.0, m, n, level)[0]
    z, k = _z(level), (m + n) / 2 - 1

    def variance_over_rest(t: float) -> float:
        """V(t) / (1 - t)."""
        return t * (1 + k * (1 - t) / (2 - t) + k * t / (1 + t)) / (m * n)

    def gap(t: float) -> float:
        return (value - t) ** 2 - z * z * (1 - t) * variance_over_rest(t)

    if value == 1:  # t = 1 solves it trivially: divide by (1 - t) and take the other root
        return _root(lambda t: 1 - t - z * z * variance_over_rest(t), 0.0, 1.0), 1.0
    return _root(gap, 0.0, value), _root(gap, value, 1.0)


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval for a share k / n.

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It treats the n trials as independent; for several samples of one prompt use `cluster_bootstrap`.

    Args:
        k: successes.
        n: trials.
        level: coverage.

    Returns: (low, high), inside [0, 1].
    Raises: TooFewExamples: n is 0. BadInput: k outside 0..n.
    Source: Wilson, JASA 22 (1927).
    """
    if n < 1:
        raise TooFewExamples("a share needs at least one trial: n=0")
    if not 0 <= k <= n:
        raise BadInput(f"{k} successes of {n} trials: k must lie between 0 and n")
    z, p = _z(level), k / n
    centre, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At k = 0 and k = n the algebra gives exactly 0 and 1; rounding would leave 1e-17.
    low = 0.0 if k == 0 else float((centre - spread) / scale)
    high = 1.0 if k == n else float((centre + spread) / scale)
    return low, high


def difference_of_proportions(k1: int, n1: int, k2: int, n2: int, level: float = 0.95) -> tuple[float, float, float]:
    """Difference of two independent shares, p1 - p2, with Newcombe's hybrid score interval.

        low  = d - sqrt((p1 - l1)^2 + (u2 - p2)^2)       l, u: the Wilson limits of each share
        high = d + sqrt((u1 - p1)^2 + (p2 - l2)^2)

    >>> [round(x, 4) for x in difference_of_proportions(56, 70, 48, 80)]
    [0.2, 0.0524, 0.3339]

    Returns: (difference, low, high), inside [-1, 1].
    Raises: TooFewExamples, BadInput: as `wilson`.
    Source: Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10.
    """
    (l1, u1), (l2, u2) = wilson(k1, n1, level), wilson(k2, n2, level)
    p1, p2 = k1 / n1, k2 / n2
    d = p1 - p2
    low = d - float(np.hypot(p1 - l1, u2 - p2))
    high = d + float(np.hypot(u1 - p1, p2 - l2))
    return d, low, high


def cluster_bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Expanded percentile interval of a statistic, drawing whole groups with replacement.

        low, high = the quantiles a and 1 - a of the resampled statistics,
        a = Phi(-sqrt(G / (G - 1)) t)     t: the upper (1 - level) / 2 point of Student's t, G - 1 degrees

    Plain percentiles are too narrow for few groups: in 150 simulations with G = 18 and an AUROC of .87 they
    covered it in 88%, these in 91%. The expansion is Student's and vanishes as the number of groups G grows.

    Every array is indexed by the same rows, so a paired comparison is a statistic of two arrays:
    `cluster_bootstrap(lambda a, b: a.mean() - b.mean(), a, b, groups=prompts)`. `auroc` is computed for
    all resamples at once; anything else is called once a resample. The same seed and groups give the
    same resamples, so intervals of several sites belong together. Resamples in which the statistic is
    not defined (a class is missing) are left out.

    Args:
        statistic: arrays -> float; may return NaN or raise TooFewExamples where it is undefined.
        arrays: one or more, each with N rows.
        groups: (N,) of any hashable kind; None makes every row its own group.
        n: resamples.
        seed: of the draw.
        level: coverage.

    Returns: (low, high). Both ends equal the estimate when no resample can differ from it (a perfect
        AUROC): then use `auroc_score_interval`.
    Raises: TooFewExamples: fewer than two groups, or the statistic is undefined in half of the resamples.
        BadInput: lengths differ.
    Source: groups: Davison and Hinkley, Bootstrap Methods (1997), section 3.8. Expansion: Hesterberg,
        What Teachers Should Know About the Bootstrap, The American Statistician 69 (2015).
    """
    rows = [np.asarray(a) for a in arrays]
    codes = _codes(groups, len(rows[0]))
    if any(len(r) != len(codes) for r in rows):
        raise BadInput(f"arrays of {[len(r) for r in rows]} rows with groups of {len(codes)}")
    n_groups = int(codes.max()) + 1 if len(codes) else 0
    if n_groups < 2:
        raise TooFewExamples(f"{n_groups} group(s): resampling groups needs at least 2")
    drawn = np.random.default_rng(seed).integers(n_groups, size=(n, n_groups))
    if statistic is auroc:
        found = _auroc_resampled(*_scores_and_labels(*rows), codes, drawn)
    else:
        found = _resampled(statistic, rows, codes, drawn)
    found = found[np.isfinite(found)]
    if len(found) <= n / 2:
        raise TooFewExamples(
            f"the statistic is defined in {len(found)} of {n} resamples of {n_groups} groups: "
            "give more groups, or groups that hold both classes"
        )
    low, high = expanded_quantiles(found, n_groups, level)
    return float(low), float(high)


def expanded_quantiles(draws: NDArray[np.float64], n_groups: int, level: float) -> NDArray[np.float64]:
    """Ends of the interval of resampled statistics, as in `cluster_bootstrap`: (draws, ...) -> (2, ...)."""
    _z(level)  # refuses what is no coverage
    spread = np.sqrt(n_groups / (n_groups - 1)) * student_t.ppf((1 + level) / 2, n_groups - 1)
    tail = norm.cdf(-spread)
    return np.quantile(draws, [tail, 1 - tail], axis=0)


def _resampled(statistic: Callable[..., float], rows: list[NDArray[Any]], codes: NDArray, drawn: NDArray) -> NDArray:
    members = [np.flatnonzero(codes == g) for g in range(drawn.shape[1])]
    found = np.full(len(drawn), np.nan)
    for b, groups in enumerate(drawn):
        index = np.concatenate([members[g] for g in groups])
        try:
            found[b] = statistic(*(r[index] for r in rows))
        except TooFewExamples:
            continue
    return found


def _auroc_resampled(scores: NDArray, labels: NDArray, codes: NDArray, drawn: NDArray) -> NDArray:
    """AUROC of every resample, a row drawn c times weighing c.

    With rows sorted by score and equal scores merged into blocks, P and Q the weights of positives and
    negatives in a block: sum_block P (Q of all blocks below + Q / 2) / (sum P sum Q).
    """
    order = np.argsort(scores, kind="stable")
    s, y, c = scores[order], labels[order], codes[order]
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    found = np.full(len(drawn), np.nan)
    step = max(1, _CHUNK // len(s))
    for first in range(0, len(drawn), step):
        part = drawn[first : first + step]
        flat = part + np.arange(len(part))[:, None] * part.shape[1]
        counts = np.bincount(flat.ravel(), minlength=part.size).reshape(part.shape)
        weights = counts[:, c].astype(np.float64)
        p = np.add.reduceat(weights * y, starts, axis=1)
        q = np.add.reduceat(weights * ~y, starts, axis=1)
        wins = (p * (np.cumsum(q, axis=1) - q / 2)).sum(axis=1)
        pairs = p.sum(axis=1) * q.sum(axis=1)
        found[first : first + step] = np.divide(wins, pairs, out=np.full(len(part), np.nan), where=pairs > 0)
    return found


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape:
        raise BadInput(f"scores of shape {s.shape} and labels of shape {y.shape}: both must be (N,)")
    if np.isnan(s).any():
        raise BadInput(f"{int(np.isnan(s).sum())} of {len(s)} scores are NaN: they have no rank")
    if y.dtype != bool and not np.isin(y, (0, 1)).all():
        raise BadInput(f"labels must be bool or 0/1, not {sorted(set(y.tolist()), key=str)[:5]}")
    return s, y.astype(bool)


def _codes(groups: ArrayLike | None, n_rows: int) -> NDArray[np.intp]:
    if groups is None:
        return np.arange(n_rows)
    return np.unique(np.asarray(groups), return_inverse=True)[1].ravel()


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    return float(root_scalar(f, bracket=(low, high), method="brentq").root)


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise BadInput(f"level={level}: a coverage lies between 0 and 1, for instance .95")
    return float(norm.ppf((1 + level) / 2))
