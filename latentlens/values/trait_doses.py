"""What a trait vector does over strengths, beside everything that it could be mistaken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class TraitDoses(Shown):
    """Score of a trait under rising strengths of its vector, with the controls of the same run.

    strengths: ascending from 0; at 0 no edit, so every curve begins there. unit: of the strengths, in words.
    direction: mean score. random: one curve a draw, directions of equal norm. other_vectors: name -> curve, vectors of
    other traits at the same norms. prompted: asked for in words, without an edit; None where it was not.
    steps: paired change from each strength to the next. above_random: paired difference to the mean of the draws.
    off_target: name -> what this vector does to the scores of other traits.
    coherence, nll: of the answers under this vector; random_nll under the draws. n: answers a point.
    """

    trait: str
    strengths: tuple[float, ...]
    unit: str
    direction: tuple[Estimate, ...]
    random: tuple[tuple[Estimate, ...], ...]
    other_vectors: Mapping[str, tuple[Estimate, ...]]
    prompted: Estimate | None
    steps: tuple[Estimate, ...]
    above_random: tuple[Estimate, ...]
    off_target: Mapping[str, tuple[Estimate, ...]]
    coherence: tuple[Estimate, ...]
    nll: tuple[Estimate, ...]
    random_nll: tuple[Estimate, ...]
    n: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def monotone(self) -> bool:
        """Whether the mean score rises at every step, and the whole rise is beyond its interval."""
        values = [e.value for e in self.direction]
        return all(b > a for a, b in pairwise(values)) and self.direction[-1].low > self.direction[0].high

    def to_frame(self) -> pd.DataFrame:
        """One row an arm and strength: score with its ends."""
        import pandas as pd

        curves: list[tuple[str, Sequence[Estimate]]] = [("direction", self.direction)]
        curves += [(f"random {i}", curve) for i, curve in enumerate(self.random)]
        curves += [(f"vector of {name}", curve) for name, curve in self.other_vectors.items()]
        curves += [(f"score of {name}", curve) for name, curve in self.off_target.items()]
        curves += [("coherence", self.coherence), ("nats a token", self.nll), ("nats a token, random", self.random_nll)]
        rows = [(arm, c, e) for arm, curve in curves for c, e in zip(self.strengths, curve, strict=True)]
        rows += [] if self.prompted is None else [("prompt", 0.0, self.prompted)]
        return pd.DataFrame(
            {"trait": self.trait, "arm": arm, "strength": c, "value": e.value, "low": e.low, "high": e.high, "n": e.n}
            for arm, c, e in rows
        )

    def table(self) -> pd.DataFrame:
        """For people: one row a strength."""
        import pandas as pd

        def mean(curves: Sequence[Sequence[Estimate]], i: int) -> float:
            return sum(curve[i].value for curve in curves) / len(curves) if curves else float("nan")

        return pd.DataFrame(
            {
                "strength": c,
                "score": self.direction[i],
                "step": None if i == 0 else self.steps[i - 1],
                f"{len(self.random)} random": mean(self.random, i),
                "above random": self.above_random[i] if i else None,
                "other vectors": mean(list(self.other_vectors.values()), i),
                "scores of other traits": mean(list(self.off_target.values()), i),
                "coherence": self.coherence[i],
                "nats a token": self.nll[i],
                "nats, random": self.random_nll[i],
            }
            for i, c in enumerate(self.strengths)
        )

    def __repr__(self) -> str:
        last = f"{self.direction[0].short} to {self.direction[-1].short} at {self.strengths[-1]:g}"
        asked = "" if self.prompted is None else f", asked for in words {self.prompted.short}"
        return (
            f"TraitDoses({self.trait}: score {last}, above random {self.above_random[-1].short}{asked}; "
            f"{'rises' if self.monotone else 'does not rise'} at every step; n={self.n} a point)"
        )
