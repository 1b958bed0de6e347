"""What operations share: arguments checked, and products taken state by state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction


def dot(h: Tensor, u: Tensor) -> Tensor:
    """(n, 1): h . u, summed per state, so that a state's result does not depend on its neighbours."""
    return (h * u).sum(-1, keepdim=True)


def length(h: Tensor) -> Tensor:
    """(n, 1): |h|."""
    return h.norm(dim=-1, keepdim=True)


def span(directions: Sequence[Direction]) -> Tensor:
    """Orthonormal basis of what directions span, (d, rank), float32."""
    vectors = torch.stack([d.unit.double() for d in directions], 1)
    left, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
    return left[:, sizes > 1e-6].float()


def number(value: Any, name: str) -> float:
    """A finite float. Raises: BadInput."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise BadInput(f"{name}={value!r} is not a number") from None
    if not math.isfinite(found):
        raise BadInput(f"{name}={found} is not a finite number")
    return found


def known_unit(unit: Any) -> Any:
    """The unit of a strength. Raises: BadInput."""
    if unit not in ("raw", "norm"):
        raise BadInput(f"unit={unit!r}: allowed are 'raw' and 'norm' (median norms of the states at the site)")
    return unit


def vectors_of(value: Any, name: str, ndim: int) -> Tensor:
    """A finite float32 copy on the CPU with so many dimensions. Raises: BadInput."""
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float32).clone()
    if tensor.ndim != ndim or tensor.numel() == 0 or not torch.isfinite(tensor).all():
        shape = "(d,)" if ndim == 1 else "(positions, d)"
        raise BadInput(f"{name} must be finite and of shape {shape}; it has shape {tuple(tensor.shape)}")
    return tensor


def put(item: Any, **values: Any) -> None:
    """Set checked fields of a frozen dataclass, in its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(item, name, value)
