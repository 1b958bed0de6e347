"""What a comparison of steering methods found: a row a method, and the same for every concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from latentlens.errors import BadInput
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["method", "control"]


@dataclass(frozen=True, eq=False)
class MethodScore:
    """One method over some concepts; scores run from 0 to 2, intervals resample prompts.

    At the same KL budget, mean over concepts:
        concept: the concept in the answers. above_random: that minus the random directions' mean, prompt by prompt.
        task: the answer still does what was asked; None where no concept has a task. fluency: graded from the unsteered
        likelihood. nll: nats a token under the unsteered model, change to the unedited answers. off_target: mean over
        what should not change of |mean change|.

    harmonic: AxBench's mean of concept, task and fluency, 0 if any is 0; the strength is chosen on one half of the
        prompts, the score comes from the other half. factors: the strengths chosen, in units of the budget's.
    slowdown: seconds a token over those without edit. fit_seconds: to find the direction, mean over concepts.
    left_out: concepts that the method could not be fitted to, with the reason.
    """

    method: str
    role: Role
    concept: Estimate
    above_random: Estimate | None
    task: Estimate | None
    fluency: Estimate
    nll: Estimate
    off_target: Estimate
    harmonic: Estimate
    factors: Mapping[str, float]
    by_concept: Mapping[str, Estimate]
    slowdown: Estimate | None = None
    fit_seconds: float | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MethodBench(Shown):
    """All methods of a comparison, controls included, in the order of their harmonic mean.

    concepts: what was steered towards. about: model, budget, prompts, blocks, strengths.
    """

    scores: tuple[MethodScore, ...]
    concepts: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, method: str) -> MethodScore:
        """One method's scores. Raises: BadInput: not compared."""
        for one in self.scores:
            if one.method == method:
                return one
        raise BadInput(f"{method!r} was not compared; there are {', '.join(one.method for one in self.scores)}")

    def __len__(self) -> int:
        return len(self.scores)

    def label(self, one: MethodScore) -> str:
        """Name of a method, with the number of concepts that its means are over where it is not all."""
        part = f" ({len(one.by_concept)} of {len(self.concepts)})" if len(one.by_concept) < len(self.concepts) else ""
        return one.method + part

    def to_frame(self) -> pd.DataFrame:
        """One row a method: every mean with its ends, counts, cost, concepts left out."""
        import pandas as pd

        lines = []
        for one in self.scores:
            line: dict[str, Any] = {"method": one.method, "role": one.role}
            for name in ("harmonic", "concept", "above_random", "task", "fluency", "nll", "off_target", "slowdown"):
                found: Estimate | None = getattr(one, name)
                line |= {name: None if found is None else found.value}
                line |= {f"{name}_low": None if found is None else found.low}
                line |= {f"{name}_high": None if found is None else found.high}
            line |= {"fit_seconds": one.fit_seconds, "n": one.concept.n, "concepts": len(one.by_concept)}
            lines.append(line | {"left out": "; ".join(f"{k}: {v}" for k, v in one.left_out.items())})
        return pd.DataFrame(lines)

    def table(self) -> pd.DataFrame:
        """The same for people, intervals as text."""
        import pandas as pd

        short = lambda e: "" if e is None else f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"
        return pd.DataFrame(
            {
                "method": self.label(one) + (" *" if one.role == "control" else ""),
                "harmonic mean": short(one.harmonic),
                "concept": short(one.concept),
                "above random": short(one.above_random),
                "task": short(one.task),
                "fluency": short(one.fluency),
                "nats a token": short(one.nll),
                "off target": short(one.off_target),
                "time a token": "" if one.slowdown is None else f"x{one.slowdown.value:.2f}",
                "fit, s": "" if one.fit_seconds is None else f"{one.fit_seconds:.2f}",
            }
            for one in self.scores
        )

    def by_concept(self) -> pd.DataFrame:
        """Concept score at the budget, a row a method and a column a concept."""
        import pandas as pd

        return pd.DataFrame(
            {"method": one.method, **{name: one.by_concept.get(name) for name in self.concepts}} for one in self.scores
        )

    def written(self, frame: pd.DataFrame, prompt: Any = 0, *, chosen: bool = False) -> pd.DataFrame:
        """Answers to one prompt by every arm, to be read: at the budget, or at the strength chosen for each.

        Args: frame: what was compared. prompt: as in its column. chosen: at `MethodScore.factors`. Of several draws the
            first is shown; where they chose different strengths, there is none to show.
        """
        one = frame[(frame["prompt"] == prompt) & (frame["draw"] == 0)]
        wanted = [
            f == (self[str(m)].factors.get(str(c)) if chosen else 1)
            for m, c, f in zip(one["method"], one["concept"], one["factor"], strict=True)
        ]
        names = ["concept", "method", "factor", "text", "score", "task", "fluency", "mean nll"]
        return one.loc[wanted, [name for name in names if name in one]].reset_index(drop=True)

    def __repr__(self) -> str:
        best = next((one for one in self.scores if one.role == "method"), None)
        lead = "" if best is None else f"; best of the methods {best.method}: harmonic mean {best.harmonic.short}"
        return f"MethodBench({len(self.scores)} arms, {len(self.concepts)} concepts{lead})"
