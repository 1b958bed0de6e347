"""What calibrating a strength found, frozen.

KlBudget         the strength at which the steered model differs by a given KL
ScoreThreshold   the strength at which a score falls to a target
DoseResponse     effect, side effect and fluency over a grid of strengths
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd

# The end of the allowed strengths behind which the answer lies; "" when it lies between them.
End = Literal["", "low", "high"]


@dataclass(frozen=True)
class KlBudget(Shown):
    """A strength, and the KL that it spends.

    coeff: the strength to use, in the unit of the caller. Of the strengths tried, the one whose KL came nearest
        to the target (in ratio); of equals the last. Where the target is not bracketed that is an end of the range.
    achieved: the quantile of the per-token KL there, in nats. target, quantile, tol: what was asked for.
    n_tokens: tokens behind `achieved`.
    trace: (strength, KL, tokens) of every question, in order. A KL of infinity stands for NaN or overflow.
    bracketed: one strength was below the target and one above. end: otherwise, where the answer must lie:
        "low": even the smallest allowed strength spends more; "high": even the largest spends less.
    """

    coeff: float
    achieved: float
    target: float
    quantile: float
    tol: float
    n_tokens: int
    trace: tuple[tuple[float, float, int], ...]
    bracketed: bool
    end: End = ""

    @property
    def iterations(self) -> int:
        """How often the KL was measured."""
        return len(self.trace)

    @property
    def converged(self) -> bool:
        """Whether the KL is within `tol`, as a share of the target. False where greedy text jumps past it."""
        return abs(self.achieved - self.target) <= self.tol * self.target

    def to_frame(self) -> pd.DataFrame:
        """One row a question: coeff, kl, n_tokens."""
        import pandas as pd

        return pd.DataFrame(self.trace, columns=["coeff", "kl", "n_tokens"])

    def __repr__(self) -> str:
        found = f"KlBudget(coeff={self.coeff:.4g}: p{100 * self.quantile:g} of KL = {self.achieved:.4g} nat"
        asked = f"asked {self.target:g} +- {self.tol:.0%}, {self.n_tokens} tokens, {self.iterations} questions"
        state = "" if self.converged else "; NOT CONVERGED"
        if not self.bracketed:
            state = f"; NOT BRACKETED, the answer lies {_BEYOND[self.end]}"
        return f"{found}; {asked}{state})"


@dataclass(frozen=True)
class ScoreThreshold(Shown):
    """A strength at which the mean score falls to the target, by probabilistic bisection.

    coeff: posterior median, an entry of the grid. low, high: ends of the central posterior interval of `level`
        coverage: the belief of this procedure, not a confidence interval of repeated experiments.
    target: the score asked for. effective_target: the score that the update in fact converges to (see
        `calibrate.bisect_score`).
    trace: (strength asked, mean score answered) of every round. resampled: questions asked again without answer.
    bracketed: a score on either side of the target was seen and the median is inside the grid. end: otherwise
        where the answer must lie; "" as well when no question was answered.
    complete: every round was answered.
    """

    coeff: float
    low: float
    high: float
    level: float
    target: float
    effective_target: float
    trace: tuple[tuple[float, float], ...]
    resampled: int
    bracketed: bool
    end: End = ""
    complete: bool = True

    def to_frame(self) -> pd.DataFrame:
        """One row a round: coeff, score."""
        import pandas as pd

        return pd.DataFrame(self.trace, columns=["coeff", "score"])

    def __repr__(self) -> str:
        state = "" if self.complete else f"; STOPPED after {len(self.trace)} rounds: no answers"
        if not self.bracketed:
            state += f"; NOT BRACKETED{', the answer lies ' + _UNASKED[self.end] if self.end else ''}"
        return (
            f"ScoreThreshold({self.coeff:.4f} [{self.low:.4f}, {self.high:.4f}] ({self.level:.0%} of the posterior), "
            f"score {self.target:g}, {len(self.trace)} rounds{state})"
        )


_BEYOND = {"": "between the ends", "low": "below the smallest strength", "high": "above the largest strength"}
_UNASKED = {"low": "below every strength asked", "high": "above every strength asked"}


@dataclass(frozen=True)
class DoseResponse(Shown):
    """Means over items at each strength, with intervals that resample items, and a line through the small ones.

    Every interval is pointwise: over many strengths some will miss the truth.

    strengths: ascending, the first is 0. effect: mean outcome. change: mean paired difference to strength 0.
    off_target: mean of the outcome that should not move, as a paired difference to 0. nll_increase: nats per token
        under the unsteered model, as a paired difference to 0. norm_ratio: |edit| / |residual|. None: not given.
    valid: the mean NLL increase lies inside `nll_limits` (True everywhere without NLL).
    slope, intercept: of the least-squares line through the first `n_fit` strengths.
    predicted: that line at every strength. gap: observed minus predicted, refitted in every resample.
    fails_at: the first strength after those fitted whose gap excludes 0; None when the line holds throughout.
    """

    strengths: tuple[float, ...]
    effect: tuple[Estimate, ...]
    change: tuple[Estimate, ...]
    off_target: tuple[Estimate, ...] | None
    nll_increase: tuple[Estimate, ...] | None
    norm_ratio: tuple[Estimate, ...] | None
    valid: tuple[bool, ...]
    nll_limits: tuple[float, float]
    n_fit: int
    slope: Estimate
    intercept: float
    predicted: tuple[float, ...]
    gap: tuple[Estimate, ...]
    fails_at: float | None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def valid_up_to(self) -> float:
        """The largest strength up to which every strength of the grid is valid; 0 is always."""
        last = 0.0
        for strength, valid in zip(self.strengths, self.valid, strict=True):
            if not valid:
                break
            last = strength
        return last

    def to_frame(self) -> pd.DataFrame:
        """One row a strength: every mean with its ends, `valid`, `fitted`, `predicted` and `gap`."""
        import pandas as pd

        columns: dict[str, Sequence[Any]] = {"strength": self.strengths}
        for name in ("effect", "change", "off_target", "nll_increase", "norm_ratio", "gap"):
            estimates: tuple[Estimate, ...] | None = getattr(self, name)
            if estimates is None:
                continue
            columns[name] = [e.value for e in estimates]
            columns[f"{name}_low"] = [e.low for e in estimates]
            columns[f"{name}_high"] = [e.high for e in estimates]
        columns["predicted"] = self.predicted
        columns["fitted"] = [i < self.n_fit for i in range(len(self.strengths))]
        columns["valid"] = self.valid
        columns["n"] = [e.n for e in self.effect]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        line = f"line through the first {self.n_fit}: slope {self.slope.short}"
        fails = "holds at every strength" if self.fails_at is None else f"fails at {self.fails_at:g}"
        return (
            f"DoseResponse({len(self.strengths)} strengths up to {self.strengths[-1]:g}, valid up to "
            f"{self.valid_up_to:g}; {line}, {fails}; n={self.effect[0].n})"
        )
