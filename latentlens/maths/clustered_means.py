"""Means and ratios of means of many columns at once, with intervals from the same resamples of whole groups."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput
from latentlens.maths.statistics import expanded_quantiles


class ColumnEstimates(NamedTuple):
    """One estimate a column: value, ends of its interval, and how many rows counted, (k,) each."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.intp]


def clustered_ratios(
    top: ArrayLike,
    bottom: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> ColumnEstimates:
    """sum(top) / sum(bottom) of every column; without `bottom` the mean of every column.

    The interval is that of `statistics.cluster_bootstrap` with the same seed and groups, for all columns at once. A row
    in which a column is NaN does not count for that column.

    Args:
        top: (rows, k).
        bottom: (rows,) or (rows, k). groups: (rows,), what is drawn together; None: every row on its own.
        n, seed, level: of the bootstrap.
    Returns: ColumnEstimates; NaN ends where fewer than two groups count, NaN where the sum of the bottom is 0.
    Raises: BadInput: shapes do not agree.
    """
    values = np.asarray(top, dtype=np.float64)
    if values.ndim != 2:
        raise BadInput(f"values of shape {values.shape}: one row an item, one column a quantity")
    under = np.ones(values.shape) if bottom is None else np.asarray(bottom, dtype=np.float64)
    under = under[:, None] if under.ndim == 1 else under
    group = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(under) != len(values) or len(group) != len(values):
        raise BadInput(f"{len(values)} rows of values, {len(under)} below the line, {len(group)} groups: one each")
    counted = ~(np.isnan(values) | np.isnan(under))
    n_groups = int(group.max()) + 1 if len(group) else 0
    membership = np.zeros((n_groups, len(group)))
    membership[group, np.arange(len(group))] = 1.0
    upper = membership @ np.where(counted, values, 0.0)
    lower = membership @ np.where(counted, np.broadcast_to(under, values.shape), 0.0)
    value = _ratio(upper.sum(0), lower.sum(0))
    low = high = np.full(values.shape[1], math.nan)
    if n_groups > 1:
        drawn = np.random.default_rng(seed).integers(n_groups, size=(n, n_groups))
        flat = drawn + np.arange(n)[:, None] * n_groups
        weights = np.bincount(flat.ravel(), minlength=n * n_groups).reshape(n, n_groups).astype(np.float64)
        resampled = _ratio(weights @ upper, weights @ lower)
        present = membership @ counted > 0
        defined = np.isfinite(resampled).sum(0) > n / 2
        with np.errstate(invalid="ignore"):
            low, high = (np.full(values.shape[1], math.nan) for _ in range(2))
            for k in np.flatnonzero(defined & (present.sum(0) > 1)):
                draws = resampled[np.isfinite(resampled[:, k]), k]
                low[k], high[k] = expanded_quantiles(draws, int(present[:, k].sum()), level)
    return ColumnEstimates(value, low, high, counted.sum(0))


def _ratio(upper: NDArray, lower: NDArray) -> NDArray[np.float64]:
    return np.divide(upper, lower, out=np.full(upper.shape, math.nan), where=lower != 0)
