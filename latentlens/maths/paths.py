"""Numbers that describe a path of points, and random paths to compare them with.

displacement      how far, how long, how straight
layer_changes     length and angle of the changes from layer to layer
speed, turning    step by step
gaussian_walk     independent steps of equal expected length, as few numbers as their lengths and angles need
reordered         the points of a path in another order

Points lie along the last axis but one, coordinates along the last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_EPS = 1e-8

Floats = NDArray[np.float64]


class Displacement(NamedTuple):
    """Of a path x_1 .. x_N with steps v_n and u = x_N - x_1, each (...).

    reach: |u|. length: sum |v_n|. alignment: mean cos(v_n, u), a zero vector giving 0.
    """

    reach: Floats
    length: Floats
    alignment: Floats


class LayerChanges(NamedTuple):
    """Per layer change i, relative to the change from first to last layer: length (..., L-1), angle (..., L-1)."""

    length: Floats
    angle: Floats


def displacement(points: NDArray) -> Displacement:
    """How far a path leads, how long it is, and how straight.

    The three do not depend on the ORDER of the steps: |u| and the directions of the v_n stay when steps are shuffled.

    >>> [float(v) for v in displacement(np.array([[0.0, 0], [3, 4], [6, 0]]))]
    [6.0, 10.0, 0.6]

    Args: points: (..., N, d). NaN for all three where N < 2.
    """
    x = np.asarray(points, dtype=np.float64)
    if x.shape[-2] < 2:
        nothing = np.full(x.shape[:-2], np.nan)
        return Displacement(nothing, nothing.copy(), nothing.copy())
    steps = np.diff(x, axis=-2)
    whole = x[..., -1:, :] - x[..., :1, :]
    return Displacement(
        np.linalg.norm(whole[..., 0, :], axis=-1),
        np.linalg.norm(steps, axis=-1).sum(-1),
        cosine(steps, whole).mean(-1),
    )


def layer_changes(states: NDArray) -> LayerChanges:
    """Changes from layer to layer, relative to the whole way through the model.

        length_i = |x_{i+1} - x_i| / (|x_L - x_1| + 1e-8)
        angle_i  = arccos cos(x_i, x_{i+1}) / (arccos cos(x_1, x_L) + 1e-8)

    Args: states: (..., L, d), L at least 2.
    """
    x = np.asarray(states, dtype=np.float64)
    whole = np.linalg.norm(x[..., -1, :] - x[..., 0, :], axis=-1)
    length = np.linalg.norm(np.diff(x, axis=-2), axis=-1) / (whole[..., None] + _EPS)
    angle = np.arccos(np.clip(cosine(x[..., :-1, :], x[..., 1:, :]), -1, 1))
    widest = np.arccos(np.clip(cosine(x[..., 0, :], x[..., -1, :]), -1, 1))
    return LayerChanges(length, angle / (widest[..., None] + _EPS))


def speed(points: NDArray) -> Floats:
    """Length of every step: (..., N, d) -> (..., N-1)."""
    return np.linalg.norm(np.diff(np.asarray(points, dtype=np.float64), axis=-2), axis=-1)


def turning(points: NDArray) -> Floats:
    """Angle between successive steps in radians, 0 straight on, pi straight back: (..., N, d) -> (..., N-2)."""
    steps = np.diff(np.asarray(points, dtype=np.float64), axis=-2)
    return np.arccos(np.clip(cosine(steps[..., :-1, :], steps[..., 1:, :]), -1, 1))


def cosine(a: NDArray, b: NDArray) -> Floats:
    """Cosine over the last axis, norms no smaller than 1e-8 (as torch does), so that a zero vector gives 0."""
    lengths = np.maximum(np.linalg.norm(a, axis=-1), _EPS) * np.maximum(np.linalg.norm(b, axis=-1), _EPS)
    return (a * b).sum(-1) / lengths


def gaussian_walk(n_points: int, d: int, step: NDArray, rng: np.random.Generator) -> Floats:
    """A walk whose steps are independent, of mean zero and equal in all d directions.

        x_{n+1} = x_n + step g_n / sqrt(d),   g_n ~ N(0, I_d),   so that the mean of |v_n|^2 is step^2

    S steps span at most S dimensions: for S < d they are drawn in coordinates of that span, as the lower triangle of
    Bartlett's decomposition, which has the very distribution of lengths and angles at S^2 numbers instead of S d.

    Args: n_points: N. d: dimensions. step: (k,) root-mean-square length of a step, for each of k walks.
    Returns: (k, N, min(N-1, d)).
    """
    n_steps, k = max(n_points - 1, 0), len(step)
    if n_steps < d:
        g = np.tril(rng.normal(size=(k, n_steps, n_steps)), -1)
        free = d - np.arange(n_steps)
        g[:, np.arange(n_steps), np.arange(n_steps)] = np.sqrt(rng.chisquare(free, size=(k, n_steps)))
    else:
        g = rng.normal(size=(k, n_steps, d))
    steps = np.asarray(step, dtype=np.float64)[:, None, None] * g / np.sqrt(d)
    return np.concatenate([np.zeros((k, 1, g.shape[-1])), np.cumsum(steps, axis=1)], axis=1)


def reordered(points: NDArray, rng: np.random.Generator) -> NDArray:
    """The same points of a path (..., N, d) in a random order."""
    return points[..., rng.permutation(points.shape[-2]), :]
