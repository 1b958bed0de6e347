"""Operations along directions: what an edit does to the states at a site. u is the unit vector, v the vector itself.

    Add           h + c v                               Scale         h + (s - 1)(h.u) u
    RelativeAdd   h + a |h| u                           ProjectOut    h - Q Q' h
    Clamp         h + (clip(h.u) - h.u) u               ConceptEdit   h - (h.u) u + (r0.u) u + a r
    Affine        w * h + b, mixed with h

Rotations stand in `rotations`, patching in `replacements`, SAE latents in `latents`, conditions in `gates`. All
arithmetic is float32; one cast back to the model's type comes at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.arguments import dot, known_unit, length, number, put, span, vectors_of
from latentlens.values.directions import Direction
from latentlens.values.interventions import Intervention, Unit


@dataclass(frozen=True, eq=False, repr=False)
class Along(Intervention):
    """An operation along one direction."""

    direction: Direction

    def __post_init__(self) -> None:
        if not isinstance(self.direction, Direction):
            raise BadInput(
                f"{type(self).__name__} takes a Direction, not {type(self.direction).__name__}: Direction(vector, site)"
            )
        super().__post_init__()


@dataclass(frozen=True, eq=False, repr=False)
class Add(Along):
    """Add a direction: h' = h + c v.

    coeff: c. unit: "raw" multiplies v as it is; "norm" adds a vector of c median norms of the states at the site
        (measured once by the model on its `reference_texts`), whatever the length of v.

    Source: activation addition, Turner et al. (arXiv 2308.10248); CAA, Rimsky et al. (arXiv 2312.06681).
    """

    coeff: float = 1.0
    unit: Unit = "raw"

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        put(self, coeff=number(self.coeff, "coeff"), unit=known_unit(self.unit))

    def tensors(self) -> Mapping[str, Tensor]:
        """C v, (d,)."""
        return {"added": self.coeff * self.direction.vector}

    @staticmethod
    def formula(h: Tensor, *, added: Tensor) -> Tensor:
        """H + c v."""
        return h + added

    def in_raw_units(self, norm: Callable[[Any], float]) -> Self:
        """C median norms as a multiple of v."""
        if self.unit == "raw":
            return self
        return replace(self, coeff=self.coeff * norm(self.site) / self.direction.norm, unit="raw")


@dataclass(frozen=True, eq=False, repr=False)
class RelativeAdd(Along):
    """Add the unit direction in proportion to each state's own norm: h' = h + a |h| u."""

    ratio: float = 0.0

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        put(self, ratio=number(self.ratio, "ratio"))

    def tensors(self) -> Mapping[str, Tensor]:
        """A u, (d,)."""
        return {"added": self.ratio * self.direction.unit}

    @staticmethod
    def formula(h: Tensor, *, added: Tensor) -> Tensor:
        """H + a |h| u."""
        return h + length(h) * added


@dataclass(frozen=True, eq=False, repr=False)
class Clamp(Along):
    """Keep the projection h.u inside bounds: h' = h + (clip(h.u, low, high) - h.u) u.

    Clamp(d, to=10) sets the projection, Clamp(d, low=1) is a floor, Clamp(d, high=1) a cap (activation capping).
    unit: "raw", or "norm" for bounds in median norms of the states at the site.

    Source: capping, Assistant Axis (arXiv 2601.10387).
    """

    to: float | None = None
    low: float | None = None
    high: float | None = None
    unit: Unit = "raw"

    def __post_init__(self) -> None:
        """Check the bounds."""
        super().__post_init__()
        if self.to is not None and (self.low is not None or self.high is not None):
            raise BadInput("Clamp takes to=, or low= and high=, not both")
        if self.to is None and self.low is None and self.high is None:
            raise BadInput("Clamp needs to= (set the projection), low= (a floor) or high= (a cap)")
        given = {n: number(getattr(self, n), n) for n in ("to", "low", "high") if getattr(self, n) is not None}
        put(self, unit=known_unit(self.unit), **given)
        if self.low is not None and self.high is not None and self.low > self.high:
            raise BadInput(f"Clamp(low={self.low}, high={self.high}): low is above high")

    def tensors(self) -> Mapping[str, Tensor]:
        """U (d,), low (1,), high (1,)."""
        low = self.to if self.to is not None else -math.inf if self.low is None else self.low
        high = self.to if self.to is not None else math.inf if self.high is None else self.high
        return {"u": self.direction.unit, "low": torch.tensor([low]), "high": torch.tensor([high])}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """H + (clip(h.u) - h.u) u; states already inside the bounds are returned bit for bit."""
        now = dot(h, u)
        return h + (torch.minimum(torch.maximum(now, low), high) - now) * u

    def in_raw_units(self, norm: Callable[[Any], float]) -> Self:
        """Bounds times the median norm."""
        if self.unit == "raw":
            return self
        scale = norm(self.site)
        bounds = {n: getattr(self, n) * scale for n in ("to", "low", "high") if getattr(self, n) is not None}
        return replace(self, unit="raw", **bounds)


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Along):
    """Stretch the component along a direction: h' = h + (s - 1)(h.u) u; s = 0 removes it."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        put(self, factor=number(self.factor, "factor"))

    def tensors(self) -> Mapping[str, Tensor]:
        """U (d,), s - 1 (1,)."""
        return {"u": self.direction.unit, "more": torch.tensor([self.factor - 1.0])}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor, more: Tensor) -> Tensor:
        """H + (s - 1)(h.u) u."""
        return h + more * dot(h, u) * u


@dataclass(frozen=True, eq=False, repr=False)
class ProjectOut(Intervention):
    """Remove one direction, or the span of several: h' = h - Q Q' h, Q an orthonormal basis.

    Source: directional ablation, Arditi et al. (arXiv 2406.11717).
    """

    directions: Any

    def __post_init__(self) -> None:
        """Take one direction or several of one site and width."""
        given = self.directions if isinstance(self.directions, Sequence) else (self.directions,)
        if not given or not all(isinstance(d, Direction) for d in given):
            raise BadInput("ProjectOut takes a Direction or a list of them")
        if len({d.vector.numel() for d in given}) > 1:
            raise BadInput("the directions of one ProjectOut must have one width")
        object.__setattr__(self, "directions", tuple(given))
        super().__post_init__()

    def tensors(self) -> Mapping[str, Tensor]:
        """Orthonormal basis Q, (d, rank)."""
        return {"basis": span(self.directions)}

    @staticmethod
    def formula(h: Tensor, *, basis: Tensor) -> Tensor:
        """H - Q Q' h."""
        return h - ((h.unsqueeze(-2) @ basis) @ basis.mT).squeeze(-2)


@dataclass(frozen=True, eq=False, repr=False)
class ConceptEdit(Along):
    """Affine concept edit: h' = h - proj_r h + proj_r r0 + a r, with proj_r along the direction r.

    Removes the concept relative to a reference point r0 (usually the mean of the negative class), then sets it to
    `amount` a of the direction. r0 = 0 and a = 0 is plain directional ablation.

    Source: Marshall et al. (arXiv 2411.09003).
    """

    reference: Any = None
    amount: float = 0.0

    def __post_init__(self) -> None:
        """Check the reference point."""
        super().__post_init__()
        reference = torch.zeros_like(self.direction.vector) if self.reference is None else self.reference
        reference = torch.as_tensor(reference).detach().to("cpu", torch.float32).clone()
        if reference.shape != self.direction.vector.shape:
            raise BadInput(
                f"reference has shape {tuple(reference.shape)}, the direction {self.direction.vector.numel()}"
            )
        put(self, amount=number(self.amount, "amount"), reference=reference)

    def tensors(self) -> Mapping[str, Tensor]:
        """U (d,), and what is put in place of the removed part (d,)."""
        u = self.direction.unit
        return {"u": u, "put": (self.reference @ u) * u + self.amount * self.direction.vector}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor, put: Tensor) -> Tensor:
        """H - (h.u) u + proj_r r0 + a r."""
        return h - dot(h, u) * u + put


@dataclass(frozen=True, eq=False, repr=False)
class Affine(Intervention):
    """Per-coordinate transport: h' = (1 - m) h + m (w * h + b).

    weight, bias: (d,). mix: m. Source: Linear-AcT, Rodriguez et al. (arXiv 2410.23054).
    """

    weight: Any
    bias: Any
    mix: float = 1.0

    def __post_init__(self) -> None:
        """Check the vectors."""
        super().__post_init__()
        weight, bias = vectors_of(self.weight, "weight", 1), vectors_of(self.bias, "bias", 1)
        if weight.shape != bias.shape:
            raise BadInput(f"weight has shape {tuple(weight.shape)}, bias {tuple(bias.shape)}: they must agree")
        put(self, weight=weight, bias=bias, mix=number(self.mix, "mix"))

    @property
    def width(self) -> int:
        """Length of the weight."""
        return self.weight.numel()

    def tensors(self) -> Mapping[str, Tensor]:
        """Factor and shift with the mix in them, (d,) each."""
        return {"factor": 1.0 + self.mix * (self.weight - 1.0), "shift": self.mix * self.bias}

    @staticmethod
    def formula(h: Tensor, *, factor: Tensor, shift: Tensor) -> Tensor:
        """(1 - m + m w) h + m b."""
        return factor * h + shift
