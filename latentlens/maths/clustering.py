"""Clusters of rows: KMeans with numbers that mean something, and which cluster is which in another run."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from latentlens.errors import BadInput, TooFewExamples


def kmeans(points: NDArray[Any], k: int = 3, *, seed: int = 42, n_init: Any = 10) -> NDArray[np.intp]:
    """KMeans labels, the largest cluster first (of equals the one with the earliest row).

    K is reduced to the number of distinct rows, and a cluster that stays empty is left out.

    Args: points: (n, d).
    Raises: BadInput: k is below 1. TooFewExamples: no row.
    Source: KMeans with n_init=10 and random_state=42, as in ACT's script.
    """
    from sklearn.cluster import KMeans

    if k < 1:
        raise BadInput(f"k={k}: at least one cluster")
    if not len(points):
        raise TooFewExamples("no row to cluster")
    k = min(k, len(np.unique(points, axis=0)))
    with warnings.catch_warnings(), threadpool_limits(1):  # waking threads costs more than they do on so few rows
        warnings.simplefilter("ignore")  # fewer distinct clusters than k: they are renumbered below
        found = KMeans(k, n_init=n_init, random_state=seed).fit_predict(points) if k > 1 else np.zeros(len(points), int)
    kinds, first, sizes = np.unique(found, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    renamed = {int(kinds[old]): new for new, old in enumerate(order)}
    return np.array([renamed[int(one)] for one in found], dtype=np.intp)


def matching(one: ArrayLike, other: ArrayLike) -> NDArray[np.intp]:
    """For each cluster of `one`, the cluster of `other` that is the same, by the most rows in common.

    Args: one, other: (n,) cluster of each row, from 0.
    Returns: as many as `one` has clusters; -1 where `other` has none left.
    Source: Kuhn, Naval Research Logistics 2 (1955).
    """
    from scipy.optimize import linear_sum_assignment

    a, b = np.asarray(one), np.asarray(other)
    common = np.zeros((int(a.max()) + 1, int(b.max()) + 1), dtype=np.int64)
    np.add.at(common, (a, b), 1)
    found = np.full(len(common), -1, dtype=np.intp)
    rows, columns = linear_sum_assignment(-common)
    found[rows] = columns
    return found
