"""An axis from many roles to one, and the projection that states may not leave (assistant axis, activation capping)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.directions.means import MeanDifference
from latentlens.values.directions import Direction
from latentlens.values.operations import Clamp
from latentlens.values.sites import Site
from latentlens.values.state_rows import check_direction, state_rows


class RoleAxis(MeanDifference):
    """Fitter of `role_axis`: keeps a sum for every role."""

    def __init__(
        self, default: Hashable, site: Site | str | None = None, *, name: str = "", frame: str = "raw"
    ) -> None:
        super().__init__(site, positive=default, name=name, frame=frame)

    def update(self, x: Any, roles: Any) -> Self:
        """Take rows with the role that each was written in."""
        return super().update(x, roles)

    def finish(self) -> Direction:
        """The axis of all rows taken so far.

        Raises: TooFewExamples: no rows, or no other role. BadInput: no default role, or no difference.
        """
        seen = self._classes()
        others = [label for label in seen.classes if label != self.positive]
        if self.positive not in seen.classes:
            raise BadInput(f"no row has the role {self.positive!r}; roles seen: {', '.join(map(repr, others[:8]))}")
        if not others:
            raise TooFewExamples(f"all rows have the role {self.positive!r}: the axis needs others")
        mean = torch.stack([seen.classes[label].mean for label in others]).mean(0)
        source = {"method": "role axis", "positive": str(self.positive), "roles": len(others), "n": seen.n}
        return self._direction(seen.classes[self.positive].mean - mean, source)


def role_axis(
    x: Any, roles: Any, default: Hashable, *, site: Site | str | None = None, name: str = "", frame: str = "raw"
) -> Direction:
    """Axis from what all other roles have in common to one role: the assistant axis.

        v = mean(h | default) - mean over roles r of mean(h | r)

    Every role counts once, however many rows it has; `mean_difference(positive=default)` would count rows.

    Args:
        x: Activations, or rows (n, d): means over response tokens.
        roles: (n,) the role of each row. In the paper rows are kept where a judge finds the role fully played.
        default: the role without a persona.
        site, name, frame: as in `mean_difference`.

    Raises: as `mean_difference`; BadInput: no row of the default role.
    Source: Assistant Axis (arXiv 2601.10387).
    """
    return RoleAxis(default, site, name=name, frame=frame).update(x, roles).finish()


class ProjectionBound:
    """Fitter of `capping`: keeps one number a row, its projection on the axis."""

    def __init__(self, axis: Direction, *, site: Site | str | None = None) -> None:
        self.axis, self.site = axis, axis.site if site is None else site
        self._seen: list[NDArray[np.float64]] = []

    def update(self, x: Any) -> Self:
        """Take Activations, or rows (n, d), of wanted behaviour.

        Raises: BadInput: width or frame. NonFiniteActivations.
        """
        rows = state_rows(x, self.site)
        check_direction(self.axis, rows)
        self.site = rows.site
        self._seen.append((rows.values @ self.axis.unit.double()).numpy())
        return self

    def finish(self, percentile: float = 25.0, side: Literal["floor", "cap"] = "floor", **options: Any) -> Clamp:
        """The bound of all rows taken so far.

        Raises: TooFewExamples: no rows. BadInput: percentile, side.
        """
        if not 0 <= percentile <= 100 or side not in ("floor", "cap"):
            raise BadInput(f"percentile={percentile} (0 to 100), side={side!r} ('floor' or 'cap')")
        if not sum(map(len, self._seen)):
            raise TooFewExamples("no rows to take a percentile of")
        tau = float(np.percentile(np.concatenate(self._seen), percentile))
        bound = {"low": tau} if side == "floor" else {"high": tau}
        return Clamp(self.axis, **bound, site=self.site, **options)


def capping(
    axis: Direction,
    x: Any,
    *,
    percentile: float = 25.0,
    side: Literal["floor", "cap"] = "floor",
    site: Site | str | None = None,
    **options: Any,
) -> Clamp:
    """Bound on the projection along an axis, at a percentile of what calls for no action.

        tau = percentile of h.v/|v| over the rows
        floor:  h' = h + max(tau - h.v, 0) v         cap:  h' = h - max(h.v - tau, 0) v         (v of length 1)

    For an axis that points to the assistant, "floor" keeps the model there; a "cap" with a vector v equals a floor
    with -v and -tau.

    Args:
        axis: its length does not count. x: Activations, or rows (n, d), of wanted behaviour.
        percentile: 0 to 100; the paper's 25.
        side: "floor" or "cap".
        site: which site of the activations; the axis' own by default.
        options: `where`, `schedule`, of the intervention; it acts where the rows come from (elsewhere: `.at(site)`).

    Returns: Clamp.
    Raises: TooFewExamples: no rows. BadInput: percentile, side, width or frame. NonFiniteActivations.
    Source: Assistant Axis (arXiv 2601.10387); its blocks are 56 to 71 of 80 in Llama 3.3 70B.
    """
    return ProjectionBound(axis, site=site).update(x).finish(percentile, side, **options)
