"""Paths of states through a text, the signals taken from them, and how far to trust those.

Paths           per text the states (layers, segments or tokens, d)
Signals         one number per text and signal, per layer and averaged
SignalQuality   AUROC of one signal with everything that could explain it away; SignalReport holds all
EarlyWarning    AUROC after the first few segments
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd

#: Which way a signal is expected to point: +1 where larger values should mean a right answer.
SIGNS: Mapping[str, int] = {
    "net": 1,
    "cumulative": -1,
    "aligned": 1,
    "layer_mag": 1,
    "layer_ang": -1,
    "coe_r": 1,
    "coe_c": 1,
    "margin": 1,
    "entropy": -1,
    "perplexity": -1,
    "p_max": 1,
    "ppl": -1,
    "mean_entropy": -1,
    "n_tokens": -1,
}


@dataclass(frozen=True, eq=False)
class Paths(Sequence[np.ndarray], Shown):
    """States along several texts: `paths[i]` is (n_sites, N_i, d), float32.

    texts: (n,) the number of each text in what was captured. n_tokens: (n,) tokens that each path covers.
    starts: per text, the position of the first token of every point (N_i,).
    """

    states: tuple[np.ndarray, ...]
    sites: tuple[Site, ...]
    texts: np.ndarray
    n_tokens: np.ndarray
    starts: tuple[np.ndarray, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_points(self) -> np.ndarray:
        """Points (segments or tokens) of every path."""
        return np.array([x.shape[1] for x in self.states])

    @property
    def d(self) -> int:
        """Width of the states."""
        return self.states[0].shape[2]

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Any) -> Any:
        """One path; a slice or a mask gives Paths."""
        if isinstance(index, (int, np.integer)):
            return self.states[index]
        kept = np.arange(len(self))[index].tolist()
        return replace(
            self,
            states=tuple(self.states[i] for i in kept),
            texts=self.texts[kept],
            n_tokens=self.n_tokens[kept],
            starts=tuple(self.starts[i] for i in kept),
        )

    def __repr__(self) -> str:
        n, size = self.n_points, sum(x.nbytes for x in self.states) / 2**20
        return (
            f"Paths({len(self)} texts of {n.min()} to {n.max()} points at {len(self.sites)} sites, d={self.d}, "
            f"{size:.1f} MiB)"
        )


@dataclass(frozen=True, eq=False)
class Signals(Shown):
    """One number per text and signal; NaN where a text has too few segments.

    values: name -> (n,). per_layer: name -> (n, n_sites), for those that have layers. signs: which way each points.
    n_tokens, n_points: (n,) length of each text. net: the mode of the net change, "paper" or "code".
    """

    values: Mapping[str, np.ndarray]
    per_layer: Mapping[str, np.ndarray]
    signs: Mapping[str, int]
    sites: tuple[Site, ...]
    n_tokens: np.ndarray
    n_points: np.ndarray
    net: str

    def __getitem__(self, name: str) -> np.ndarray:
        """Values of one signal. Raises: BadInput: not among them."""
        if name not in self.values:
            raise BadInput(f"no signal {name!r}; there are {', '.join(self.values)}")
        return self.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.n_tokens)

    def oriented(self, name: str) -> np.ndarray:
        """Values turned so that larger should mean right."""
        return self.signs[name] * self[name]

    def add(self, **more: Any) -> Signals:
        """Further signals of the same texts, such as output confidence: `signals.add(margin=..., entropy=...)`.

        A name that `SIGNS` does not know is taken to point up.

        Raises: BadInput: another number of texts.
        """
        found = {name: np.asarray(v, dtype=np.float64) for name, v in more.items()}
        for name, value in found.items():
            if value.shape != (len(self),):
                raise BadInput(f"{name} has shape {value.shape}: give one value for each of {len(self)} texts")
        signs = {name: SIGNS.get(name, 1) for name in found}
        return replace(self, values={**self.values, **found}, signs={**self.signs, **signs})

    def layer(self, site: Site) -> Signals:
        """The signals of one site alone. Raises: BadInput: a site that is not there."""
        if site not in self.sites:
            raise BadInput(f"{site} is not among {', '.join(map(str, self.sites))}")
        at = self.sites.index(site)
        single = {name: v[:, at] for name, v in self.per_layer.items()}
        signs = {name: self.signs[name] for name in single}
        return replace(self, values=single, per_layer={}, signs=signs, sites=(site,))

    def to_frame(self) -> pd.DataFrame:
        """One row a text: tokens, points, signals."""
        import pandas as pd

        return pd.DataFrame({"n_tokens": self.n_tokens, "n_points": self.n_points, **self.values})

    def __repr__(self) -> str:
        return f"Signals({len(self)} texts: {', '.join(self.values)}; net as in the {self.net})"


@dataclass(frozen=True)
class SignalQuality:
    """How well one signal tells right from wrong texts, and what would do as well without it.

    auroc: in the expected direction; groups resampled. within: over pairs of similar length only.
    reordered: the same signal after shuffling the segments of every text; None for signals that ignore their order
        or are not taken from paths. walk: of Gaussian random walks of the same lengths. resampled: of walks made of
        steps drawn from all texts, which keeps how long, how directed and how correlated across layers steps are.
        Means and spreads over n draws. What a null reaches, the signal does not owe to reasoning.
    dropped: texts without a value.
    """

    name: str
    sign: int
    auroc: Estimate
    within: Estimate
    reordered: Estimate | None
    walk: Estimate | None
    resampled: Estimate | None
    dropped: int


@dataclass(frozen=True, eq=False)
class SignalReport(Shown):
    """All signals on the same texts. `length` is AUROC(-n_tokens): what counting tokens achieves.

    n, n_right, n_groups: texts, right ones, groups. bins: strata of equal length that hold both classes.
    """

    signals: tuple[SignalQuality, ...]
    length: Estimate
    n: int
    n_right: int
    n_groups: int
    bins: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> SignalQuality:
        """One signal. Raises: BadInput: not among them."""
        for one in self.signals:
            if one.name == name:
                return one
        raise BadInput(f"no signal {name!r}; there are {', '.join(s.name for s in self.signals)}")

    def to_frame(self) -> pd.DataFrame:
        """One row a signal, numbers with their ends; the length alone is the last row."""
        import pandas as pd

        def ends(name: str, e: Estimate | None) -> dict[str, float]:
            e = e or Estimate(math.nan, math.nan, math.nan, 0)
            return {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}

        rows = [
            {
                "signal": s.name,
                "sign": s.sign,
                **ends("auroc", s.auroc),
                **ends("within", s.within),
                **ends("reordered", s.reordered),
                **ends("walk", s.walk),
                **ends("resampled", s.resampled),
                "n": s.auroc.n,
                "dropped": s.dropped,
            }
            for s in self.signals
        ]
        return pd.DataFrame([*rows, {"signal": "length alone", "sign": -1, **ends("auroc", self.length), "n": self.n}])

    def table(self) -> pd.DataFrame:
        """The same for people."""
        import pandas as pd

        def short(e: Estimate | None) -> str:
            return "-" if e is None or math.isnan(e.value) else e.short

        rows = [
            {
                "signal": f"{'+' if s.sign > 0 else '-'} {s.name}",
                "AUROC": short(s.auroc),
                "within length": short(s.within),
                "segments shuffled": short(s.reordered),
                "random walk": short(s.walk),
                "resampled steps": short(s.resampled),
                "dropped": s.dropped,
            }
            for s in self.signals
        ]
        last = dict.fromkeys(rows[0] if rows else ["signal", "AUROC"], "-")
        return pd.DataFrame([*rows, {**last, "signal": "- length alone", "AUROC": short(self.length), "dropped": 0}])

    def __repr__(self) -> str:
        return (
            f"SignalReport({self.n} texts of {self.n_groups} groups, {self.n_right} right; {self.bins} strata)\n"
            f"{self.table().to_string(index=False)}"
        )


@dataclass(frozen=True, eq=False)
class EarlyWarning(Shown):
    """AUROC of a signal after its first steps, among texts that go on for at least that long.

    by_step: (signal, step) -> Estimate, n counting those texts. step s has read s + 1 segments.
    tokens: (steps,) median number of tokens read by then.
    """

    by_step: Mapping[tuple[str, int], Estimate]
    tokens: Mapping[int, float]

    def to_frame(self) -> pd.DataFrame:
        """One row a signal and step: tokens, auroc, low, high, n."""
        import pandas as pd

        return pd.DataFrame(
            {
                "signal": name,
                "step": step,
                "tokens": self.tokens[step],
                "auroc": e.value,
                "low": e.low,
                "high": e.high,
                "n": e.n,
            }
            for (name, step), e in self.by_step.items()
        )

    def __repr__(self) -> str:
        return f"EarlyWarning({len(self.tokens)} steps)\n{self.to_frame().to_string(index=False)}"
