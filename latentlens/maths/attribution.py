"""Effects of a change: as a share of the whole effect, and estimated from gradients.

normalised                  (m(z) - m(x)) / (m(x') - m(x))
attribution                 grad m(x) . (x' - x)                        one gradient, exact for linear m
integrated gradients        mean_k grad m(x + t_k (x' - x)) . (x' - x)  exact as the number of points grows
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput

Rule = Literal["left", "midpoint"]


def nodes(steps: int, rule: Rule = "midpoint") -> NDArray[np.float64]:
    """Where on the path from 0 to 1 the gradient is taken.

        left      0, 1/K, ..., (K - 1)/K            off by O(1/K)
        midpoint  1/2K, 3/2K, ..., (2K - 1)/2K      off by O(1/K^2), exact for quadratic m

    >>> nodes(2, "left").tolist(), nodes(2).tolist()
    ([0.0, 0.5], [0.25, 0.75])

    Raises: BadInput: no step, or another rule.
    """
    if rule not in get_args(Rule):
        raise BadInput(f"rule={rule!r}: allowed are {', '.join(get_args(Rule))}")
    if steps < 1:
        raise BadInput(f"steps={steps}: at least one point")
    return (np.arange(steps) + (0.5 if rule == "midpoint" else 0.0)) / steps


def integrated(
    gradient: Callable[[NDArray[np.float64]], ArrayLike],
    start: ArrayLike,
    end: ArrayLike,
    steps: int = 10,
    rule: Rule = "midpoint",
) -> float:
    """Integrated gradients of a function from `start` to `end`; an estimate of m(end) - m(start).

    >>> integrated(lambda a: 2 * a, 1.0, 3.0, 10, "left"), integrated(lambda a: 2 * a, 1.0, 3.0, 10)
    (7.6, 8.0)

    Args: gradient: of m, of the shape of `start`.
    Source: Sundararajan et al. (arXiv 1703.01365), equation 3, with the rule named.
    """
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    mean = np.mean([np.asarray(gradient(a + t * (b - a)), dtype=np.float64) for t in nodes(steps, rule)], axis=0)
    return float(np.sum(mean * (b - a)))


def normalised(patched: ArrayLike, base: ArrayLike, source: ArrayLike, least: float = 0.0) -> NDArray[np.float64]:
    """(patched - base) / (source - base), NaN where |source - base| is not above `least`.

    >>> float(normalised(0.27, -0.6, 0.5).round(6))
    0.790909

    Args: patched: (n,) or (n, k). base, source: (n,).
    """
    values, x, y = (np.asarray(v, dtype=np.float64) for v in (patched, base, source))
    if values.ndim == 2:
        x, y = x[:, None], y[:, None]
    whole = np.broadcast_to(y - x, values.shape)
    return np.divide(values - x, whole, out=np.full(values.shape, math.nan), where=np.abs(whole) > least)
