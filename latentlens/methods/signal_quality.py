"""Does a trajectory signal tell right from wrong texts, or does it count tokens?

    report = signal_quality.evaluate(trajectory.signals(paths), correct, groups=questions, paths=paths)
    signal_quality.early_warning(paths, correct, groups=questions)

Wrong traces are often longer, and a random walk of the same lengths then reaches the AUROC of -length: .76 in a
simulation with medians of 20 and 12 segments. So every AUROC comes with what could explain it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.paths import displacement, gaussian_walk, reordered
from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap
from latentlens.maths.strata import strata, stratified_auroc
from latentlens.values.results import Estimate
from latentlens.values.trajectory import SIGNS, EarlyWarning, Paths, SignalQuality, SignalReport, Signals

_ALONG = ("net", "cumulative", "aligned")
_BOOTSTRAP_WITHIN = 300


class _Null(NamedTuple):
    """Draws of the AUROC of each signal, name -> (n_draws,)."""

    reordered: dict[str, NDArray]
    walk: dict[str, NDArray]
    resampled: dict[str, NDArray]


def evaluate(
    signals: Signals,
    correct: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    paths: Paths | None = None,
    n_bins: int | None = 10,
    n_draws: int = 20,
    n_bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> SignalReport:
    """AUROC of every signal in its expected direction, with its interval and all nulls.

    - length alone: AUROC of -n_tokens on the same texts.
    - within length: AUROC over pairs of a right and a wrong text of the same length stratum
      (`maths.strata.stratified_auroc`). What stays above .5 here is not length.
    - segments shuffled: the same signal with the segments of each text in random order. (Shuffling STEPS changes
      nothing: net, cumulative and aligned do not depend on their order.)
    - random walk: independent Gaussian steps, of one size for all texts and the same number of segments.
    - resampled steps: walks whose steps are drawn, with replacement, from the steps of all texts, the same ones at
      all layers. They keep the size, direction and correlation across layers that real steps have.

    Args:
        signals: from `trajectory.signals`, with anything added.
        correct: (n,) bool.
        groups: (n,) what to resample: the question. Default: the text.
        paths: what the signals came from; without it, the last three nulls are left out.
        n_bins: strata of n_tokens (quantiles); None for one per length.
        n_draws: of each null. n_bootstrap: resamples of groups. seed, level.

    Raises: TooFewExamples: one class only. BadInput: lengths differ.
    """
    y, group = _rows(correct, groups, len(signals))
    if paths is not None and len(paths) != len(signals):
        raise BadInput(f"{len(paths)} paths and {len(signals)} signals: give the paths that the signals came from")
    if not 0 < y.sum() < len(y):
        raise TooFewExamples(f"all {len(y)} texts are {'right' if y.all() else 'wrong'}: AUROC compares both")
    bins = strata(signals.n_tokens, n_bins)
    both = sum(0 < y[bins == b].sum() < (bins == b).sum() for b in np.unique(bins))
    boot_seed, null_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    nulls = None if paths is None else _nulls(paths, y, signals, n_draws, np.random.default_rng(null_seed), level)

    def quality(name: str) -> SignalQuality:
        s = signals.oriented(name)
        ok = np.isfinite(s)
        drawn = [None if nulls is None else part.get(name) for part in (nulls or ({}, {}, {}))]
        return SignalQuality(
            name,
            signals.signs[name],
            _area(s[ok], y[ok], group[ok], n_bootstrap, boot_seed, level),
            _within(s[ok], y[ok], bins[ok], group[ok], boot_seed, level),
            *(None if d is None else _spread(d, level) for d in drawn),
            dropped=int((~ok).sum()),
        )

    length = _area(-signals.n_tokens.astype(float), y, group, n_bootstrap, boot_seed, level)
    about = {"net": signals.net, "n_bins": n_bins, "n_draws": n_draws, "n_bootstrap": n_bootstrap, "seed": seed}
    found = tuple(quality(name) for name in signals)
    return SignalReport(found, length, len(y), int(y.sum()), len(np.unique(group)), both, about)


def early_warning(
    paths: Paths,
    correct: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    max_steps: int = 10,
    least: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> EarlyWarning:
    """How early can it be seen? AUROC of each signal from the first s + 1 segments, s = 1, 2, ...

        net_s = |h_{s+1} - h_1| / s,   cumulative_s, aligned_s likewise over s steps, averaged over layers

    Only texts that have s + 1 segments count at step s; they all have read the same number of tokens then, so length
    so far cannot help. Which texts go on that long may still differ between right and wrong.

    Args: paths, correct, groups, seed, level: as `evaluate`. max_steps: how far. least: fewest texts at a step.
    Raises: TooFewExamples: no step has `least` texts with both classes. BadInput: lengths differ.
    Source: arXiv 2510.10494, early path selection. (Its code counts the tokens of s segments where s + 1 are read.)
    """
    y, group = _rows(correct, groups, len(paths))
    n_points, by_step, tokens = paths.n_points, {}, {}
    for step in range(1, max_steps + 1):
        alive = np.flatnonzero(n_points > step)
        if len(alive) < least or not 0 < y[alive].sum() < len(alive):
            break
        prefix = [paths.states[i][:, : step + 1] for i in alive]
        values = np.array([_along(x) for x in prefix])
        read = [_tokens_read(paths, i, step) for i in alive.tolist()]
        tokens[step] = float(np.median(read))
        for k, name in enumerate(_ALONG):
            by_step[name, step] = _area(SIGNS[name] * values[:, k], y[alive], group[alive], 500, seed, level)
    if not by_step:
        raise TooFewExamples(f"no step at which {least} texts of both classes go on: shorter segments, or more texts")
    return EarlyWarning(by_step, tokens)


def _tokens_read(paths: Paths, i: int, step: int) -> int:
    """Tokens of the first step + 1 segments of text i."""
    starts = paths.starts[i]
    if step + 1 < len(starts):
        return int(starts[step + 1] - starts[0])
    return int(paths.n_tokens[i])


# -- nulls ----------------------------------------------------------------------------------------


def _along(x: NDArray) -> tuple[float, float, float]:
    """Net (over N - 1), cumulative and aligned change of one path (n_sites, N, d), averaged over layers."""
    reach, length, alignment = displacement(x)
    return float(reach.mean()) / (x.shape[-2] - 1), float(length.mean()), float(alignment.mean())


def _nulls(paths: Paths, y: NDArray, signals: Signals, n_draws: int, rng: np.random.Generator, level: float) -> _Null:
    names: list[str] = [name for name in _ALONG if name in signals]
    long = [i for i, n in enumerate(paths.n_points) if n > 1]
    if not names or not 0 < y[long].sum() < len(long):
        return _Null({}, {}, {})
    n_points = paths.n_points[long]
    divisor = n_points if signals.net == "paper" else n_points - 1
    pool = np.concatenate([np.diff(paths.states[i], axis=1) for i in long], axis=1)  # (n_sites, all steps, d)
    # One size for all texts: the root mean square, so that only the number of segments differs between walks.
    size = np.sqrt((pool.astype(np.float64) ** 2).sum(-1).mean(-1))

    def walk(i: int) -> NDArray:
        return gaussian_walk(int(paths.n_points[i]), paths.d, size, rng)

    def resampled(i: int) -> NDArray:
        steps = pool[:, rng.integers(pool.shape[1], size=int(paths.n_points[i]) - 1)]
        return np.concatenate([np.zeros_like(steps[:, :1]), np.cumsum(steps, axis=1, dtype=np.float64)], axis=1)

    def draws(make) -> dict[str, NDArray]:
        found = {name: np.empty(n_draws) for name in names}
        for draw in range(n_draws):
            values: dict[str, NDArray] = dict(zip(_ALONG, np.array([_along(make(i)) for i in long]).T, strict=True))
            values["net"] = values["net"] * (n_points - 1) / divisor
            for name in names:
                found[name][draw] = auroc(signals.signs[name] * values[name], y[long])
        return found

    return _Null(draws(lambda i: reordered(paths.states[i], rng)), draws(walk), draws(resampled))


# -- numbers --------------------------------------------------------------------------------------


def _rows(correct: ArrayLike, groups: ArrayLike | None, n: int) -> tuple[NDArray[np.bool_], NDArray]:
    y = np.asarray(correct)
    group = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if y.shape != (n,) or len(group) != n:
        raise BadInput(f"labels of shape {y.shape} and {len(group)} groups for {n} texts: give one each a text")
    if y.dtype != bool and not np.isin(y, (0, 1)).all():
        raise BadInput("labels say whether a text is right: bool, or 0 and 1")
    return y.astype(bool), group


def _area(s: NDArray, y: NDArray, group: NDArray, n: int, seed: int, level: float) -> Estimate:
    if not 0 < y.sum() < len(y):
        return Estimate(math.nan, math.nan, math.nan, len(y), level)
    value = auroc(s, y)
    try:
        low, high = cluster_bootstrap(auroc, s, y, groups=group, n=n, seed=seed, level=level)
    except TooFewExamples:
        low = high = math.nan
    if low == high and value in (0.0, 1.0):
        low, high = auroc_score_interval(value, len(np.unique(group[y])), len(np.unique(group[~y])), level)
    return Estimate(value, low, high, len(y), level)


def _within(s: NDArray, y: NDArray, bins: NDArray, group: NDArray, seed: int, level: float) -> Estimate:
    try:
        value = stratified_auroc(s, y, bins)
        ends = cluster_bootstrap(
            stratified_auroc, s, y, bins, groups=group, n=_BOOTSTRAP_WITHIN, seed=seed, level=level
        )
    except TooFewExamples:
        return Estimate(math.nan, math.nan, math.nan, len(y), level)
    if ends[0] == ends[1] and value in (0.0, 1.0):  # no resample can differ: ask the counts of the bins that compare
        mixed = np.isin(bins, [b for b in np.unique(bins) if 0 < y[bins == b].sum() < (bins == b).sum()])
        ends = auroc_score_interval(value, len(np.unique(group[mixed & y])), len(np.unique(group[mixed & ~y])), level)
    return Estimate(value, *ends, len(y), level)


def _spread(draws: NDArray, level: float) -> Estimate:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(draws.mean()), float(low), float(high), len(draws), level)
