"""Operations with one vector per selected position: activation patching, and vectors added token by token.

    Patch         h' = v_k                          AddAt         h' = h + c v_k
    PatchUnits    h'_i = v_k,i  for some i          PatchAlong    h' = h + Q Q' (v_k - h)

v_k is the vector of the k-th selected position of a row; positions beyond the last vector are left as they are.
`PatchLatents` (in `latent_patches`) does the same to codes of an SAE.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.arguments import number, put, span, vectors_of
from latentlens.values.directions import Direction
from latentlens.values.interventions import Edit, Intervention


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

    @property
    def lane(self) -> Hashable:
        """Interventions of one width are evaluated together, however many positions each has."""
        rest = ((name, tuple(t.shape)) for name, t in self.tensors().items() if name != "vectors")
        return (type(self).__name__, self.width, *rest)

    @classmethod
    def stacked(cls, items: Sequence[Any]) -> Edit:
        """One function for several interventions of one lane; `formula` gets the vector of each state, (n, d)."""
        return _Ragged(cls, items)


@dataclass
class _Ragged:
    """Vectors of several interventions, one after the other, so that a state costs one row and not a table."""

    kind: type[Intervention]
    items: Sequence[Intervention]
    _on: dict[torch.device, tuple[PositionTable, dict[str, Tensor]]] = field(default_factory=dict)

    def __call__(self, states: Tensor, which: Tensor | None, order: Tensor | None) -> Tensor:
        if states.device not in self._on:
            given = [dict(item.tensors()) for item in self.items]
            table = PositionTable.of([tensors.pop("vectors") for tensors in given], states.device)
            rest = {name: torch.stack([t[name] for t in given]).to(states.device) for name in given[0]}
            self._on[states.device] = table, rest
        table, rest = self._on[states.device]
        assert order is not None
        has, vectors = table(which, order)
        tensors = {name: t[0] if which is None else t[which] for name, t in rest.items()}
        return torch.where(has, self.kind.formula(states, vectors=vectors, **tensors), states)


@dataclass(frozen=True)
class PositionTable:
    """Rows of several tables one below the other: `rows[start[i] + k]` belongs to the k-th position of item i."""

    rows: Tensor
    start: Tensor
    count: Tensor

    @classmethod
    def of(cls, tables: Sequence[Tensor], device: torch.device) -> PositionTable:
        """Tables (m_i, d), each with at least one row."""
        count = torch.tensor([len(table) for table in tables])
        start = count.cumsum(0) - count
        return cls(torch.cat(list(tables)).to(device, torch.float32), start.to(device), count.to(device))

    def __call__(self, which: Tensor | None, order: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each state has a row, (n, 1), and that row, (n, d)."""
        item = torch.zeros_like(order) if which is None else which
        has = order < self.count[item]
        return has[:, None], self.rows[self.start[item] + torch.minimum(order, self.count[item] - 1)]


@dataclass(frozen=True, eq=False, repr=False)
class Patch(_PerPosition):
    """Replace states by others (activation patching): the k-th selected position becomes vectors[k].

    vectors: (m, d), or (d,) for one position; e.g. `acts["resid_post[3]"]` of another prompt. Selected positions
    beyond m are left as they are.
    """

    @staticmethod
    def formula(h: Tensor, *, vectors: Tensor) -> Tensor:
        """Vectors[k]."""
        return vectors


@dataclass(frozen=True, eq=False, repr=False)
class PatchUnits(_PerPosition):
    """Replace some coordinates by those of other states: neurons of `mlp_post`, or a head's part of `z`.

    vectors: (m, d), whole states; only the coordinates in `units` are taken.
    """

    units: Any = ()

    def __post_init__(self) -> None:
        """Check the coordinates."""
        super().__post_init__()
        try:
            units = tuple(sorted({int(i) for i in self.units}))
        except (TypeError, ValueError):
            raise BadInput(f"units={self.units!r}: give the indices of the coordinates to replace") from None
        if not units or units[0] < 0 or units[-1] >= self.width:
            raise BadInput(f"units={list(units)[:5]}: at least one index, each from 0 to {self.width - 1}")
        put(self, units=units)

    def tensors(self) -> Mapping[str, Tensor]:
        """Vectors (m, d), and which coordinates are taken, (d,)."""
        taken = torch.zeros(self.width)
        taken[list(self.units)] = 1.0
        return {**super().tensors(), "taken": taken}

    @staticmethod
    def formula(h: Tensor, *, vectors: Tensor, taken: Tensor) -> Tensor:
        """Vectors[k] at the coordinates taken, h elsewhere."""
        return torch.where(taken > 0, vectors, h)


@dataclass(frozen=True, eq=False, repr=False)
class PatchAlong(_PerPosition):
    """Replace the coordinates along directions by those of other states: h' = h + Q Q' (v - h).

    vectors: (m, d), whole states. directions: one, or several whose span is taken.

    Source: interchange interventions on subspaces, Geiger et al. (arXiv 2303.02536).
    """

    directions: Any = ()

    def __post_init__(self) -> None:
        """Take one direction or several."""
        given = self.directions if isinstance(self.directions, Sequence) else (self.directions,)
        if not given or not all(isinstance(d, Direction) for d in given):
            raise BadInput("PatchAlong takes directions=, a Direction or a list of them")
        object.__setattr__(self, "directions", tuple(given))
        super().__post_init__()
        if any(d.vector.numel() != self.width for d in given):
            raise BadInput(f"the directions of a PatchAlong must have the width of its vectors, {self.width}")

    def tensors(self) -> Mapping[str, Tensor]:
        """Vectors (m, d) and an orthonormal basis of the directions (d, rank)."""
        return {**super().tensors(), "basis": span(self.directions)}

    @staticmethod
    def formula(h: Tensor, *, vectors: Tensor, basis: Tensor) -> Tensor:
        """H + Q Q' (v - h)."""
        return h + (((vectors - h).unsqueeze(-2) @ basis) @ basis.mT).squeeze(-2)


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
    def formula(h: Tensor, *, vectors: Tensor) -> Tensor:
        """H + c vectors[k]."""
        return h + vectors
