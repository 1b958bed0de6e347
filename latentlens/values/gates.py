"""Acting only when a condition holds: read at one site, decided per row or per token, acting at another site.

Gate(Add(v, 4.0), Condition(c, threshold=0.2, score="cosine"))
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.interventions import Described, Edit, Intervention
from latentlens.values.where import Where

Score = Literal["projection", "cosine", "cast", "probe"]


@dataclass(frozen=True, eq=False)
class Condition(Described):
    """A score of a state against a direction c, compared with a threshold.

    score:  projection  h . c/|c|                        cosine  h . c / (|h| |c|)
            cast        cos(h, tanh(P h)), P = c c'/c'c   probe   sigmoid(h . c + bias)
    threshold: it holds where score > threshold (above=True) or score < threshold (above=False).
    latched: True decides once per row, on the mean of the prompt positions that `where` selects, and keeps the
        decision; False decides at every position for itself.
    site: where it is read, by default the direction's; it must not come after the site where the edit acts.

    A zero state scores 0. Source: CAST, Lee et al. (arXiv 2409.05907); there the comparator named "larger" fires when
    the similarity is SMALLER than the threshold, here `above` means above.
    """

    direction: Direction
    threshold: float = 0.0
    score: Score = "projection"
    above: bool = True
    latched: bool = True
    bias: float = 0.0
    where: Any = Where("prompt")  # noqa: RUF009 - frozen, so safe to share
    site: Any = None

    def __post_init__(self) -> None:
        """Check the direction and the score."""
        if not isinstance(self.direction, Direction):
            raise BadInput(f"Condition takes a Direction, not {type(self.direction).__name__}")
        if self.score not in ("projection", "cosine", "cast", "probe"):
            raise BadInput(f"score={self.score!r}: allowed are projection, cosine, cast and probe")
        given = {"threshold": float(self.threshold), "bias": float(self.bias), "where": Where.of(self.where)}
        given["site"] = self.direction.site if self.site is None else self.site
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def at(self, site: Any) -> Condition:
        """The same condition read at another site."""
        return replace(self, site=site)

    def scores(self, states: Tensor) -> Tensor:
        """Score of each state, (n,) from float32 (n, d)."""
        c = self.direction.vector.to(states.device)
        if self.score == "probe":
            return torch.sigmoid((states * c).sum(-1) + self.bias)
        if self.score == "cast":
            image = torch.tanh((states * c).sum(-1, keepdim=True) / (c @ c) * c)
            return torch.nn.functional.cosine_similarity(states, image, dim=-1, eps=1e-12)
        along = (states * c).sum(-1) / c.norm()
        return along if self.score == "projection" else along / states.norm(dim=-1).clamp(min=1e-12)

    def holds(self, states: Tensor) -> Tensor:
        """Whether the condition holds for each state, (n,) bool."""
        scores = self.scores(states.float())
        return scores > self.threshold if self.above else scores < self.threshold


@dataclass(frozen=True, eq=False)
class Gate(Intervention):
    """An intervention that acts only where its condition holds, row by row or token by token.

    Gates nest: all conditions must hold.
    """

    inner: Intervention
    condition: Condition

    def __init__(self, inner: Intervention, condition: Condition) -> None:
        if not isinstance(inner, Intervention):
            raise BadInput(f"Gate takes an intervention and a Condition, not {type(inner).__name__} first")
        if not isinstance(condition, Condition):
            raise BadInput(f"Gate takes an intervention and a Condition, not {type(condition).__name__} second")
        for name, value in {"inner": inner, "condition": condition}.items():
            object.__setattr__(self, name, value)
        for name in (f.name for f in fields(Intervention)):
            object.__setattr__(self, name, getattr(inner, name))

    @property
    def conditions(self) -> tuple[Condition, ...]:  # type: ignore[override]
        """All conditions, the outermost first."""
        return (self.condition, *self.inner.conditions)

    @property
    def bare(self) -> Intervention:
        """What acts when all conditions hold."""
        return self.inner.bare

    @property
    def lane(self) -> Any:
        """That of the inner intervention, apart for each condition."""
        return ("Gate", self.condition.fingerprint, self.inner.lane)

    @property
    def positional(self) -> bool:  # type: ignore[override]
        """As the inner intervention."""
        return self.inner.positional

    @property
    def reads(self) -> Any:  # type: ignore[override]
        """As the inner intervention."""
        return self.inner.reads

    @property
    def width(self) -> int | None:
        """Width of the inner intervention."""
        return self.inner.width

    @classmethod
    def stacked(cls, items: Any) -> Edit:
        """The inner interventions as one function."""
        inner = [item.bare for item in items]
        return type(inner[0]).stacked(inner)

    def edit(self, states: Tensor) -> Tensor:
        """The inner edit, the gate being open."""
        return self.inner.edit(states)

    def at(self, site: Any) -> Gate:
        """The inner intervention at another site; the condition stays where it is."""
        return Gate(self.inner.at(site), self.condition)

    def scaled(self, schedule: Any) -> Gate:
        """The inner intervention on another schedule."""
        return Gate(self.inner.scaled(schedule), self.condition)

    def in_raw_units(self, norm: Any) -> Gate:
        """The inner intervention in raw units."""
        return Gate(self.inner.in_raw_units(norm), self.condition)

    def __repr__(self) -> str:
        side = ">" if self.condition.above else "<"
        kind = "per row" if self.condition.latched else "per token"
        c = self.condition
        return f"Gate({self.inner!r} where {c.score} at {c.site} {side} {c.threshold:g}, {kind})"
