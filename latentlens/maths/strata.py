"""Does a score order two classes among rows that are alike in something else?

strata             quantile bins of a covariate
stratified_auroc   AUROC over pairs inside a bin only

What differs between bins cannot help a stratified AUROC.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import auroc


def strata(covariate: ArrayLike, n: int | None = 10) -> NDArray[np.intp]:
    """Bin rows by quantiles of a covariate; equal values always share a bin.

    Args: covariate: (N,), finite. n: bins wished for; fewer come out where values repeat. None: a bin per value.
    Returns: (N,) bin numbers from 0.
    Raises: BadInput: n below 1, or values that are not finite.
    """
    values = np.asarray(covariate, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise BadInput(f"covariate of shape {values.shape} with {int((~np.isfinite(values)).sum())} not finite: (N,)")
    if n is None:
        return np.unique(values, return_inverse=True)[1].ravel()
    if n < 1:
        raise BadInput(f"n={n}: at least one bin")
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n + 1)[1:-1])) if len(values) else np.empty(0)
    return np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1].ravel()


def stratified_auroc(scores: ArrayLike, labels: ArrayLike, bins: ArrayLike) -> float:
    """AUROC over the pairs of a positive and a negative of the same bin.

        sum_s m_s n_s AUROC_s / sum_s m_s n_s       m_s, n_s: positives and negatives in bin s

    What is constant within bins cannot help here: length, say, when the bins are of equal length.

    >>> stratified_auroc([1, 2, 11, 12], [0, 1, 0, 1], [0, 0, 1, 1]), stratified_auroc([1, 2], [0, 1], [0, 0])
    (1.0, 1.0)

    Args: scores: (N,), finite. labels: (N,) bool or 0/1. bins: (N,) of any hashable kind.
    Returns: between 0 and 1, chance .5.
    Raises: TooFewExamples: no bin holds both classes. BadInput: as `auroc`.
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    codes = np.unique(np.asarray(bins), return_inverse=True)[1].ravel()
    if not len(s) == len(y) == len(codes):
        raise BadInput(f"{len(s)} scores, {len(y)} labels and {len(codes)} bins: give one each a row")
    wins = pairs = 0.0
    for code in range(int(codes.max()) + 1 if len(codes) else 0):
        inside = codes == code
        weight = float(y[inside].sum()) * float((~y[inside]).sum())
        if weight:
            wins += weight * auroc(s[inside], y[inside])
            pairs += weight
    if not pairs:
        raise TooFewExamples("no bin holds both classes: use fewer bins")
    return wins / pairs
