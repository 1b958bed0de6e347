"""Moving one set of states onto another, coordinate by coordinate (Linear-AcT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentlens.errors import TooFewExamples
from latentlens.values.operations import Affine
from latentlens.values.sites import Site
from latentlens.values.state_rows import same_site, state_rows

_FLAT = 1e-6  # a spread below this share of the largest entry is rounding


def linear_transport(
    source: Any, target: Any, mix: float = 1.0, *, site: Site | str | None = None, **options: Any
) -> Affine:
    """Linear-AcT: in every coordinate the straight line from the sorted source to the sorted target.

        w, b = argmin sum_i (w x_(i) + b - y_(i))^2         x_(1) <= x_(2) <= ...,  y likewise
        h' = (1 - m) h + m (w h + b)

    Sorted samples meet at equal ranks, so w >= 0 and no pairs are needed; sets of different sizes meet at the quantiles
    of the larger one. Where the source does not vary w = 1, and the line moves it by the difference of the means.

    It needs all rows at once: ranks cannot be kept in sums.

    Args:
        source, target: Activations, or rows (n, d): states as they are, and states as they should be.
        mix: m, 0 leaves the states, 1 transports them.
        site: as in `mean_difference`.
        options: `where`, `schedule`, of the intervention.

    Returns: Affine.
    Raises: TooFewExamples: fewer than two rows on a side. BadInput: shapes. NonFiniteActivations.
    Source: Rodriguez et al. (arXiv 2410.23054); equal ranks for unequal sizes are ours.
    """
    sides = [state_rows(x, site, what=what) for x, what in ((source, "source rows"), (target, "target rows"))]
    place = same_site(*sides)
    if min(map(len, sides)) < 2:
        raise TooFewExamples(f"{len(sides[0])} source and {len(sides[1])} target rows: a line needs two on each side")
    n = max(map(len, sides))
    x, y = (_quantiles(side.values, n) for side in sides)
    x_mean, y_mean = x.mean(0), y.mean(0)
    dx, dy = x - x_mean, y - y_mean
    spread = dx.square().mean(0)
    flat = spread.sqrt() <= _FLAT * x.abs().amax(0).clamp_min(1e-300)
    weight = (dx * dy).mean(0) / torch.where(flat, torch.ones_like(spread), spread)
    weight = torch.where(flat, torch.ones_like(weight), weight)
    return Affine(weight.float(), (y_mean - weight * x_mean).float(), mix, site=place, **options)


def _quantiles(values: Tensor, n: int) -> Tensor:
    """Sorted columns, at the n ranks (i + 1/2) / n by interpolation where there are fewer rows."""
    ordered = values.sort(0).values
    if len(ordered) == n:
        return ordered
    place = ((torch.arange(n, dtype=torch.float64) + 0.5) / n * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    low = place.floor().long()
    share = (place - low)[:, None]
    return (1 - share) * ordered[low] + share * ordered[(low + 1).clamp(max=len(ordered) - 1)]
