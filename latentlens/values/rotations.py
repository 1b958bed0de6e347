"""Operations that keep the norm of a state: they turn it, and never stretch it. u is a direction's unit vector.

    NormPreservingAdd   (h + c v) |h| / |h + c v|        Reflect   h - 2 (h.u) u
    Rotate              inside the plane of two directions         Slerp     towards u along the great circle

Where a formula has no answer (the angle of a zero vector, the great circle to the opposite point) the state is left
as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.arguments import dot, length, number, put
from latentlens.values.directions import Direction
from latentlens.values.interventions import Intervention
from latentlens.values.operations import Add, Along


@dataclass(frozen=True, eq=False, repr=False)
class NormPreservingAdd(Add):
    """Add a direction and give the state its old length back: h' = (h + c v) |h| / |h + c v|.

    only_if_grown: rescale only where the norm grew, as IBM's activation-steering and AISteer360 do.
    Where h + c v = 0 the state is left as it is.
    """

    only_if_grown: bool = False

    def tensors(self) -> Mapping[str, Tensor]:
        """C v (d,) and the flag (1,)."""
        return {**super().tensors(), "only_if_grown": torch.tensor([float(self.only_if_grown)])}

    @staticmethod
    def formula(h: Tensor, *, added: Tensor, only_if_grown: Tensor) -> Tensor:
        """(h + c v) |h| / |h + c v|."""
        new = h + added
        ratio = length(h) / length(new).clamp(min=torch.finfo(h.dtype).tiny)
        ratio = torch.where(only_if_grown > 0, ratio.clamp(max=1.0), ratio)
        return torch.where(length(new) > 0, new * ratio, h)


@dataclass(frozen=True, eq=False, repr=False)
class Reflect(Along):
    """Reflect at the hyperplane across a direction (Householder): h' = h - 2 (h.u) u; the norm is kept.

    Source: Householder pseudo-rotation, Pham and Nguyen (arXiv 2409.10053).
    """

    def tensors(self) -> Mapping[str, Tensor]:
        """U, (d,)."""
        return {"u": self.direction.unit}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor) -> Tensor:
        """H - 2 (h.u) u."""
        return h - 2.0 * dot(h, u) * u


@dataclass(frozen=True, eq=False, repr=False)
class Rotate(Intervention):
    """Rotate inside the plane of two directions; the norm is kept (angular steering).

    b1 is the first direction, b2 the second made orthogonal to it. `to`: the angle that the in-plane part gets, in
    degrees from b1 towards b2; `by`: the angle it is turned by. only_if_positive: only where h.b1 > 0 (adaptive mode).

        to:  h' = h - Ph + |Ph| (cos t b1 + sin t b2)

    Source: Vu and Nguyen (arXiv 2510.26243).
    """

    first: Direction
    second: Direction
    to: float | None = None
    by: float | None = None
    only_if_positive: bool = False

    def __post_init__(self) -> None:
        """Check the plane and the angle."""
        if not (isinstance(self.first, Direction) and isinstance(self.second, Direction)):
            raise BadInput("Rotate takes two Directions that span the plane")
        if (self.to is None) == (self.by is None):
            raise BadInput("Rotate takes to= (an angle in degrees) or by= (an offset in degrees), one of the two")
        super().__post_init__()
        if self.first.vector.shape != self.second.vector.shape or abs(self.first.unit @ self.second.unit) > 1 - 1e-6:
            raise BadInput("the two directions of Rotate must have one width and span a plane (they are parallel)")
        name = "to" if self.by is None else "by"
        put(self, **{name: number(getattr(self, name), name)})

    def tensors(self) -> Mapping[str, Tensor]:
        """B1 (d,), b2 (d,), cosine and sine (1,), whether the angle is absolute (1,), and the adaptive flag (1,)."""
        b1 = self.first.unit
        b2 = self.second.unit - (self.second.unit @ b1) * b1
        angle = math.radians(self.to if self.to is not None else self.by or 0.0)
        flags = {"absolute": self.to is not None, "only_if_positive": self.only_if_positive}
        return {
            "b1": b1,
            "b2": b2 / b2.norm(),
            "cos": torch.tensor([math.cos(angle)]),
            "sin": torch.tensor([math.sin(angle)]),
            **{name: torch.tensor([float(flag)]) for name, flag in flags.items()},
        }

    @staticmethod
    def formula(
        h: Tensor, *, b1: Tensor, b2: Tensor, cos: Tensor, sin: Tensor, absolute: Tensor, only_if_positive: Tensor
    ) -> Tensor:
        """H - Ph + the turned Ph."""
        x, y = dot(h, b1), dot(h, b2)
        length = torch.sqrt(x * x + y * y)
        new_x = torch.where(absolute > 0, length * cos, x * cos - y * sin)
        new_y = torch.where(absolute > 0, length * sin, x * sin + y * cos)
        acts = (length > 0) & ((only_if_positive == 0) | (x > 0))
        return torch.where(acts, h + (new_x - x) * b1 + (new_y - y) * b2, h)


@dataclass(frozen=True, eq=False, repr=False)
class Slerp(Along):
    """Turn each state towards a direction along the great circle: h' = |h| slerp(h/|h|, u, t); the norm is kept.

    share: t, 0 leaves the state, 1 gives |h| u. A state that points exactly away from u is left as it is.
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        put(self, share=number(self.share, "share"))

    def tensors(self) -> Mapping[str, Tensor]:
        """U (d,), t (1,)."""
        return {"u": self.direction.unit, "share": torch.tensor([self.share])}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor, share: Tensor) -> Tensor:
        """|h| (cos(t w) h/|h| + sin(t w) n), n the part of u across h, w the angle between them."""
        norm = length(h)
        unit = h / norm.clamp(min=torch.finfo(h.dtype).tiny)
        cosine = dot(unit, u)
        across = u - cosine * unit
        size = length(across)
        angle = share * torch.atan2(size, cosine)
        turned = norm * (torch.cos(angle) * unit + torch.sin(angle) * across / size.clamp(min=1e-12))
        return torch.where((norm > 0) & (size > 1e-6), turned, h)
