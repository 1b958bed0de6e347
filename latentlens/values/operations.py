"""The operations: what an edit does to the states at a site. u is the direction's unit vector, v the vector itself.

    Add                 h + c v                               Scale           h + (s - 1)(h.u) u
    NormPreservingAdd   (h + c v) |h| / |h + c v|             ProjectOut      h - Q Q' h
    RelativeAdd         h + a |h| u                           ConceptEdit     h - (h.u) u + (r0.u) u + a r
    Clamp               h + (clip(h.u) - h.u) u               Reflect         h - 2 (h.u) u
    Rotate, Slerp       rotations, norm kept                  Affine          w * h + b, mixed with h
    Patch, AddAt        per position: replace, add            (SAE latents: see `latents`; gates: see `gates`)

All arithmetic is float32; one cast back to the model's type comes at the end. Where a formula has no answer (the
angle of a zero vector, the great circle to the opposite point) the state is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.interventions import Intervention, Unit


@dataclass(frozen=True, eq=False, repr=False)
class _Along(Intervention):
    """An operation along one direction."""

    direction: Direction

    def __post_init__(self) -> None:
        if not isinstance(self.direction, Direction):
            raise BadInput(
                f"{type(self).__name__} takes a Direction, not {type(self.direction).__name__}: Direction(vector, site)"
            )
        super().__post_init__()


@dataclass(frozen=True, eq=False, repr=False)
class Add(_Along):
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
        _set(self, coeff=_number(self.coeff, "coeff"), unit=_unit(self.unit))

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
        ratio = _norm(h) / _norm(new).clamp(min=torch.finfo(h.dtype).tiny)
        ratio = torch.where(only_if_grown > 0, ratio.clamp(max=1.0), ratio)
        return torch.where(_norm(new) > 0, new * ratio, h)


@dataclass(frozen=True, eq=False, repr=False)
class RelativeAdd(_Along):
    """Add the unit direction in proportion to each state's own norm: h' = h + a |h| u."""

    ratio: float = 0.0

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        _set(self, ratio=_number(self.ratio, "ratio"))

    def tensors(self) -> Mapping[str, Tensor]:
        """A u, (d,)."""
        return {"added": self.ratio * self.direction.unit}

    @staticmethod
    def formula(h: Tensor, *, added: Tensor) -> Tensor:
        """H + a |h| u."""
        return h + _norm(h) * added


@dataclass(frozen=True, eq=False, repr=False)
class Clamp(_Along):
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
        given = {n: _number(getattr(self, n), n) for n in ("to", "low", "high") if getattr(self, n) is not None}
        _set(self, unit=_unit(self.unit), **given)
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
        now = _dot(h, u)
        return h + (torch.minimum(torch.maximum(now, low), high) - now) * u

    def in_raw_units(self, norm: Callable[[Any], float]) -> Self:
        """Bounds times the median norm."""
        if self.unit == "raw":
            return self
        scale = norm(self.site)
        bounds = {n: getattr(self, n) * scale for n in ("to", "low", "high") if getattr(self, n) is not None}
        return replace(self, unit="raw", **bounds)


@dataclass(frozen=True, eq=False, repr=False)
class Scale(_Along):
    """Stretch the component along a direction: h' = h + (s - 1)(h.u) u; s = 0 removes it."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        _set(self, factor=_number(self.factor, "factor"))

    def tensors(self) -> Mapping[str, Tensor]:
        """U (d,), s - 1 (1,)."""
        return {"u": self.direction.unit, "more": torch.tensor([self.factor - 1.0])}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor, more: Tensor) -> Tensor:
        """H + (s - 1)(h.u) u."""
        return h + more * _dot(h, u) * u


@dataclass(frozen=True, eq=False, repr=False)
class Reflect(_Along):
    """Reflect at the hyperplane across a direction (Householder): h' = h - 2 (h.u) u; the norm is kept.

    Source: Householder pseudo-rotation, Pham and Nguyen (arXiv 2409.10053).
    """

    def tensors(self) -> Mapping[str, Tensor]:
        """U, (d,)."""
        return {"u": self.direction.unit}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor) -> Tensor:
        """H - 2 (h.u) u."""
        return h - 2.0 * _dot(h, u) * u


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
        vectors = torch.stack([d.unit.double() for d in self.directions], 1)
        left, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
        return {"basis": left[:, sizes > 1e-6].float()}

    @staticmethod
    def formula(h: Tensor, *, basis: Tensor) -> Tensor:
        """H - Q Q' h."""
        return h - ((h.unsqueeze(-2) @ basis) @ basis.mT).squeeze(-2)


@dataclass(frozen=True, eq=False, repr=False)
class ConceptEdit(_Along):
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
        _set(self, amount=_number(self.amount, "amount"), reference=reference)

    def tensors(self) -> Mapping[str, Tensor]:
        """U (d,), and what is put in place of the removed part (d,)."""
        u = self.direction.unit
        return {"u": u, "put": (self.reference @ u) * u + self.amount * self.direction.vector}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor, put: Tensor) -> Tensor:
        """H - (h.u) u + proj_r r0 + a r."""
        return h - _dot(h, u) * u + put


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
        _set(self, **{name: _number(getattr(self, name), name)})

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
        x, y = _dot(h, b1), _dot(h, b2)
        length = torch.sqrt(x * x + y * y)
        new_x = torch.where(absolute > 0, length * cos, x * cos - y * sin)
        new_y = torch.where(absolute > 0, length * sin, x * sin + y * cos)
        acts = (length > 0) & ((only_if_positive == 0) | (x > 0))
        return torch.where(acts, h + (new_x - x) * b1 + (new_y - y) * b2, h)


@dataclass(frozen=True, eq=False, repr=False)
class Slerp(_Along):
    """Turn each state towards a direction along the great circle: h' = |h| slerp(h/|h|, u, t); the norm is kept.

    share: t, 0 leaves the state, 1 gives |h| u. A state that points exactly away from u is left as it is.
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        _set(self, share=_number(self.share, "share"))

    def tensors(self) -> Mapping[str, Tensor]:
        """U (d,), t (1,)."""
        return {"u": self.direction.unit, "share": torch.tensor([self.share])}

    @staticmethod
    def formula(h: Tensor, *, u: Tensor, share: Tensor) -> Tensor:
        """|h| (cos(t w) h/|h| + sin(t w) n), n the part of u across h, w the angle between them."""
        norm = _norm(h)
        unit = h / norm.clamp(min=torch.finfo(h.dtype).tiny)
        cosine = _dot(unit, u)
        across = u - cosine * unit
        size = _norm(across)
        angle = share * torch.atan2(size, cosine)
        turned = norm * (torch.cos(angle) * unit + torch.sin(angle) * across / size.clamp(min=1e-12))
        return torch.where((norm > 0) & (size > 1e-6), turned, h)


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
        weight, bias = _vectors(self.weight, "weight", 1), _vectors(self.bias, "bias", 1)
        if weight.shape != bias.shape:
            raise BadInput(f"weight has shape {tuple(weight.shape)}, bias {tuple(bias.shape)}: they must agree")
        _set(self, weight=weight, bias=bias, mix=_number(self.mix, "mix"))

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


@dataclass(frozen=True, eq=False, repr=False)
class _PerPosition(Intervention):
    """An operation with one vector per selected position: the k-th selected position of a row gets vector k."""

    vectors: Any
    positional = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = torch.as_tensor(self.vectors)
        _set(self, vectors=_vectors(given[None] if given.ndim == 1 else given, "vectors", 2))

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.vectors.shape[-1]

    def tensors(self) -> Mapping[str, Tensor]:
        """(m, d)."""
        return {"vectors": self.vectors}

    @staticmethod
    def _picked(vectors: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The vector of each state, and whether there is one."""
        has, index = order < vectors.shape[-2], order.clamp(max=vectors.shape[-2] - 1)
        if vectors.ndim == 2:
            return vectors[index], has[:, None]
        return vectors[torch.arange(len(order), device=order.device), index], has[:, None]


@dataclass(frozen=True, eq=False, repr=False)
class Patch(_PerPosition):
    """Replace states by others (activation patching): the k-th selected position becomes vectors[k].

    vectors: (m, d), or (d,) for one position; e.g. `acts["resid_post[3]"]` of another prompt. Selected positions
    beyond m are left as they are.
    """

    @staticmethod
    def formula(h: Tensor, *, vectors: Tensor, order: Tensor) -> Tensor:
        """Vectors[k]."""
        new, has = _PerPosition._picked(vectors, order)
        return torch.where(has, new, h)


@dataclass(frozen=True, eq=False, repr=False)
class AddAt(_PerPosition):
    """Add one vector per position: the k-th selected position gets + coeff * vectors[k] (ActAdd's front positions).

    Source: Turner et al. (arXiv 2308.10248): the difference of two prompts' activations, where="first-m".
    """

    coeff: float = 1.0

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        _set(self, coeff=_number(self.coeff, "coeff"))

    def tensors(self) -> Mapping[str, Tensor]:
        """Coeff * vectors, (m, d)."""
        return {"vectors": self.coeff * self.vectors}

    @staticmethod
    def formula(h: Tensor, *, vectors: Tensor, order: Tensor) -> Tensor:
        """H + c vectors[k]."""
        added, has = _PerPosition._picked(vectors, order)
        return torch.where(has, h + added, h)


def _dot(h: Tensor, u: Tensor) -> Tensor:
    """(n, 1): products summed per state, so a state's result does not depend on its neighbours."""
    return (h * u).sum(-1, keepdim=True)


def _norm(h: Tensor) -> Tensor:
    return h.norm(dim=-1, keepdim=True)


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadInput(f"{name}={value!r} is not a number") from None
    if not math.isfinite(number):
        raise BadInput(f"{name}={number} is not a finite number")
    return number


def _unit(unit: Any) -> Any:
    if unit not in ("raw", "norm"):
        raise BadInput(f"unit={unit!r}: allowed are 'raw' and 'norm' (median norms of the states at the site)")
    return unit


def _vectors(value: Any, name: str, ndim: int) -> Tensor:
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float32).clone()
    if tensor.ndim != ndim or tensor.numel() == 0 or not torch.isfinite(tensor).all():
        shape = "(d,)" if ndim == 1 else "(positions, d)"
        raise BadInput(f"{name} must be finite and of shape {shape}; it has shape {tuple(tensor.shape)}")
    return tensor


def _set(item: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(item, name, value)
