"""What may be changed inside a model while it reads and writes.

An intervention is a value: an operation x a site x a selection of positions. It knows how to edit a
float32 tensor and nothing of models; access decides where and when it is applied. To add an
operation, write a frozen dataclass with these four members.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.sites import Site
from latentlens.values.where import Where


@runtime_checkable
class Intervention(Protocol):
    """The contract of every operation."""

    @property
    def site(self) -> Site:
        """Where in the model it acts."""
        ...

    @property
    def where(self) -> Where:
        """At which positions of the unpadded row it acts."""
        ...

    def edit(self, states: Tensor) -> Tensor:
        """New states (n, d) from states (n, d), both float32."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that changes its arithmetic."""
        ...


@dataclass(frozen=True)
class Add:
    """Add a direction to the residual stream: h' = h + coeff * v.

    direction: v, used at its own length (scale it with `coeff` or `direction.scaled_to`).
    where: "all" by default; "response" acts on generated tokens only and so leaves the first sampled
    token as it was, because that is read off the last prompt token.

    Source: activation addition, Turner et al. (arXiv 2308.10248); CAA, Rimsky et al. (arXiv 2312.06681).
    """

    direction: Direction
    coeff: float = 1.0
    where: Where = Where("all")  # noqa: RUF009 - frozen, so safe to share

    def __init__(self, direction: Direction, coeff: float = 1.0, where: Any = "all") -> None:
        if not isinstance(direction, Direction):
            raise BadInput(f"Add takes a Direction, not {type(direction).__name__}: Direction(vector, site)")
        coeff = float(coeff)
        if coeff != coeff or coeff in (float("inf"), float("-inf")):
            raise BadInput(f"coeff={coeff} is not a finite number")
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "coeff", coeff)
        object.__setattr__(self, "where", Where.of(where))

    @property
    def site(self) -> Site:
        """The site of the direction."""
        return self.direction.site

    def edit(self, states: Tensor) -> Tensor:
        """H + coeff * v."""
        return states + self.coeff * self.direction.vector.to(states.device)

    @property
    def fingerprint(self) -> str:
        """Hex digest of direction, coeff and where."""
        about = ["add", self.direction.fingerprint, self.coeff, self.where.kind, list(self.where.args)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Add({self.direction.name or self.direction!r} at {self.site}, {self.coeff:+g}, {self.where})"


def as_plan(steer: Any) -> tuple[Intervention, ...]:
    """One plan from None, one intervention or a sequence of them; applied in the given order.

    Raises: BadInput: something in it is no intervention.
    """
    if steer is None:
        return ()
    plan: Sequence[Any] = tuple(steer) if isinstance(steer, Iterable) else (steer,)
    for item in plan:
        if not isinstance(item, Intervention):
            raise BadInput(f"steer= takes interventions such as ll.Add(direction, 2.0), not {type(item).__name__}")
    return tuple(plan)


def plan_fingerprint(plan: Sequence[Intervention]) -> str:
    """Digest of a plan; the empty plan has the empty digest, so clean is clean however it was asked for."""
    if not plan:
        return ""
    return hashlib.sha256("|".join(item.fingerprint for item in plan).encode()).hexdigest()
