"""One measurement as a row with its interval and its band, and the table of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap, wilson

TUNING, TESTING = 5_000, 9_000  # seeds of the texts that choices and measurements are made on
Band = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One measurement: name, value, interval (NaN: none), n, and the band it must lie in (None: reported only)."""

    name: str
    value: float
    low: float
    high: float
    n: int
    band: Band | None = None

    @property
    def holds(self) -> bool:
        """Whether the value lies in its band."""
        return self.band is None or self.band[0] <= self.value <= self.band[1]


def share(name: str, hits: Sequence[bool], band: Band | None = None) -> Row:
    """Return a share with its Wilson interval."""
    k, n = int(sum(hits)), len(hits)
    return Row(name, k / n if n else float("nan"), *(wilson(k, n) if n else (0.0, 1.0)), n, band)


def mean(name: str, values: Sequence[float], band: Band | None = None, draws: int = 1000) -> Row:
    """Return a mean over texts with its bootstrap interval."""
    numbers = np.array(values, dtype=float)
    picked = np.random.default_rng(0).integers(0, len(numbers), (draws, len(numbers)))
    low, high = np.quantile(numbers[picked].mean(1), (0.025, 0.975))
    return Row(name, float(numbers.mean()), float(low), float(high), len(numbers), band)


def area(name: str, scores: np.ndarray, labels: Sequence[bool], groups: Sequence[str], band: Band | None = None) -> Row:
    """Return an AUROC with its bootstrap interval over groups."""
    value = auroc(scores, labels)
    low, high = cluster_bootstrap(auroc, scores, labels, groups=groups, n=500)
    if low == high:
        n_groups = len(set(groups))
        low, high = auroc_score_interval(value, n_groups, n_groups)
    return Row(name, value, low, high, len(scores), band)


def table(rows: Sequence[Row]) -> str:
    """Write the rows as a Markdown table."""
    lines = ["| measured | value | 95% interval | n | band | |", "|---|---|---|---|---|---|"]
    for r in rows:
        band = "" if r.band is None else f"{r.band[0]:.2f} to {r.band[1]:.2f}"
        verdict = "" if r.band is None else ("holds" if r.holds else "MISSING")
        interval = "" if isnan(r.low) else f"{r.low:.3f} to {r.high:.3f}"
        lines.append(f"| {r.name} | {r.value:.3f} | {interval} | {r.n} | {band} | {verdict} |")
    return "\n".join(lines)
