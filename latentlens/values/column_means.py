"""Means of columns with intervals that resample whole groups: the usual last step of an experiment's table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from latentlens.errors import BadInput
from latentlens.maths.clustered_means import clustered_ratios
from latentlens.values.labelled_rows import group_codes
from latentlens.values.results import Estimate


def column_means(table: ArrayLike, *, groups: Any = None, seed: int = 0, level: float = 0.95) -> list[Estimate]:
    """Mean of every column.

    Args: table: (rows, k), or (rows,) for one column; NaN does not count. groups: one a row, drawn together.
    Returns: one Estimate a column, n the rows that counted; NaN ends where fewer than two groups count.
    Raises: BadInput: another shape, or not one group a row.
    """
    values = np.asarray(table, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise BadInput(f"a table of shape {values.shape}: one row an item, one column a quantity")
    group = group_codes("groups", groups, len(values))
    found = clustered_ratios(values, groups=group, seed=seed, level=level)
    columns = zip(found.value.tolist(), found.low.tolist(), found.high.tolist(), found.n.tolist(), strict=True)
    return [Estimate(value, low, high, n, level) for value, low, high, n in columns]
