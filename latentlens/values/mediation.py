"""What swapping parts of a model between two prompts did to its answer.

Patched           that number of every run: untouched, and with each mediator swapped, with the controls
IndirectEffect    what one mediator carries, with its interval and controls
Mediation         all mediators on the same items
Agreement         an approximation against the exact effects
Faithfulness      how much a growing set of mediators carries
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.attribution import normalised
from latentlens.maths.clustered_means import clustered_ratios
from latentlens.values.markup import Shown
from latentlens.values.mediators import Mediator
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd

Mode = Literal["denoising", "noising"]
Method = Literal["patching", "attribution", "integrated gradients"]
_LEAST = 0.1  # of the median |total effect|


def check_how(mode: str, method: str) -> None:
    """Refuse other modes and methods. Raises: BadInput."""
    for name, value, allowed in (("mode", mode, get_args(Mode)), ("method", method, get_args(Method))):
        if value not in allowed:
            raise BadInput(f"{name}={value!r}: allowed are {', '.join(allowed)}")


@dataclass(frozen=True, eq=False)
class Patched(Shown):
    """The metric of every run. n items, k mediators.

    base, source: (n,) of the prompts that are edited, and of those that values come from, both untouched.
    patched: (n, k) of the edited prompts with each mediator as in the source. An approximation gives base plus the
        effect that it estimates.
    names, mediators: (k,); several mediators under one name are swapped together.
    mode: "denoising" (base is the corrupt prompt) or "noising" (base is the clean one). method: how it was measured.
    reversed: (n, k) of the source prompts with each mediator as in the base, for direct effects; or None.
    unrelated, random: (n, k) controls: states of a prompt that has nothing to do with the pair; random changes of equal
        norm. NaN where there was none; None if they were not run.
    about: provenance.

    Raises: BadInput: shapes do not agree, or another mode or method.
    """

    base: NDArray[np.float64]
    source: NDArray[np.float64]
    patched: NDArray[np.float64]
    names: tuple[str, ...]
    mediators: tuple[tuple[Mediator, ...], ...] = ()
    mode: Mode = "denoising"
    method: Method = "patching"
    reversed: NDArray[np.float64] | None = None
    unrelated: NDArray[np.float64] | None = None
    random: NDArray[np.float64] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take any arrays, and check that they belong together."""
        check_how(self.mode, self.method)
        tables = ("patched", "reversed", "unrelated", "random")
        for name in ("base", "source", *tables):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else np.asarray(value, dtype=np.float64))
        object.__setattr__(self, "names", tuple(self.names))
        shape = (len(self.base), len(self.names))
        wrong = [n for n in tables if (v := getattr(self, n)) is not None and v.shape != shape]
        if wrong or self.base.ndim != 1 or self.source.shape != self.base.shape:
            raise BadInput(
                f"{self.base.shape} base and {self.source.shape} source values with {len(self.names)} names: "
                f"{', '.join(wrong) or 'patched'} must be (items, mediators) = {shape}"
            )

    @property
    def total(self) -> NDArray[np.float64]:
        """Total effect of every item: m(x') - m(x)."""
        return self.source - self.base

    @property
    def indirect(self) -> NDArray[np.float64]:
        """Indirect effect of every item and mediator: m(x | do(z = z_x')) - m(x)."""
        return self.patched - self.base[:, None]

    @property
    def direct(self) -> NDArray[np.float64] | None:
        """Natural direct effect: m(x' | do(z = z_x)) - m(x)."""
        return None if self.reversed is None else self.reversed - self.base[:, None]

    def to_frame(self) -> pd.DataFrame:
        """One row an item and mediator: base, source, patched, total, indirect, and what else was run."""
        import pandas as pd

        n, k = self.patched.shape
        columns: dict[str, Any] = {
            "item": np.repeat(np.arange(n), k),
            "mediator": np.tile(np.array(self.names, dtype=object), n),
            "base": np.repeat(self.base, k),
            "source": np.repeat(self.source, k),
            "patched": self.patched.ravel(),
            "total": np.repeat(self.total, k),
            "indirect": self.indirect.ravel(),
        }
        more = {"direct": self.direct, "unrelated": self.unrelated, "random": self.random}
        return pd.DataFrame(columns | {name: v.ravel() for name, v in more.items() if v is not None})

    def __repr__(self) -> str:
        return f"Patched({len(self.base)} items x {len(self.names)} mediators, {self.mode}, {self.method})"


@dataclass(frozen=True, eq=False)
class IndirectEffect:
    """What one mediator (or several, swapped together) carries of the total effect.

    effect: mean of m(x | do(z = z_x')) - m(x), in units of the metric. normalised: mean of its share of the total
        effect, over items with a total effect to divide by. pooled: sum of effects over sum of total effects.
    direct: mean natural direct effect, in units of the metric. unrelated, random: the controls, normalised. None where
        they were not run.
    """

    name: str
    mediators: tuple[Mediator, ...]
    effect: Estimate
    normalised: Estimate
    pooled: Estimate
    direct: Estimate | None = None
    unrelated: Estimate | None = None
    random: Estimate | None = None

    def __repr__(self) -> str:
        controls = [f"{n} {e.short}" for n, e in (("unrelated", self.unrelated), ("random", self.random)) if e]
        return f"IndirectEffect({', '.join([f'{self.name}: {self.normalised} of the total effect', *controls])})"


@dataclass(frozen=True, eq=False)
class Mediation(Shown):
    """Indirect effects of several mediators on the same items. n counts items; intervals resample their groups.

    base, source, total: the metric of the edited prompts, of those that values come from, and the difference.
    dropped: items left out of the normalised effects because their |total effect| is not above `least`.
    """

    effects: tuple[IndirectEffect, ...]
    base: Estimate
    source: Estimate
    total: Estimate
    dropped: int
    least: float
    mode: Mode
    method: Method
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        runs: Patched,
        *,
        groups: ArrayLike | None = None,
        least: float | None = None,
        n_bootstrap: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> Self:
        """Summarise runs; see `methods.mediation.effects`, which has the words."""
        total, how = runs.total, {"groups": groups, "n": n_bootstrap, "seed": seed, "level": level}
        if not len(total):
            raise TooFewExamples("no items: give at least one pair of prompts")
        least = _LEAST * float(np.median(np.abs(total))) if least is None else float(least)
        kept = np.abs(total) > least
        if not kept.any():
            raise TooFewExamples(
                f"no item has a total effect above {least:.3g} (largest {np.abs(total).max():.3g}): the metric does "
                "not tell the clean prompts from the corrupt ones, so there is nothing to mediate"
            )
        plain = Estimates(runs.indirect, None, how, level)
        share = Estimates(normalised(runs.patched, runs.base, runs.source, least), None, how, level)
        pooled = Estimates(runs.indirect, total, how, level)
        direct = None if runs.direct is None else Estimates(runs.direct, None, how, level)
        controls = [
            None if table is None else Estimates(normalised(table, runs.base, runs.source, least), None, how, level)
            for table in (runs.unrelated, runs.random)
        ]
        levels = Estimates(np.stack([runs.base, runs.source, total], 1), None, how, level)
        found = tuple(
            IndirectEffect(
                name, runs.mediators[i] if runs.mediators else (), plain[i], share[i], pooled[i],
                None if direct is None else direct[i], *(None if c is None else c[i] for c in controls),
            )
            for i, name in enumerate(runs.names)
        )  # fmt: skip
        about = {"n_bootstrap": n_bootstrap, "seed": seed, **runs.about}
        return cls(
            found, levels[0], levels[1], levels[2], int((~kept).sum()), least, runs.mode, runs.method, about
        )  # fmt: skip

    @property
    def n(self) -> int:
        """Items."""
        return self.base.n

    def __len__(self) -> int:
        return len(self.effects)

    def __iter__(self) -> Iterator[IndirectEffect]:
        return iter(self.effects)

    def __getitem__(self, name: str) -> IndirectEffect:
        """One mediator by name.

        Raises: BadInput: not among them.
        """
        for one in self.effects:
            if one.name == name:
                return one
        raise BadInput(f"no mediator {name!r}; there are {', '.join(e.name for e in self.effects[:12])}")

    def strongest(self, k: int | None = None) -> tuple[IndirectEffect, ...]:
        """Mediators by size of their pooled effect, the largest first; those chosen so are too good by the search."""
        ordered = sorted(self.effects, key=lambda e: -abs(e.pooled.value) if math.isfinite(e.pooled.value) else 0.0)
        return tuple(ordered[:k])

    def to_frame(self) -> pd.DataFrame:
        """One row a mediator: where it is, all estimates with their ends, n and dropped."""
        import pandas as pd

        rows = []
        for e in self.effects:
            row: dict[str, Any] = {"mediator": e.name, **_place(e.mediators)}
            for name in ("effect", "normalised", "pooled", "direct", "unrelated", "random"):
                value = getattr(e, name)
                if value is not None:
                    row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            rows.append({**row, "n": self.n, "dropped": self.dropped})
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """The same for people, intervals as text."""
        import pandas as pd

        columns = {
            "effect": "effect", "normalised": "share of the total effect", "pooled": "pooled share",
            "direct": "direct effect", "unrelated": "unrelated prompt", "random": "random, equal norm",
        }  # fmt: skip
        shown = [
            {"mediator": e.name}
            | {heading: v.short for name, heading in columns.items() if (v := getattr(e, name)) is not None}
            for e in self.effects
        ]
        return pd.DataFrame(shown)

    def __repr__(self) -> str:
        best = self.strongest(1)[0]
        return (
            f"Mediation({len(self)} mediators, {self.mode}, {self.method}; total effect {self.total}, "
            f"{self.dropped} items dropped; strongest: {best!r})"
        )


class Estimates:
    """Estimates of the columns of a table."""

    def __init__(self, top: NDArray, bottom: NDArray | None, how: Mapping[str, Any], level: float) -> None:
        self._found, self._level = clustered_ratios(top, bottom, **how), level

    def __getitem__(self, i: int) -> Estimate:
        value, low, high, n = (float(part[i]) for part in self._found)
        return Estimate(value, low, high, int(n), self._level)


def _place(mediators: Sequence[Mediator]) -> dict[str, Any]:
    if len(mediators) != 1:
        return {"site": "several" if mediators else "", "point": "", "block": None, "part": "", "at": ""}
    one = mediators[0]
    return {
        "site": str(one.site), "point": one.site.point, "block": one.site.block, "part": one.part, "at": one.at,
    }  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """An approximation of indirect effects against patching, over mediators; intervals resample items.

    pearson, spearman: of mean effects over mediators. slope: of the approximation against the exact effect, through 0.
    worst: the mediator with the largest gap, its exact and its approximate effect. methods: (exact, approximate).
    """

    pearson: Estimate
    spearman: Estimate
    slope: float
    worst: str
    worst_exact: float
    worst_approximate: float
    methods: tuple[str, str]

    def __repr__(self) -> str:
        return (
            f"Agreement({self.methods[1]} against {self.methods[0]}: r {self.pearson.short}, "
            f"rho {self.spearman.short}, slope {self.slope:.2f}; widest apart at {self.worst}: "
            f"{self.worst_approximate:.3g} for {self.worst_exact:.3g})"
        )


@dataclass(frozen=True)
class Faithfulness(Shown):
    """Share of the effect that growing sets of mediators carry: f(sizes) = values, with CPR and CMD of MIB.

    sizes: shares of the model, increasing. names: of the sets.
    """

    sizes: tuple[float, ...]
    values: tuple[float, ...]
    cpr: float
    cmd: float
    names: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row a size."""
        import pandas as pd

        frame = pd.DataFrame({"size": self.sizes, "carried": self.values})
        return frame.assign(set=list(self.names)) if self.names else frame

    def __repr__(self) -> str:
        return f"Faithfulness({len(self.sizes)} sizes, CPR {self.cpr:.3f}, CMD {self.cmd:.3f})"
