"""Which of many candidate directions was chosen, by which numbers, and why not the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentlens.values.directions import Direction
from latentlens.values.markup import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Candidate:
    """One direction and what it does.

    ablation: mean refusal score of harmful prompts with the direction projected out everywhere: low is wanted.
    kl: mean KL of harmless prompts, unsteered to ablated, at the last position, in nats.
    induce: mean refusal score of harmless prompts with the direction added at its site: high is wanted.
    rejected: why it was left out; "" if it was not.
    """

    direction: Direction
    ablation: float
    kl: float
    induce: float
    rejected: str = ""


@dataclass(frozen=True, eq=False)
class DirectionChoice(Shown):
    """The candidate with the lowest refusal score under ablation of those that pass the constraints.

    direction: it. candidates: all, in the order given. limits: the constraints, by name.
    """

    direction: Direction
    candidates: tuple[Candidate, ...]
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def chosen(self) -> Candidate:
        """The candidate that was chosen, with its numbers."""
        return next(c for c in self.candidates if c.direction is self.direction)

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate: site, name, ablation, kl, induce, rejected, chosen."""
        import pandas as pd

        return pd.DataFrame(
            {
                "site": str(c.direction.site),
                "name": c.direction.name,
                "ablation": c.ablation,
                "kl": c.kl,
                "induce": c.induce,
                "rejected": c.rejected,
                "chosen": c.direction is self.direction,
            }
            for c in self.candidates
        )

    def __repr__(self) -> str:
        reasons = Counter(c.rejected for c in self.candidates if c.rejected)
        left_out = "; ".join(f"{n} {reason}" for reason, n in reasons.items()) or "none left out"
        best = self.chosen
        return (
            f"DirectionChoice({self.direction!r} of {len(self.candidates)}: refusal score {best.ablation:.3f} ablated, "
            f"{best.induce:.3f} induced, KL {best.kl:.3f}; {left_out})"
        )
