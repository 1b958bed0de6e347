"""What experiments found: numbers with their intervals, controls and provenance, frozen.

Estimate         one number with its interval and n
SiteProbe        one probe at one site, with its controls and its direction
ProbeSweep       the same probe at every site, on the same split
Arm              one condition of a steering experiment: how often the outcome came
SteeringEffect   all arms side by side
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from latentlens.errors import BadInput, SiteNotFound, TooFewExamples
from latentlens.maths.statistics import difference_of_proportions, wilson
from latentlens.values.directions import Direction, as_site
from latentlens.values.markup import Shown
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Estimate(Shown):
    """One number with its interval.

    value: the estimate. low, high: ends of its interval. n: what it was counted over (rows, draws,
    trials: the owner says which). level: coverage of the interval.

    >>> str(Estimate(0.9123, 0.871, 0.9452, 120))
    '0.912 [0.871, 0.945] (95%, n=120)'
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def covers(self, truth: float) -> bool:
        """Whether a number lies inside the interval, ends included."""
        return self.low <= truth <= self.high

    @property
    def short(self) -> str:
        """Value and interval without n: `0.912 [0.871, 0.945]`; `29.7 [26.2, 33.1]` where they are above 10."""
        size = max((abs(v) for v in (self.value, self.low, self.high) if abs(v) < float("inf")), default=0.0)
        digits = 3 if size < 10 else 1 if size < 1000 else 0
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def __str__(self) -> str:
        return f"{self.short} ({self.level:.0%}, n={self.n})"

    def _html_head(self) -> str:
        return str(self)


@dataclass(frozen=True, eq=False)
class SiteProbe(Shown):
    """A linear probe at one site: logit(x) = weights . x + intercept, x in the model's raw coordinates.

    auroc: on held-out groups; n counts rows, the interval resamples groups of this one fitted probe (it
        leaves out the variance of training).
    train_auroc: on the rows it was fitted on; 1 means nothing where d is not far below n_train.
    cv_auroc: mean over folds inside the training side; what `ProbeSweep.best` and `C` were chosen by.
        NaN when there was nothing to choose.
    shuffled: AUROC of the same probe refitted on permuted labels: mean and spread over n draws, expected .5.
    control: AUROC on the control task, a fixed random label for each type: mean and spread over n draws.
        None where no type recurs.
    selectivity: AUROC of the true labels on the control task's own split, minus the control's AUROC; the
        interval spans the draws. High: the probe reads the concept and cannot simply memorise types.
    mean_difference: mean of label 1 minus mean of label 0, on the training rows.
    """

    site: Site
    auroc: Estimate
    train_auroc: float
    cv_auroc: float
    C: float
    shuffled: Estimate
    control: Estimate | None
    selectivity: Estimate | None
    weights: np.ndarray
    intercept: float
    mean_difference: np.ndarray
    name: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    method: str = "logistic probe"

    @property
    def direction(self) -> Direction:
        """The probe's normal, pointing to label 1, at its own length: `x @ vector + intercept` is the logit.

        Raises: BadInput: the activations do not vary here, so the probe points nowhere.
        """
        found = {"auroc": self.auroc.value, "intercept": self.intercept, "C": self.C}
        kind = "probe" if self.method == "logistic probe" else self.method
        return self._direction(self.weights, kind, {"method": self.method, **found, **self.source})

    @property
    def mean_direction(self) -> Direction:
        """The mean difference as a direction. It often steers better than the normal that reads better.

        Raises: BadInput: the activations do not vary here.
        Source: AxBench (arXiv 2501.17148), table 1: DiffMean against Probe in steering.
        """
        return self._direction(self.mean_difference, "mean difference", {"method": "mean difference", **self.source})

    def _direction(self, vector: np.ndarray, kind: str, source: Mapping[str, Any]) -> Direction:
        if np.isnan(vector).any():
            raise BadInput(f"the activations at {self.site} hold NaN or infinity, so no probe was fitted there")
        if not vector.any():
            raise BadInput(f"the activations at {self.site} are the same in every row: there is no direction")
        return Direction(torch.from_numpy(vector.copy()), self.site, f"{kind} {self.name}".strip(), "raw", source)

    def logits(self, values: Tensor) -> Tensor:
        """Log odds of label 1 for activations at this site: (..., d) -> (...), float32."""
        return values.float() @ torch.from_numpy(self.weights) + self.intercept

    def __repr__(self) -> str:
        parts = [f"AUROC {self.auroc}", f"shuffled {self.shuffled.short}"]
        if self.control is not None and self.selectivity is not None:
            parts += [f"control task {self.control.short}", f"selectivity {self.selectivity.short}"]
        return f"SiteProbe({self.site}: {', '.join(parts)})"


@dataclass(frozen=True, eq=False)
class ProbeSweep(Shown):
    """The same probe at several sites, with one split, one bootstrap and the same controls.

    classes: (name of label 0, name of label 1); scores point to label 1.
    train_rows, test_rows: indices into the activations; no group is on both sides.
    n_train, n_test: rows. n_groups: groups (train, test).
    about: provenance: method, seed, settings, and what the activations say of their model.
    """

    probes: tuple[SiteProbe, ...]
    classes: tuple[str, str]
    train_rows: np.ndarray
    test_rows: np.ndarray
    n_groups: tuple[int, int]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_train(self) -> int:
        """Rows on the training side."""
        return len(self.train_rows)

    @property
    def n_test(self) -> int:
        """Rows held out."""
        return len(self.test_rows)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites probed, in the order of the activations."""
        return tuple(p.site for p in self.probes)

    def __len__(self) -> int:
        return len(self.probes)

    def __iter__(self) -> Iterator[SiteProbe]:
        return iter(self.probes)

    def __getitem__(self, site: Site | str) -> SiteProbe:
        """The probe at one site.

        Raises: SiteNotFound: not in this sweep.
        """
        wanted = as_site(site)
        for probe in self.probes:
            if probe.site == wanted:
                return probe
        raise SiteNotFound(f"{wanted} was not probed. In this sweep: {', '.join(map(str, self.sites))}")

    def best(self) -> SiteProbe:
        """The probe with the highest cross-validated AUROC on the TRAINING side; the first of equals.

        Never chosen by the held-out score: the best of many held-out scores would be too good by the
        search. Its held-out `auroc` is therefore honest.
        """
        return max(self.probes, key=lambda p: -math.inf if math.isnan(p.cv_auroc) else p.cv_auroc)

    def to_frame(self) -> pd.DataFrame:
        """One row a site: AUROC with its ends, cross-validated and training AUROC, controls, C, counts."""
        import pandas as pd

        def ends(name: str, estimate: Estimate | None) -> dict[str, float]:
            e = estimate or Estimate(math.nan, math.nan, math.nan, 0)
            return {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}

        return pd.DataFrame(
            {
                "site": str(p.site),
                "point": p.site.point,
                "block": p.site.block,
                **ends("auroc", p.auroc),
                "train_auroc": p.train_auroc,
                "cv_auroc": p.cv_auroc,
                **ends("shuffled", p.shuffled),
                **ends("control", p.control),
                **ends("selectivity", p.selectivity),
                "C": p.C,
                "n_train": self.n_train,
                "n_test": self.n_test,
                "groups_train": self.n_groups[0],
                "groups_test": self.n_groups[1],
            }
            for p in self.probes
        )

    def table(self) -> pd.DataFrame:
        """The same for people: one short row a site, numbers with their intervals as text."""
        import pandas as pd

        best = self.best().site
        return pd.DataFrame(
            {
                "site": str(p.site) + (" *" if p.site == best else ""),
                "AUROC held out": p.auroc.short,
                "cross-validated": f"{p.cv_auroc:.3f}",
                "shuffled labels": p.shuffled.short,
                "control task": "-" if p.control is None else p.control.short,
                "selectivity": "-" if p.selectivity is None else p.selectivity.short,
            }
            for p in self.probes
        )

    def __repr__(self) -> str:
        return (
            f"ProbeSweep({len(self)} sites, {self.classes[1]!r} against {self.classes[0]!r}, held out {self.n_test} "
            f"rows of {self.n_groups[1]} groups, trained on {self.n_train} of {self.n_groups[0]}; best by "
            f"cross-validation on the training side: {self.best()!r})"
        )


ArmKind = Literal["no edit", "direction", "random", "prompt"]


@dataclass(frozen=True)
class Arm(Shown):
    """One condition of a steering experiment: the outcome came in k of n rollouts.

    kind: "no edit", "direction", "random" (a random direction of equal norm) or "prompt" (asked in words).
    coeff: strength, in the unit of the whole `SteeringEffect`; 0 for "no edit" and "prompt".
    draw: which random direction; 0 otherwise.
    """

    kind: ArmKind
    k: int
    n: int
    coeff: float = 0.0
    draw: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the kind and, by forming the interval, the counts."""
        if self.kind not in get_args(ArmKind):
            raise BadInput(f"kind={self.kind!r}: allowed are {', '.join(get_args(ArmKind))}")
        wilson(self.k, self.n, self.level)

    @classmethod
    def of(cls, kind: ArmKind, outcomes: Iterable[Any], coeff: float = 0.0, draw: int = 0) -> Arm:
        """Count outcomes, one truth value a rollout."""
        came = [bool(o) for o in outcomes]
        return cls(kind, sum(came), len(came), coeff, draw)

    @property
    def share(self) -> Estimate:
        """Share k / n with its Wilson interval, which treats the rollouts as independent."""
        return Estimate(self.k / self.n, *wilson(self.k, self.n, self.level), self.n, self.level)

    @property
    def label(self) -> str:
        """How the arm is called in tables."""
        if self.kind == "random":
            return f"random direction {self.draw}"
        return self.kind


@dataclass(frozen=True)
class SteeringEffect(Shown):
    """How often an outcome came, by arm.

    outcome: what was counted, in words. unit: of `coeff`, in words. about: provenance.

    Raises: TooFewExamples: no arm.
    """

    arms: tuple[Arm, ...]
    outcome: str
    unit: str = "norm of the direction"
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take any iterable of arms."""
        object.__setattr__(self, "arms", tuple(self.arms))
        if not self.arms:
            raise TooFewExamples("a steering effect needs at least one arm")

    def of(self, kind: ArmKind, coeff: float | None = None) -> tuple[Arm, ...]:
        """The arms of one kind, at one strength if given, in the order given."""
        return tuple(a for a in self.arms if a.kind == kind and (coeff is None or a.coeff == coeff))

    @property
    def coeffs(self) -> tuple[float, ...]:
        """Strengths of the direction arm, ascending."""
        return tuple(sorted({a.coeff for a in self.arms if a.kind == "direction"}))

    def against(self, kind: ArmKind, coeff: float) -> Estimate:
        """Share under the direction at `coeff` minus the share under another kind, with Newcombe's interval.

        Arms of the same kind are pooled: "random" over its draws at the same strength (the spread between
        draws is then not in the interval: look at the arms themselves), "no edit" and "prompt" over all.

        Returns: an Estimate in [-1, 1]; n counts the rollouts of both sides.
        Raises: TooFewExamples: there is no such arm.
        """
        ours, theirs = self.of("direction", coeff), self.of(kind, coeff if kind in ("random", "direction") else None)
        if not ours or not theirs:
            missing = "direction" if not ours else kind
            raise TooFewExamples(f"no arm {missing!r} at coeff {coeff}. Held: {', '.join(map(_arm_name, self.arms))}")
        (k1, n1), (k2, n2) = ((sum(a.k for a in side), sum(a.n for a in side)) for side in (ours, theirs))
        level = self.arms[0].level
        return Estimate(*difference_of_proportions(k1, n1, k2, n2, level), n1 + n2, level)

    def to_frame(self) -> pd.DataFrame:
        """One row an arm: kind, coeff, draw, k, n, share with its ends."""
        import pandas as pd

        return pd.DataFrame(
            {
                "arm": a.kind,
                "coeff": a.coeff,
                "draw": a.draw,
                "k": a.k,
                "n": a.n,
                "share": a.share.value,
                "low": a.share.low,
                "high": a.share.high,
            }
            for a in self.arms
        )

    def table(self) -> pd.DataFrame:
        """The same for people, intervals as text."""
        import pandas as pd

        return pd.DataFrame(
            {
                "arm": a.label,
                "coeff": "" if a.kind in ("no edit", "prompt") else f"{a.coeff:g}",
                "share": a.share.short,
                "k / n": f"{a.k} / {a.n}",
            }
            for a in self.arms
        )

    def __repr__(self) -> str:
        shares = "; ".join(f"{_arm_name(a)}: {a.share.short}" for a in self.arms)
        return f"SteeringEffect(share of {self.outcome!r}: {shares})"

    def _html_head(self) -> str:
        return f"SteeringEffect: share of {self.outcome!r}, coeff in units of the {self.unit}"


def _arm_name(arm: Arm) -> str:
    return arm.label + (f" at {arm.coeff:g}" if arm.kind in ("direction", "random") else "")
