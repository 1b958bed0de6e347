"""What the parts of the resistance protocol found, frozen.

Dose             rates with the k strongest detectors ablated, k = 0, 1, ...
Raised           restarts where detectors, or random latents, are raised although nothing is wrong
BoostPoint       rates at one strength around the thresholds
RegionTest       latents in two regions of the same answers, compared
AlignedTraces    latents token by token, aligned on the correction
Detection        saying that it went wrong against doing better, among answers that began off topic
Induced          rates of a model tuned on a share of corrections
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentlens.values.esr import EsrRates, PairedEffect
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Dose:
    """Rates with the k strongest detectors ablated, and the change against none."""

    k: int
    rates: EsrRates
    change: PairedEffect | None

    def line(self) -> dict[str, Any]:
        """One row of a table."""
        return {
            "ablated": self.k,
            "multi-attempt": self.rates.multi,
            "ESR": self.rates.resisted,
            "first score": self.rates.first,
            "change of multi-attempt": self.change.change if self.change else None,
            "McNemar p": f"{self.change.p:.2g}" if self.change else "",
        }


@dataclass(frozen=True)
class Raised:
    """How often a text that is on topic is broken off with a restart, when latents are raised at a sentence's end.

    name: what was raised. k: how many latents. level: in units of their own typical value. at_once: share in which the
    very next sentence is a restart; ever: share with one anywhere after it.
    """

    name: str
    k: int
    level: float
    at_once: Estimate
    ever: Estimate

    def line(self) -> dict[str, Any]:
        """One row of a table."""
        return {"raised": self.name, "latents": self.k, "level": self.level, "restart at once": self.at_once,
                "restart ever": self.ever}  # fmt: skip


@dataclass(frozen=True)
class BoostPoint:
    """Rates when every latent is added at one strength; z: that strength in standard deviations of the thresholds."""

    strength: float
    z: float
    rates: EsrRates

    def line(self) -> dict[str, Any]:
        """One row of a table."""
        rates = {key: value for key, value in self.rates.line().items() if key != "condition"}
        return {"sd from mean threshold": self.z, "strength": self.strength, **rates}


@dataclass(frozen=True)
class RegionTest(Shown):
    """One set of latents in two kinds of region.

    unit: what a pair is: "episode" (two regions of one answer) or "latent" (means of one latent over all answers).
    mean_first, mean_second, ratio of the two; n pairs. wilcoxon: one-sided p that the first is larger; t: two-sided
    paired t. d: Cohen's, pooled; delta: Cliff's. NaN where undefined.
    """

    latents: str
    unit: str
    first: str
    second: str
    n: int
    mean_first: float
    mean_second: float
    wilcoxon: float
    t: float
    d: float
    delta: float

    @property
    def ratio(self) -> float:
        """Mean of the first over mean of the second; NaN for 0 below."""
        return self.mean_first / self.mean_second if self.mean_second else float("nan")

    def line(self) -> dict[str, Any]:
        """One row of a table."""
        return {
            "latents": self.latents,
            "pairs of": self.unit,
            "n": self.n,
            "first region": self.first,
            "second region": self.second,
            "mean first": self.mean_first,
            "mean second": self.mean_second,
            "ratio": self.ratio,
            "Wilcoxon p, first > second": f"{self.wilcoxon:.2g}",
            "paired t p": f"{self.t:.2g}",
            "Cohen d": self.d,
            "Cliff delta": self.delta,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([self.line()])


@dataclass(frozen=True, eq=False)
class AlignedTraces(Shown):
    """Mean activation of sets of latents at each token before and after the first token of a correction (offset 0).

    series: name -> one estimate an offset, episodes resampled by steered latent; NaN where no answer reaches. n:
    episodes. reference: name -> mean in unsteered answers.
    """

    offsets: tuple[int, ...]
    series: Mapping[str, tuple[Estimate, ...]]
    reference: Mapping[str, float]
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row an offset and set."""
        import pandas as pd

        return pd.DataFrame(
            {"latents": name, "offset": offset, "mean": e.value, "low": e.low, "high": e.high, "n": e.n}
            for name, found in self.series.items()
            for offset, e in zip(self.offsets, found, strict=True)
        )

    def __repr__(self) -> str:
        return f"AlignedTraces({', '.join(self.series)}: {self.n} corrections, {self.offsets[0]} to {self.offsets[-1]})"


@dataclass(frozen=True)
class Detection(Shown):
    """Among answers whose first half is off topic: who says so, and who does better afterwards.

    condition: its name. steering_goes_on: whether the steering still acts in the second half; only then is doing better
    resistance. n: answers that began off topic; of: all. notices: share in which the strongest detector fires although
    the text is read without steering. says: share with a restart. recovers: share whose second half scores at least
    `margin` more. both: says and recovers. recovers_if_said, recovers_if_not: shares among those that did and did not
    say so.
    """

    condition: str
    steering_goes_on: bool
    n: int
    of: int
    notices: Estimate
    says: Estimate
    recovers: Estimate
    both: Estimate
    recovers_if_said: Estimate
    recovers_if_not: Estimate
    margin: float

    def line(self) -> dict[str, Any]:
        """One row of a table."""
        return {
            "condition": self.condition,
            "steering goes on": self.steering_goes_on,
            "began off topic": f"{self.n} of {self.of}",
            "strongest detector fires": self.notices,
            "says so": self.says,
            "does better": self.recovers,
            "both": self.both,
            "better, if said": self.recovers_if_said if self.recovers_if_said.n else None,
            "better, if not": self.recovers_if_not if self.recovers_if_not.n else None,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([self.line()])


@dataclass(frozen=True)
class Induced:
    """Rates of one tuned model. share: of corrections among its training texts; None: before tuning.

    steps, loss: of the tuning. unsteered: the same trials without steering.
    """

    name: str
    share: float | None
    steps: int
    loss: float
    threshold: float
    rates: EsrRates
    unsteered: EsrRates

    def line(self) -> dict[str, Any]:
        """One row of a table."""
        return {
            "model": self.name,
            "corrections in training": "–" if self.share is None else f"{self.share:.0%}",
            "mean threshold": self.threshold,
            "n": self.rates.n,
            "multi-attempt": self.rates.multi,
            "ESR": self.rates.resisted,
            "first score": self.rates.first,
            "unsteered multi-attempt": self.unsteered.multi,
            "unsteered first score": self.unsteered.first,
            "last loss": None if math.isnan(self.loss) else self.loss,
        }
