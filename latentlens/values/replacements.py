"""Operations with one vector per selected position: activation patching, and vectors added token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlens.values.arguments import number, put, vectors_of
from latentlens.values.interventions import Intervention


@dataclass(frozen=True, eq=False, repr=False)
class _PerPosition(Intervention):
    """An operation with one vector per selected position: the k-th selected position of a row gets vector k."""

    vectors: Any
    positional = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = torch.as_tensor(self.vectors)
        put(self, vectors=vectors_of(given[None] if given.ndim == 1 else given, "vectors", 2))

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
        put(self, coeff=number(self.coeff, "coeff"))

    def tensors(self) -> Mapping[str, Tensor]:
        """Coeff * vectors, (m, d)."""
        return {"vectors": self.coeff * self.vectors}

    @staticmethod
    def formula(h: Tensor, *, vectors: Tensor, order: Tensor) -> Tensor:
        """H + c vectors[k]."""
        added, has = _PerPosition._picked(vectors, order)
        return torch.where(has, h + added, h)
