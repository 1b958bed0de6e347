"""Latents before, during and after a correction: region means, paired tests, and traces aligned on it.

token_regions(spans, attempts)       which token of an answer belongs to which region
region_means(values, regions)        mean of every latent in every region of one answer
region_test(...)                     one set of latents in two regions: Wilcoxon, paired t, Cohen's d, Cliff's delta
aligned(...)                         mean activation at each token before and after the correction
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.clustered_means import clustered_ratios
from latentlens.maths.comparisons import cliff_delta, cohen_d, paired_t, wilcoxon
from latentlens.values.attempts import Attempt
from latentlens.values.esr_parts import AlignedTraces, RegionTest
from latentlens.values.results import Estimate

#: Regions of an answer with a correction, and what tokens outside all of them get.
REGIONS = ("off topic", "correction", "after")
OUTSIDE = -1


def token_regions(spans: Sequence[tuple[int, int]], attempts: Sequence[Attempt]) -> NDArray[np.intp]:
    """Index into `REGIONS` of every token: attempts before the last, its restart phrase, and the last attempt proper.

    Args: spans: characters of each token in the answer, (n,). attempts: at least two.
    Returns: (n,), OUTSIDE for tokens without characters (the end of the text).
    Raises: BadInput: fewer than two attempts: there is no correction.
    """
    if len(attempts) < 2:
        raise BadInput(f"{len(attempts)} attempt(s): a correction lies between two")
    last = attempts[-1]
    found = np.full(len(spans), OUTSIDE, dtype=np.intp)
    for i, (start, end) in enumerate(spans):
        if end > start:
            # a token belongs to the region of its last character: a leading space goes with the word after it
            found[i] = 0 if end <= last.start else 1 if end <= last.content else 2
    return found


def region_means(values: ArrayLike, regions: ArrayLike, pool: Literal["mean", "max"] = "mean") -> NDArray[np.float64]:
    """Mean of every latent over the tokens of every region, (3, n_latents); NaN for a region without a token.

    Args: values: (n_tokens, n_latents). regions: (n_tokens,), as from `token_regions`. pool: "max" takes the largest
        instead: what fires at one token of a sentence is diluted in a mean.
    Raises: BadInput: another pool.
    """
    if pool not in ("mean", "max"):
        raise BadInput(f"pool={pool!r}: allowed are 'mean' and 'max'")
    table, where = np.asarray(values, dtype=np.float64), np.asarray(regions)
    of = [table[where == r] for r in range(3)]
    return np.stack([getattr(t, pool)(0) if len(t) else np.full(table.shape[1], np.nan) for t in of])


def region_test(first: ArrayLike, second: ArrayLike, *, latents: str, unit: str, names: tuple[str, str]) -> RegionTest:
    """Whether latents are more active in the first kind of region than in the second, on pairs.

    Args: first, second: (n,), one mean a pair; pairs with a NaN are left out. latents, unit, names: for the table.
    Returns: one-sided Wilcoxon (first > second), two-sided paired t, pooled Cohen's d, Cliff's delta; NaN below two
        pairs.
    Source: ESR (arXiv 2602.06941), experiment 9.
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if a.shape != b.shape or a.ndim != 1:
        raise BadInput(f"regions of shapes {a.shape} and {b.shape}: one mean a pair on either side")
    keep = ~(np.isnan(a) | np.isnan(b))
    a, b = a[keep], b[keep]
    if len(a) > 1:
        tests = wilcoxon(a, b, "greater"), paired_t(a, b), cohen_d(a, b), cliff_delta(a, b)
    else:
        tests = math.nan, math.nan, math.nan, math.nan
    means = (float(a.mean()), float(b.mean())) if len(a) else (math.nan, math.nan)
    return RegionTest(latents, unit, names[0], names[1], len(a), *means, *tests)


def aligned(
    series: Mapping[str, Sequence[ArrayLike]],
    starts: Sequence[int],
    groups: ArrayLike,
    reference: Mapping[str, float],
    *,
    before: int = 24,
    after: int = 24,
    n_boot: int = 500,
    seed: int = 0,
) -> AlignedTraces:
    """Mean of each series at each token from `before` before the correction to `after` after its first token.

    Args:
        series: name -> for every episode the value at every token, (n_tokens,).
        starts: index of the first token of each episode's correction. groups: what is resampled together, one an
        episode. reference: name -> its mean where nothing is corrected.
    Raises: TooFewExamples: no episode. BadInput: lengths differ.
    """
    if not starts:
        raise TooFewExamples("no episode with a correction: nothing to align")
    offsets = np.arange(-before, after + 1)
    found: dict[str, tuple[Estimate, ...]] = {}
    for name, episodes in series.items():
        if len(episodes) != len(starts):
            raise BadInput(f"{name}: {len(episodes)} episodes, {len(starts)} corrections")
        table = np.full((len(starts), len(offsets)), np.nan)
        for i, (values, start) in enumerate(zip(episodes, starts, strict=True)):
            trace: Any = np.asarray(values, dtype=np.float64)
            inside = (start + offsets >= 0) & (start + offsets < len(trace))
            table[i, inside] = trace[start + offsets[inside]]
        drawn = clustered_ratios(table, groups=groups, n=n_boot, seed=seed)
        found[name] = tuple(
            Estimate(float(v), float(low), float(high), int(n))
            for v, low, high, n in zip(drawn.value, drawn.low, drawn.high, drawn.n, strict=True)
        )
    return AlignedTraces(tuple(int(o) for o in offsets), found, dict(reference), len(starts))
