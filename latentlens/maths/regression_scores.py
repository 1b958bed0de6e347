"""How well numbers are predicted: squared error, and what it is worth beside a constant."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples


def mean_squared_error(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Mean of (predicted - truth)^2 over everything.

    >>> round(mean_squared_error([0.2, 0.4, 0.6, 0.8, 1.0], [0.3, 0.4, 0.5, 0.8, 0.9]), 4)
    0.006

    Raises: BadInput: shapes differ. TooFewExamples: nothing.
    """
    p, t = _pair(predicted, truth)
    return float(((p - t) ** 2).mean())


def r_squared(predicted: ArrayLike, truth: ArrayLike, constant: ArrayLike | None = None) -> float:
    """Share of the squared error of a constant that the prediction removes.

        R2 = 1 - sum (predicted - truth)^2 / sum (truth - constant)^2

    1: perfect; 0: as good as the constant; below 0: worse. A squared error alone says nothing: labels uniform on [0, 1]
    have variance .083, so that .011 is R2 = .87, and where labels hardly vary it may be nothing.

    >>> round(r_squared([0.2, 0.4, 0.6, 0.8, 1.0], [0.3, 0.4, 0.5, 0.8, 0.9]), 3)
    0.888

    Args: predicted, truth: (n,) or (n, k); of several columns all errors are added up. constant: one number a column,
        the mean of the TRAINING labels; by default that of `truth`, which is a little kinder to the constant.
    Returns: NaN where the constant is never wrong.
    Raises: BadInput: shapes differ. TooFewExamples: nothing.
    """
    p, t = _pair(predicted, truth)
    c = t.mean(axis=0) if constant is None else np.asarray(constant, dtype=np.float64)
    spread = float(((t - c) ** 2).sum())
    return 1 - float(((p - t) ** 2).sum()) / spread if spread > 0 else float("nan")


def _pair(predicted: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.shape != t.shape or p.ndim not in (1, 2):
        raise BadInput(f"predictions of shape {p.shape}, truth of shape {t.shape}: the same, (n,) or (n, k)")
    if not p.size:
        raise TooFewExamples("no predictions to score")
    return p, t
