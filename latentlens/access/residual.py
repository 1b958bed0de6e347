"""Which module outputs add up to the change of the residual stream in a block.

    sequential   resid_mid = resid_pre + alpha attn_out,   resid_post = resid_mid + beta mlp_out
    parallel     resid_post = resid_pre + alpha attn_out + beta mlp_out

Some blocks make more than two steps (cross-attention, the per-layer inputs of Gemma4), and some multiply the sum by
a number at the end (Gemma4). The sums are formed in the model's own dtype and compared bit for bit, which holds in
bfloat16 and beside a residual stream of any size; multipliers that are not known are fitted.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor

from latentlens.access.hooks import Tap


@dataclass(eq=False)
class Value:
    """One tensor (token, width) and the module sides that carried it, each with its place in the execution."""

    tensor: Tensor
    seen: list[tuple[int, Tap]] = field(default_factory=list)

    def first(self, side: str) -> int | None:
        """When a module was first handed ("in") or first gave ("out") this value; None if none did."""
        return next((order for order, tap in self.seen if tap.side == side), None)

    def outputs(self) -> list[Tap]:
        """The taps that gave this value."""
        return [tap for _, tap in self.seen if tap.side == "out"]


@dataclass(eq=False)
class Term:
    """A contribution: scale * value is added to the residual stream, which was `before`."""

    value: Value
    scale: float
    before: Value


def decompose(start: Value, end: Value, values: list[Value], multipliers: list[float]) -> list[Term] | None:
    """The contributions that lead from the block's input to its output, in order of execution.

    Args:
        start, end: resid_pre and resid_post.
        values: everything else that passed between modules in the block and has their shape.
        multipliers: numbers that the block may multiply contributions by.
    Returns: None when no sum holds.
    """
    # The sum as it is, then with a known multiplier, then multiplied at the end, then with any multipliers.
    for sum_of in (_Sum(1.0), *map(_Sum, multipliers), _Sum(1.0, rescaled=True), _Sum(None)):
        terms = _chain(start, end, values, sum_of, -1) or _parallel(start, end, values, sum_of)
        if terms is not None:
            return terms
    return None


@dataclass(frozen=True)
class _Sum:
    """How start and steps make the end: a scale for every step (None: fitted), and whether the sum is rescaled."""

    scale: float | None
    rescaled: bool = False

    def scales(self, start: Value, steps: list[Value], end: Value, last: bool) -> list[float] | None:
        """The multiplier of each step when start plus steps is end, or None. Only the last sum is rescaled."""
        if self.scale is None:
            return _fit(start.tensor, [step.tensor for step in steps], end.tensor)
        parts = [step.tensor if self.scale == 1 else step.tensor * self.scale for step in steps]
        same = _equal_up_to_scale if self.rescaled and last else torch.equal
        for order in permutations([start.tensor, *parts]):
            if same(functools.reduce(torch.add, order).to(end.tensor.dtype), end.tensor):
                return [self.scale] * len(steps)
        return None


def _chain(start: Value, end: Value, values: list[Value], sum_of: _Sum, since: int) -> list[Term] | None:
    """One step after another, each of which made a value that some module was handed."""
    made = [(v, order) for v in values if (order := v.first("out")) is not None and order > since]
    for value, _ in made:
        if (scales := sum_of.scales(start, [value], end, last=True)) is not None:
            return [Term(value, scales[0], start)]
    for mid in values:
        handed = mid.first("in")
        if handed is None or handed <= since:
            continue
        for value, order in made:
            if order > handed or value is mid:
                continue
            if (scales := sum_of.scales(start, [value], mid, last=False)) is not None:
                rest = _chain(mid, end, values, sum_of, handed)
                if rest is not None:
                    return [Term(value, scales[0], start), *rest]
    return None


def _parallel(start: Value, end: Value, values: list[Value], sum_of: _Sum) -> list[Term] | None:
    made = [v for v in values if v.first("out") is not None]
    for i, one in enumerate(made):
        for two in made[i + 1 :]:
            if (scales := sum_of.scales(start, [one, two], end, last=True)) is not None:
                return [Term(one, scales[0], start), Term(two, scales[1], start)]
    return None


def _equal_up_to_scale(total: Tensor, end: Tensor) -> bool:
    scale = (total.double() * end.double()).sum() / total.double().square().sum()
    if not scale.isfinite():
        return False
    nearest = scale.to(end.dtype)  # the number that the block holds is in the model's dtype, or its neighbour is
    both = [torch.nextafter(nearest, torch.full_like(nearest, to)) for to in (-torch.inf, torch.inf)]
    return any(torch.equal(total * one, end) for one in (nearest, *both))


def _fit(start: Tensor, steps: list[Tensor], end: Tensor) -> list[float] | None:
    """Multipliers for which start plus the steps is end within the rounding of the dtype, or None."""
    # In units of the rounding error of each element, so that a few huge elements do not hide the others.
    unit = torch.finfo(end.dtype).eps * (start.double().abs() + end.double().abs()).flatten() + 1e-30
    change = (end.double() - start.double()).flatten() / unit
    columns = torch.stack([step.double().flatten() / unit for step in steps], dim=1)
    gram = columns.T @ columns
    if not (change.isfinite().all() and gram.isfinite().all()) or torch.linalg.cond(gram) > 1e8:
        return None
    scales = torch.linalg.solve(gram, columns.T @ change)
    parts = columns * scales
    left = change - parts.sum(dim=1)
    # Rounding alone would let any small step pass beside a large residual, so it must explain the change too,
    # and no part may be so small that it could be left out.
    allowed = 2 * (1 + torch.finfo(end.dtype).eps * parts.abs().sum(dim=1))
    within = bool((left.abs() <= allowed).all()) and left.norm() < 0.1 * change.norm()
    if not within or parts.norm(dim=0).min() < 1e-3 * change.norm():
        return None
    return scales.tolist()
