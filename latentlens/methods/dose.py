"""How a steered outcome grows with strength, where the text stays fluent, and where a straight line stops holding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.values.calibration import DoseResponse
from latentlens.values.results import Estimate


def dose_response(
    strengths: Sequence[float],
    effect: ArrayLike,
    *,
    off_target: ArrayLike | None = None,
    nll: ArrayLike | None = None,
    norm_ratio: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    n_fit: int = 3,
    nll_limits: tuple[float, float] = (-1.0, 0.5),
    n_bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    about: Mapping[str, Any] | None = None,
) -> DoseResponse:
    """Effect, side effect and fluency over a grid of strengths, and how far a straight line foretells them.

    Every array has one row an item (a prompt with a seed) and one column a strength. The same item under every
    strength shares its randomness, so strengths are compared within items:

        change(c) = mean_i (effect[i, c] - effect[i, 0])                 the same for NLL and off_target
        line(c)   = a + b c      least squares through the first n_fit strengths
        gap(c)    = mean_i (effect[i, c] - line_i(c))                    line_i: the line of item i alone

    Means and lines are linear in the items, so the gap of the means is the mean of the items' gaps, and one
    bootstrap over items (whole `groups` of them) gives its interval with the line refitted in every resample.

    Args:
        strengths: (K,), ascending from 0; one sign at a time. K >= 3.
        effect: (items, K), the outcome, any unit.
        off_target: (items, K), an outcome that should not move.
        nll: (items, K), mean negative log likelihood of the generated text under the UNSTEERED model, nats/token.
        norm_ratio: (items, K), |edit| / |residual| at the site, dimensionless.
        groups: (items,), what is resampled together (the prompt, when items are its seeds); each item by default.
        n_fit: how many strengths, 0 included, the line is fitted to. At least 2; with 2 it passes through both.
        nll_limits: the mean increase of `nll` that still counts as fluent, nats per token. .5 is a perplexity 1.65
            times as high. A fall is limited too: text that repeats itself is very likely text.
        n_bootstrap, seed, level: of the intervals.
        about: provenance, kept in the result.

    Returns: a DoseResponse. `fails_at` is the first strength beyond the fit whose gap excludes 0.
    Raises: BadInput: shapes differ, NaN, strengths not ascending from 0. TooFewExamples: fewer than two groups.
    Source: our own. The bootstrap: `latentlens.maths.statistics.cluster_bootstrap`.
    """
    c = np.asarray(strengths, dtype=np.float64)
    if c.ndim != 1 or len(c) < 3 or c[0] != 0 or not (np.diff(c) > 0).all() or not np.isfinite(c).all():
        raise BadInput(
            f"strengths {c.tolist()}: give at least 3, ascending from 0, so that every item is its own baseline; "
            "for the other sign hand in the direction reversed"
        )
    if not 2 <= n_fit <= len(c):
        raise BadInput(f"n_fit={n_fit}: a line needs 2 strengths, 0 included, and there are {len(c)}")
    if not nll_limits[0] < 0 < nll_limits[1]:
        raise BadInput(f"nll_limits={nll_limits}: (allowed fall, allowed rise), for instance (-1, .5)")
    outcome = _items("effect", effect, len(c))
    others = {
        name: None if given is None else _items(name, given, len(c))
        for name, given in (("off_target", off_target), ("nll", nll), ("norm_ratio", norm_ratio))
    }
    for name, found in others.items():
        if found is not None and len(found) != len(outcome):
            raise BadInput(f"{name} has {len(found)} items, effect has {len(outcome)}: the same items, in one order")

    def estimate(column: NDArray[np.float64]) -> Estimate:
        value = float(column.mean())
        low, high = cluster_bootstrap(_mean, column, groups=groups, n=n_bootstrap, seed=seed, level=level)
        return Estimate(value, low, high, len(column), level)

    def estimates(values: NDArray[np.float64] | None, *, change: bool) -> tuple[Estimate, ...] | None:
        if values is None:
            return None
        return tuple(estimate(column) for column in (values - values[:, :1] if change else values).T)

    design = np.stack([np.ones(n_fit), c[:n_fit]])
    lines = outcome[:, :n_fit] @ np.linalg.pinv(design)  # (items, 2): intercept and slope of every item
    forecast = lines @ np.stack([np.ones(len(c)), c])
    gaps = outcome - forecast
    gaps[np.abs(gaps) <= 1e-9 * np.abs(outcome).max()] = 0.0  # rounding, where every item follows its line
    gap = tuple(estimate(column) for column in gaps.T)
    fails = [float(x) for x, g in zip(c[n_fit:], gap[n_fit:], strict=True) if not g.covers(0.0)]
    increase = estimates(others["nll"], change=True)
    return DoseResponse(
        strengths=tuple(c.tolist()),
        effect=tuple(estimate(column) for column in outcome.T),
        change=tuple(estimate(column) for column in (outcome - outcome[:, :1]).T),
        off_target=estimates(others["off_target"], change=True),
        nll_increase=increase,
        norm_ratio=estimates(others["norm_ratio"], change=False),
        valid=tuple(nll_limits[0] <= e.value <= nll_limits[1] for e in increase) if increase else (True,) * len(c),
        nll_limits=nll_limits,
        n_fit=n_fit,
        slope=estimate(lines[:, 1]),
        intercept=float(lines[:, 0].mean()),
        predicted=tuple(forecast.mean(axis=0).tolist()),
        gap=gap,
        fails_at=fails[0] if fails else None,
        about={"method": "dose response", "n_bootstrap": n_bootstrap, "seed": seed, **(about or {})},
    )


def _mean(column: NDArray[np.float64]) -> float:
    return float(column.mean())


def _items(name: str, values: ArrayLike, n_strengths: int) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != n_strengths or not len(found):
        raise BadInput(f"{name} of shape {found.shape}: must be (items, {n_strengths}), one column a strength")
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise BadInput(
            f"{name}: {int(bad.sum())} of {len(found)} items hold NaN or infinity (first: item {int(bad.argmax())}). "
            "A paired comparison needs every item at every strength: leave those items out of all arrays"
        )
    return found
