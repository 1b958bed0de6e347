"""Two measurements of the same things, compared: exact tests and effect sizes on plain arrays.

mcnemar           two yes-or-no outcomes of the same trials
wilcoxon          two numbers of the same trials, by signed ranks
paired_t          the same by Student's t
sign_flip         the same by random signs, whole groups flipped together
cohen_d           difference of two means in pooled standard deviations
cliff_delta       how much more often one side is the greater
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from latentlens.errors import BadInput, TooFewExamples

Alternative = Literal["two-sided", "greater", "less"]


class McNemar(NamedTuple):
    """Discordant pairs on either side, and the exact p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided test that a yes is as likely in both conditions, on the pairs that differ.

        b pairs yes/no, c pairs no/yes:  p = P(|X - (b + c) / 2| >= |b - c| / 2),  X ~ Binomial(b + c, 1/2)

    >>> mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 1, 0])
    McNemar(only_first=3, only_second=0, p=0.25)

    Args: first, second: (N,), bool or 0/1, the same trials in the same order.
    Returns: p is 1 when no pair differs. Pairs count as independent: with several trials of one latent or prompt print
        a clustered interval of the difference beside it.
    Raises: BadInput: lengths differ, or an outcome is not yes or no.
    Source: McNemar, Psychometrika 12 (1947); exact form.
    """
    a, b = (np.asarray(side) for side in (first, second))
    if a.ndim != 1 or a.shape != b.shape:
        raise BadInput(f"paired outcomes of shapes {a.shape} and {b.shape}: both must be (N,)")
    if not all(np.isin(side, (0, 1)).all() for side in (a, b)):
        raise BadInput("paired outcomes must be bool or 0/1: leave out trials that lack one of the two")
    only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    differ = only_first + only_second
    p = float(stats.binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p)


def wilcoxon(first: ArrayLike, second: ArrayLike, alternative: Alternative = "two-sided") -> float:
    """p-value of Wilcoxon's signed-rank test on first - second; equal pairs are left out.

    >>> wilcoxon([3, 4, 5, 6, 7], [1, 1, 1, 1, 1], "greater")
    0.03125

    Args: alternative: "greater": the first tends to be larger.
    Returns: NaN when every pair is equal: nothing can be said.
    Raises: BadInput: lengths differ or a value is NaN. TooFewExamples: no pair.
    Source: Wilcoxon, Biometrics Bulletin 1 (1945); exact without ties up to 50 pairs, as scipy decides.
    """
    a, b = _pairs(first, second)
    difference = a - b
    if not difference.any():
        return math.nan
    return float(stats.wilcoxon(difference, alternative=alternative).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def paired_t(first: ArrayLike, second: ArrayLike, alternative: Alternative = "two-sided") -> float:
    """p-value of Student's t test on first - second.

    Returns: NaN when the differences do not vary.
    Raises: BadInput: lengths differ or a value is NaN. TooFewExamples: fewer than two pairs.
    """
    a, b = _pairs(first, second, least=2)
    difference = a - b
    if difference.std() == 0:
        return math.nan
    return float(stats.ttest_1samp(difference, 0.0, alternative=alternative).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def sign_flip(differences: ArrayLike, groups: ArrayLike | None = None, *, n: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value that paired differences have mean 0, by giving random signs to whole groups.

        p = (1 + #{|sum_g s_g D_g| >= |sum_g D_g|}) / (1 + n),   D_g: sum over group g, s_g: -1 or 1

    All 2^G sign vectors are taken where there are no more than n of them; p is then their exact share.

    >>> sign_flip([1, 1, 1, 1, 1])
    0.0625

    Args: differences: (N,). groups: (N,), what is flipped as a whole; None: every difference alone.
    Returns: 1 when every difference is 0.
    Raises: BadInput: lengths differ or a value is NaN. TooFewExamples: no pair.
    """
    values, _ = _pairs(differences, np.zeros_like(np.asarray(differences, dtype=np.float64)))
    codes = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(codes) != len(values):
        raise BadInput(f"{len(values)} differences and {len(codes)} groups: one each")
    sums = np.bincount(codes, values)
    sums = sums[np.abs(sums) > 1e-12]
    if not len(sums):
        return 1.0
    seen, exact = abs(float(sums.sum())) * (1 - 1e-9), 2 ** min(len(sums), 60) <= n
    if exact:
        signs = 1 - 2.0 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= seen).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (n, len(sums)))
    return float((1 + (np.abs(signs @ sums) >= seen).sum()) / (1 + n))


def cohen_d(first: ArrayLike, second: ArrayLike) -> float:
    """Difference of the means in pooled standard deviations, the samples taken as independent.

        d = (mean a - mean b) / sqrt(((n - 1) var a + (m - 1) var b) / (n + m - 2))

    >>> round(cohen_d([.02, .01, .03], [.01, .005, .006]), 4)
    1.7773

    Returns: NaN when neither side varies.
    Raises: TooFewExamples: fewer than two on a side. Source: Cohen, Statistical Power Analysis (1988), chapter 2.
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if min(a.size, b.size) < 2:
        raise TooFewExamples(f"{a.size} and {b.size} values: a pooled deviation needs two on either side")
    pooled = ((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / (a.size + b.size - 2)
    return float((a.mean() - b.mean()) / math.sqrt(pooled)) if pooled > 0 else math.nan


def cliff_delta(first: ArrayLike, second: ArrayLike) -> float:
    """P(a > b) - P(a < b) over all pairs of one value from either side.

    >>> round(cliff_delta([.02, .01, .03], [.01, .005, .006]), 4)
    0.8889

    Raises: TooFewExamples: an empty side. Source: Cliff, Psychological Bulletin 114 (1993).
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if not a.size or not b.size:
        raise TooFewExamples(f"{a.size} and {b.size} values: both sides need some")
    ordered = np.sort(b)
    below, at_most = (np.searchsorted(ordered, a, side=side) for side in ("left", "right"))
    return float((below.sum() - (b.size - at_most).sum()) / (a.size * b.size))


def _pairs(first: ArrayLike, second: ArrayLike, least: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if a.ndim != 1 or a.shape != b.shape:
        raise BadInput(f"pairs of shapes {a.shape} and {b.shape}: both must be (N,)")
    if np.isnan(a).any() or np.isnan(b).any():
        raise BadInput("a value is NaN: leave out the pairs that lack one of the two")
    if len(a) < least:
        raise TooFewExamples(f"{len(a)} pairs: at least {least} are needed")
    return a, b
