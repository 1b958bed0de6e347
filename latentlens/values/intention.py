"""What the intention metrics found.

OptionEntropy     entropy over answer options, and how much probability they have at all
EntropyCurve      entropy along the generated text
LayerDimension    effective dimension of one layer; Dimensionality holds all of them
Recoverability    can it be read from the state whether the answer will be right?
Transfer          the same probe, trained in one regime and tested in another
Contrast          does a metric tell two regimes apart?
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class OptionEntropy(Shown):
    """Entropy over answer options, per row.

    entropy: (n,) of the renormalised options. bound: log of their number, the largest it can be.
    mass: (n,) probability of all options together in the FULL next-token distribution. Where it is small the model
        was not about to name an option, and the entropy says little.
    """

    entropy: np.ndarray
    mass: np.ndarray
    bound: float

    def to_frame(self) -> pd.DataFrame:
        """One row a text: entropy, share of its bound, mass."""
        import pandas as pd

        return pd.DataFrame({"entropy": self.entropy, "of_bound": self.entropy / self.bound, "mass": self.mass})

    def __repr__(self) -> str:
        return (
            f"OptionEntropy({len(self.mass)} rows: mean {self.entropy.mean():.3f} of at most {self.bound:.3f}, "
            f"mean mass {self.mass.mean():.3f})"
        )


@dataclass(frozen=True, eq=False)
class EntropyCurve(Shown):
    """Mean entropy at each step: 0 is the distribution of the first generated token.

    steps: (s,). by_step: one Estimate a step, n counting the texts that are that long; the interval resamples groups.
    Late steps average long texts only.
    """

    steps: np.ndarray
    by_step: tuple[Estimate, ...]
    unit: str = "bits"

    def to_frame(self) -> pd.DataFrame:
        """One row a step: entropy, low, high, n."""
        import pandas as pd

        found = [(e.value, e.low, e.high, e.n) for e in self.by_step]
        frame = pd.DataFrame(found, columns=["entropy", "low", "high", "n"])
        frame.insert(0, "step", self.steps)
        return frame

    def __repr__(self) -> str:
        first, last = self.by_step[0], self.by_step[-1]
        return f"EntropyCurve({len(self.steps)} steps, {self.unit}: {first.short} at first, {last.short} at last)"


@dataclass(frozen=True)
class LayerDimension:
    """Effective dimension of the states at one site.

    participation: participation ratio of the cloud; the interval is the jackknife's over groups.
    k90: fewest principal components with 90% of the variance. variance: trace of the covariance.
    """

    site: Site
    participation: Estimate
    k90: float
    variance: float


@dataclass(frozen=True, eq=False)
class Dimensionality(Shown):
    """Effective dimension at every site, and the three numbers that have been called "global".

    layers: in the order of the activations. n, d: points and width; no dimension exceeds min(n - 1, d).
    per_item_k90: (n,) k90 of the layer vectors of each ITEM: at most (number of layers) - 1. Another quantity
        altogether, and what version 1 of the paper seems to have reported (its means are multiples of 1/n).
    """

    layers: tuple[LayerDimension, ...]
    n: int
    d: int
    per_item_k90: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def aggregated(self) -> float:
        """Participation ratio averaged over layers by variance (the paper). Late layers, with larger states, rule."""
        weights = np.array([one.variance for one in self.layers])
        values = np.array([one.participation.value for one in self.layers])
        kept = np.isfinite(values) & (weights > 0)
        return float((values * weights)[kept].sum() / weights[kept].sum()) if kept.any() else math.nan

    @property
    def median_k90(self) -> float:
        """Median over layers of the pooled k90 (the code of version 2)."""
        return float(np.median([one.k90 for one in self.layers]))

    @property
    def item_k90(self) -> float:
        """Mean over items of the per-item k90 (version 1)."""
        return float(self.per_item_k90.mean())

    def __iter__(self) -> Iterator[LayerDimension]:
        return iter(self.layers)

    def to_frame(self) -> pd.DataFrame:
        """One row a site: participation with its ends, k90, variance and its share, n, d."""
        import pandas as pd

        total = sum(one.variance for one in self.layers)
        return pd.DataFrame(
            {
                "site": str(one.site),
                "participation": one.participation.value,
                "participation_low": one.participation.low,
                "participation_high": one.participation.high,
                "k90": one.k90,
                "variance": one.variance,
                "weight": one.variance / total if total else math.nan,
                "n": self.n,
                "d": self.d,
            }
            for one in self.layers
        )

    def __repr__(self) -> str:
        return (
            f"Dimensionality({len(self.layers)} sites, n={self.n}, d={self.d}: participation {self.aggregated:.2f} "
            f"by variance, median k90 {self.median_k90:g}, k90 within items {self.item_k90:.2f})"
        )


@dataclass(frozen=True)
class Recoverability(Shown):
    """Whether a state says if the answer will be right.

    auroc: held out. Its interval resamples groups of fixed predictions, widened by `wider` for out-of-fold ones, whose
        spread over refits is larger; (end - value) / wider gives the interval that is published.
    p: share of label permutations, refitted from the start, that reach it: (1 + hits) / (1 + permutations). Judge by
        this one. shuffled: mean and spread of those permutations, expected .5.
    train_auroc: 1 means nothing where d exceeds n. C: the one used, or chosen on the validation side.
    n, n_right, d: rows, rows with label 1, width. folds: parts out of which one at a time was held out; 1 for a split.
    reason: why the numbers are NaN; "" when they are not.
    """

    auroc: Estimate
    p: float
    shuffled: Estimate
    train_auroc: float
    C: float
    n: int
    n_right: int
    d: int
    folds: int
    split: str
    reason: str = ""
    wider: float = 1.0

    def to_frame(self) -> pd.DataFrame:
        """One row with all numbers."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "split": self.split,
                    "auroc": self.auroc.value,
                    "auroc_low": self.auroc.low,
                    "auroc_high": self.auroc.high,
                    "p": self.p,
                    "shuffled": self.shuffled.value,
                    "shuffled_low": self.shuffled.low,
                    "shuffled_high": self.shuffled.high,
                    "train_auroc": self.train_auroc,
                    "C": self.C,
                    "n": self.n,
                    "n_right": self.n_right,
                    "d": self.d,
                    "folds": self.folds,
                    "wider": self.wider,
                    "reason": self.reason,
                }
            ]
        )

    @property
    def short(self) -> str:
        """`0.650 [0.570, 0.720], p = 0.004, shuffled 0.501`, or why not."""
        return self.reason or f"{self.auroc.short}, p = {self.p:.3f}, shuffled {self.shuffled.value:.3f}"

    def __repr__(self) -> str:
        if self.reason:
            return f"Recoverability(NaN: {self.reason})"
        return (
            f"Recoverability({self.split}: AUROC {self.auroc}, p = {self.p:.3f}, shuffled {self.shuffled.short}, "
            f"train {self.train_auroc:.3f}; {self.n_right} of {self.n} right, d = {self.d})"
        )


@dataclass(frozen=True, eq=False)
class Transfer(Shown):
    """AUROC of a probe trained in one regime (row) and tested in another (column), items held out in both.

    cells: (trained, tested) -> Estimate; NaN where a side has one class. The diagonal is the probe at home.
    """

    regimes: tuple[str, ...]
    cells: Mapping[tuple[str, str], Estimate]

    def __getitem__(self, pair: tuple[str, str]) -> Estimate:
        """One cell. Raises: BadInput: no such pair of regimes."""
        if pair not in self.cells:
            raise BadInput(f"no cell {pair!r}: the regimes are {', '.join(self.regimes)}; give (trained, tested)")
        return self.cells[pair]

    def to_frame(self) -> pd.DataFrame:
        """One row a cell: trained, tested, auroc, low, high, n."""
        import pandas as pd

        return pd.DataFrame(
            {"trained": a, "tested": b, "auroc": e.value, "low": e.low, "high": e.high, "n": e.n}
            for (a, b), e in self.cells.items()
        )

    def table(self) -> pd.DataFrame:
        """The matrix for people: a row for each regime trained in, a column for each tested in."""
        import pandas as pd

        short = lambda e: "-" if math.isnan(e.value) else e.short
        rows = [{"trained in": a, **{b: short(self.cells[a, b]) for b in self.regimes}} for a in self.regimes]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"Transfer({', '.join(self.regimes)})\n{self.table().to_string(index=False)}"


@dataclass(frozen=True)
class Contrast(Shown):
    """One metric in two regimes on the same items.

    difference: mean of (second - first), paired. auroc: chance that a value of the second regime exceeds one of the
    first: 1 or 0 tells the regimes apart at sight, .5 not at all.
    """

    first: str
    second: str
    difference: Estimate
    auroc: Estimate

    def __repr__(self) -> str:
        return f"Contrast({self.second} - {self.first}: {self.difference}, AUROC {self.auroc.short})"
