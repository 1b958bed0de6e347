"""Endogenous steering resistance: what is run, and what was found, frozen.

Trial           one latent, prompt, seed and strength; the same in every condition
Condition       what is done while trials are replayed
SampledLatents  latents that passed the filters, with their labels and prompts
Answers         what the model wrote in one condition, cut into attempts and scored
EsrRates        multi-attempt rate, ESR rate, improvement and first score, with intervals
PairedEffect    one rate in two conditions on the same trials, with an exact test
ThresholdSet    the calibrated strength of every latent, and the configuration it holds for
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import BadInput
from latentlens.values.attempts import Attempt
from latentlens.values.calibration import ScoreThreshold
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.schedules import Schedule

if TYPE_CHECKING:
    import pandas as pd

Outcome = Literal["multi", "resisted", "first"]


@dataclass(frozen=True)
class Trial:
    """One answer to be given: `prompt` (its index) steered with `latent` at `strength`, sampled with `seed`.

    strength: in the unit of the study. A condition replays trials: only what it says of itself is different.
    """

    latent: int
    prompt: int
    seed: int
    strength: float


@dataclass(frozen=True)
class Condition:
    """What is done to the model while trials are replayed.

    schedule: when the steering acts, a name of `SCHEDULES`. steer: whether the trial's latent is added at all.
    shift: added to the trial's strength; strength: instead of it. ablated: latents held at 0 throughout, the steered
    one left out. meta: kind of meta-prompt.
    """

    name: str
    schedule: str = "persistent"
    steer: bool = True
    shift: float = 0.0
    strength: float | None = None
    ablated: tuple[int, ...] = ()
    meta: str = ""

    def __post_init__(self) -> None:
        """Refuse an unknown schedule."""
        if self.schedule not in SCHEDULES:
            raise BadInput(f"schedule {self.schedule!r}: allowed are {', '.join(SCHEDULES)}")
        object.__setattr__(self, "ablated", tuple(int(j) for j in self.ablated))

    def strength_of(self, trial: Trial) -> float:
        """How strongly a trial is steered here; never below 0."""
        return max(0.0, trial.strength + self.shift if self.strength is None else self.strength) if self.steer else 0.0


#: Name -> (positions, schedule) of the added latent. persistent: every token of prompt and answer, as in the paper.
#: transient: while the first eight tokens of the answer are predicted; what comes after is the model's own.
SCHEDULES: dict[str, tuple[str, Schedule]] = {
    "persistent": ("all", Schedule()),
    "transient": ("last_prompt+response", Schedule(stop=8)),
}


@dataclass(frozen=True, eq=False)
class Answers(Shown):
    """What was written in one condition, one entry a trial.

    condition: its name. prompts: what was asked, as text. texts, tokens: what was written. attempts: as judged; None
    where there was no judgement. about: what the condition did (schedule, ablated latents, ...), and the judge.
    """

    condition: str
    trials: tuple[Trial, ...]
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    attempts: tuple[tuple[Attempt, ...] | None, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that there is one of everything."""
        n = len(self.trials)
        if {len(self.prompts), len(self.texts), len(self.tokens), len(self.attempts)} != {n}:
            raise BadInput(f"answers of {n} trials need as many prompts, texts, token rows and attempts")

    def __len__(self) -> int:
        return len(self.trials)

    @cached_property
    def scores(self) -> tuple[tuple[float, ...], ...]:
        """Scores of each trial's attempts, those without one left out."""
        return tuple(tuple(a.score for a in parts or () if a.score is not None) for parts in self.attempts)

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Which trials have a score at all, (n,); the others are dropped from every rate."""
        return np.array([bool(s) for s in self.scores], dtype=bool)

    @property
    def latents(self) -> NDArray[np.intp]:
        """Steered latent of each trial, (n,)."""
        return np.array([t.latent for t in self.trials], dtype=np.intp)

    @property
    def prompt_indices(self) -> NDArray[np.intp]:
        """Prompt of each trial, (n,)."""
        return np.array([t.prompt for t in self.trials], dtype=np.intp)

    @cached_property
    def first(self) -> NDArray[np.float64]:
        """Score of the first attempt, NaN where dropped, (n,)."""
        return np.array([s[0] if s else np.nan for s in self.scores])

    @cached_property
    def gain(self) -> NDArray[np.float64]:
        """Score of the last attempt minus that of the first, NaN where dropped, (n,)."""
        return np.array([s[-1] - s[0] if s else np.nan for s in self.scores])

    def outcome(self, name: Outcome) -> NDArray[np.float64]:
        """One value a trial, NaN where dropped.

        Args: name: "multi": more than one attempt; "resisted": more than one, and the last is better than the first;
            "first": the first score.
        Raises: BadInput: another name.
        """
        if name == "first":
            return self.first
        if name not in ("multi", "resisted"):
            raise BadInput(f"outcome {name!r}: allowed are 'multi', 'resisted' and 'first'")
        multi = np.array([len(s) > 1 for s in self.scores])
        value = multi if name == "multi" else multi & (np.nan_to_num(self.gain) > 0)
        return np.where(self.kept, value, np.nan).astype(np.float64)

    def where(self, keep: Sequence[int] | NDArray[Any]) -> Answers:
        """Some of the trials, by mask or index."""
        at = np.asarray(keep)
        at = np.flatnonzero(at) if at.dtype == bool else at
        parts = {name: tuple(getattr(self, name)[int(i)] for i in at) for name in _COLUMNS}
        return replace(self, **parts)

    def rejudged(self, attempts: Sequence[tuple[Attempt, ...] | None]) -> Answers:
        """The same answers as another judge sees them."""
        return replace(self, attempts=tuple(attempts))

    def to_frame(self) -> pd.DataFrame:
        """One row a trial: latent, prompt, seed, strength, text, scores, n_attempts, gain."""
        import pandas as pd

        return pd.DataFrame(
            {
                "condition": self.condition,
                "latent": self.latents,
                "prompt": list(self.prompts),
                "seed": [t.seed for t in self.trials],
                "strength": [t.strength for t in self.trials],
                "text": list(self.texts),
                "scores": [list(s) for s in self.scores],
                "n_attempts": [len(s) for s in self.scores],
                "gain": self.gain,
            }
        )

    def __repr__(self) -> str:
        multi = int(np.nansum(self.outcome("multi")))
        return (
            f"Answers({self.condition}: {len(self)} trials, {int((~self.kept).sum())} dropped, {multi} multi-attempt)"
        )


_COLUMNS = ("trials", "prompts", "texts", "tokens", "attempts")


@dataclass(frozen=True)
class EsrRates(Shown):
    """The metrics of one condition.

    n: trials kept; dropped: trials without any score. n_multi: trials with more than one attempt.
    first: mean score of the first attempt. multi: share with more than one attempt. resisted: the ESR rate, share of
    ALL kept trials with more than one attempt and a last better than the first. improved: the same as a share of the
    multi-attempt trials. gain: mean of last - first over the multi-attempt trials (MSI). degraded: share of answers
    that repeat one word five times in a row. improved and gain are NaN without a multi-attempt trial.

    Each estimate has the widest of its intervals; `intervals` holds them apart: "wald", "wilson" (shares), "latent" and
    "prompt" (bootstraps that draw whole latents or whole prompts).
    """

    condition: str
    n: int
    dropped: int
    n_multi: int
    first: Estimate
    multi: Estimate
    resisted: Estimate
    improved: Estimate
    gain: Estimate
    degraded: Estimate
    intervals: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict, compare=False)

    def line(self) -> dict[str, Any]:
        """One row of a table, intervals inside the estimates, None where undefined; `to_frame` has all of it."""
        return {
            "condition": self.condition,
            "n": self.n,
            "first score": self.first,
            "multi-attempt": self.multi,
            "ESR": self.resisted,
            "improved, of multi": None if math.isnan(self.improved.value) else self.improved,
        }

    def lines(self) -> list[dict[str, Any]]:
        """One row a metric: its value, and every kind of interval beside the others."""
        rows = []
        for metric in METRICS:
            kinds = self.intervals.get(metric, {})
            shown = {kind: kinds[kind] if kind in kinds and kinds[kind].n else None for kind in _KINDS}
            value: Estimate = getattr(self, metric)
            rows.append({"condition": self.condition, "metric": metric, "value": value.value, "n": value.n, **shown})
        return rows

    def to_frame(self) -> pd.DataFrame:
        """One row a metric and kind of interval: condition, metric, interval, value, low, high, n."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for metric in METRICS:
            found: Estimate = getattr(self, metric)
            kinds = {"widest": found, **self.intervals.get(metric, {})}
            for kind, e in kinds.items():
                line = {"condition": self.condition, "metric": metric, "interval": kind}
                rows.append({**line, "value": e.value, "low": e.low, "high": e.high, "n": e.n})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        shares = f"multi-attempt {self.multi.short}, ESR {self.resisted.short}, first score {self.first.value:.1f}"
        return f"EsrRates({self.condition}: {shares}; n={self.n}, {self.dropped} dropped)"


METRICS = ("first", "multi", "resisted", "improved", "gain", "degraded")
_KINDS = ("wald", "wilson", "latent", "prompt")


@dataclass(frozen=True)
class PairedEffect(Shown):
    """One outcome in two conditions, on the trials that both kept.

    before, after: means in the two. change: after - before, with the wider of the two bootstraps of paired trials
    (whole latents, whole prompts). gained, lost: trials with the outcome in `second` only, in `first` only. p:
    McNemar's, exact and two-sided, of these; NaN for a score, and where `second` is several control sets, whose mean
    counts. p_flip: by random signs of whole latents, defined in every case. n: pairs.
    """

    outcome: str
    first: str
    second: str
    n: int
    before: float
    after: float
    change: Estimate
    gained: int | None
    lost: int | None
    p: float
    p_flip: float
    intervals: Mapping[str, Estimate] = field(default_factory=dict, compare=False)

    def line(self) -> dict[str, Any]:
        """One row of a table."""
        return {
            "outcome": self.outcome,
            "from": self.first,
            "to": self.second,
            "pairs": self.n,
            "before": self.before,
            "after": self.after,
            "change": self.change,
            "gained / lost": "–" if self.gained is None else f"{self.gained} / {self.lost}",
            "McNemar p": "–" if math.isnan(self.p) else f"{self.p:.2g}",
            "sign-flip p": f"{self.p_flip:.2g}",
        }

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([self.line()])

    def __repr__(self) -> str:
        what = f"{self.outcome}: {self.first} {self.before:.3f} -> {self.second} {self.after:.3f}"
        return f"PairedEffect({what}, change {self.change.short}, p={self.p_flip:.2g}, {self.n} pairs)"


@dataclass(frozen=True)
class SampledLatents(Shown):
    """Latents to steer with.

    labels: by latent. concreteness: by latent, 0 to 100, where it was judged. allowed: by latent the prompts that it
    has nothing to do with. funnel: how many latents were left after each filter, of all that were looked at.
    """

    latents: tuple[int, ...]
    labels: Mapping[int, str]
    concreteness: Mapping[int, float]
    allowed: Mapping[int, tuple[int, ...]]
    funnel: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.latents)

    def to_frame(self) -> pd.DataFrame:
        """One row a latent: latent, label, concreteness, number of prompts."""
        import pandas as pd

        return pd.DataFrame(
            {
                "latent": j,
                "label": self.labels.get(j, ""),
                "concreteness": self.concreteness.get(j, float("nan")),
                "prompts": len(self.allowed[j]),
            }
            for j in self.latents
        )

    def __repr__(self) -> str:
        return f"SampledLatents({len(self)}; {', '.join(f'{name} {n}' for name, n in self.funnel.items())})"


@dataclass(frozen=True)
class ThresholdSet(Shown):
    """The strength at which each latent's mean first score falls to the target.

    found: by latent. config: everything that they depend on; another configuration needs other thresholds.
    """

    found: Mapping[int, ScoreThreshold]
    config: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[int]:
        return iter(self.found)

    @property
    def bracketed(self) -> dict[int, float]:
        """Rounded thresholds of the latents whose scores were seen on both sides of the target."""
        return {j: round(t.coeff, 2) for j, t in self.found.items() if t.bracketed and t.complete}

    def to_frame(self) -> pd.DataFrame:
        """One row a latent: latent, threshold, low, high, last_score, rounds, bracketed, end."""
        import pandas as pd

        return pd.DataFrame(
            {
                "latent": latent,
                "threshold": round(t.coeff, 2),
                "low": t.low,
                "high": t.high,
                "last_score": t.trace[-1][1] if t.trace else float("nan"),
                "rounds": len(t.trace),
                "bracketed": t.bracketed and t.complete,
                "end": t.end,
            }
            for latent, t in self.found.items()
        )

    def __repr__(self) -> str:
        values = np.array(list(self.bracketed.values()))
        spread = f"{values.mean():.3g} +- {values.std():.2g}" if len(values) else "none"
        return f"ThresholdSet({len(self)} latents, {len(values)} bracketed: {spread})"
