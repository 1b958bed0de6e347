"""How alike vectors are, beside what chance alone gives."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples


def chance_cosine(d: int) -> float:
    """Expected |cosine| of two random directions, for d that is not small.

        E |cos| = sqrt(2 / (pi d))

    >>> round(chance_cosine(896), 5)
    0.02666

    Raises: BadInput: d below 1.
    """
    if d < 1:
        raise BadInput(f"d={d}: a direction has at least one entry")
    return math.sqrt(2 / (math.pi * d))


def cosine_matrix(vectors: ArrayLike) -> NDArray[np.float64]:
    """(k, k) cosines of the rows of (k, d).

    Raises: BadInput: not (k, d), or a zero row.
    """
    v = np.asarray(vectors, dtype=np.float64)
    if v.ndim != 2:
        raise BadInput(f"vectors of shape {v.shape}: give (k, d)")
    sizes = np.linalg.norm(v, axis=1, keepdims=True)
    if not (sizes > 0).all():
        raise BadInput(f"vector {int((sizes.ravel() <= 0).argmax())} is zero or NaN: it has no angle to others")
    unit = v / sizes
    return np.clip(unit @ unit.T, -1, 1)


def mean_off_diagonal(vectors: ArrayLike) -> float:
    """Mean |cosine| of all pairs of rows: 0 when they are orthogonal; compare with `chance_cosine`.

    Raises: TooFewExamples: fewer than two rows. BadInput: as `cosine_matrix`.
    """
    cosines = np.abs(cosine_matrix(vectors))
    k = len(cosines)
    if k < 2:
        raise TooFewExamples(f"{k} vector(s): an angle needs two")
    return float((cosines.sum() - np.trace(cosines)) / (k * (k - 1)))
