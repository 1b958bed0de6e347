"""From scored answers to a comparison of steering methods at one KL budget.

bench = method_bench(frame)        # a row an answer: method, concept, factor, prompt, scores
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.answer_grades import harmonic_mean
from latentlens.maths.statistics import cluster_bootstrap, wilson
from latentlens.values.method_bench import MethodBench, MethodScore
from latentlens.values.results import Estimate
from latentlens.values.steering_arms import ArmFits

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("method", "role", "concept", "factor", "draw", "prompt", "seed", "score", "task", "fluency", "nll")


def method_bench(
    frame: pd.DataFrame,
    *,
    random: str = "random direction",
    slowdown: Mapping[str, Estimate] | None = None,
    fits: Mapping[str, ArmFits] | None = None,
    about: Mapping[str, Any] | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> MethodBench:
    """Compare methods.

    Args:
        frame: a row an answer, with the columns
            method, role ("method" or "control"), concept, prompt (what is resampled), seed, draw (of random ones);
            factor: strength as a multiple of the one that spends the KL budget; 1 where there is no strength;
            score, task, fluency: 0 to 2, task NaN where there is none;
            nll: change of the nats a token to the unedited answer to the same prompt and seed;
            "off <name>": change of the score of something else, NaN where it does not apply to the concept.
        random: the method that `above_random` refers to; left out if the frame has none.
        slowdown: seconds a token over those without edit, by method.
        fits: by concept, how the arms were fitted: their seconds, and what was left out with its reason.
        about: provenance.
        n_bootstrap, seed, level: of the intervals; whole prompts are resampled. Where all prompts score alike and no
            resample can differ, the ends of a score are Wilson's, of the share score / 2 of as many prompts.

    Half of the prompts of every concept choose the factor of the harmonic mean (a method's own, a concept's own, of
    equals the smaller), the other half score it. Means over concepts weigh every concept the same.

    Returns: MethodBench, the best harmonic mean first.
    Raises: BadInput: a column is missing, or scores outside 0 to 2. TooFewExamples: fewer than four prompts of a
        concept, or a method without answers at the budget.
    Source: harmonic mean and split: AxBench (arXiv 2501.17148); the common budget: steering-lite.
    """
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise BadInput(f"the frame lacks the columns {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    rows: Any = frame.assign(
        harmonic=harmonic_mean(frame["score"], frame["task"], frame["fluency"]),
        group=frame["concept"].astype(str) + "\x1f" + frame["prompt"].astype(str),
    )
    concepts = tuple(dict.fromkeys(rows["concept"]))
    halves = _halves(rows, seed)
    others = [name for name in rows.columns if str(name).startswith("off ")]
    chance = rows[(rows["method"] == random) & (rows["factor"] == 1)].groupby("group")["score"].mean()
    how, seconds = _Interval(n_bootstrap, seed, level), _seconds(fits or {})
    scores = []
    for method, mine in rows.groupby("method", sort=False):
        name = str(method)
        even = mine[mine["factor"] == 1]
        if even.empty:
            raise TooFewExamples(f"{name} has no answer at factor 1, the strength of the budget")
        factors, chosen = _chosen(mine, halves)
        scores.append(
            MethodScore(
                method=name,
                role=even["role"].iloc[0],
                concept=how.score(even, even["score"]),
                above_random=None
                if chance.empty or name == random
                else how.mean(even, even["score"] - even["group"].map(chance)),
                task=how.score(even, even["task"]) if even["task"].notna().any() else None,
                fluency=how.score(even, even["fluency"]),
                nll=how.mean(even, even["nll"]),
                off_target=how.change(even, others),
                harmonic=how.score(chosen, chosen["harmonic"]),
                factors=factors,
                by_concept={str(c): how.score(part, part["score"]) for c, part in even.groupby("concept", sort=False)},
                slowdown=(slowdown or {}).get(name),
                fit_seconds=seconds.get(name),
                left_out={c: fit.left_out[name] for c, fit in (fits or {}).items() if name in fit.left_out},
            )
        )
    scores.sort(key=lambda one: -one.harmonic.value)
    nowhere = {(n, c): why for c, fit in (fits or {}).items() for n, why in fit.left_out.items()}
    said = {"factors": sorted(rows["factor"].unique()), "left out": [f"{n}: {c}: {w}" for (n, c), w in nowhere.items()]}
    return MethodBench(tuple(scores), tuple(map(str, concepts)), {**said, **(about or {})})


def _seconds(fits: Mapping[str, ArmFits]) -> dict[str, float]:
    """Mean seconds that a method took to fit."""
    taken: dict[str, list[float]] = {}
    for fit in fits.values():
        for arm in fit.found:
            taken.setdefault(arm.name, []).append(arm.seconds)
    return {name: float(np.mean(values)) for name, values in taken.items()}


def _halves(frame: Any, seed: int) -> set[str]:
    """Groups (prompts of a concept) that choose the factor."""
    choosing: set[str] = set()
    for concept, part in frame.groupby("concept", sort=False):
        prompts = sorted(part["group"].unique())
        if len(prompts) < 4:
            raise TooFewExamples(f"{len(prompts)} prompts of {concept!r}: two halves need at least 4")
        order = np.random.default_rng(seed).permutation(len(prompts))
        choosing |= {prompts[i] for i in order[: len(prompts) // 2]}
    return choosing


def _chosen(mine: Any, choosing: set[str]) -> tuple[dict[str, float], Any]:
    """The factor of every concept (the mean over draws), and the answers of the other half at it."""
    import pandas as pd

    first = mine["group"].isin(choosing)
    factors: dict[str, list[float]] = {}
    kept = []
    for (concept, _), part in mine.groupby(["concept", "draw"], sort=False):
        means = part[first.loc[part.index]].groupby("factor")["harmonic"].mean()
        best = float(means.index[int(np.argmax(means.to_numpy()))])  # groupby sorts: of equals the smallest
        factors.setdefault(str(concept), []).append(best)
        kept.append(part[~first.loc[part.index] & (part["factor"] == best)])
    return {concept: float(np.mean(found)) for concept, found in factors.items()}, pd.concat(kept)


class _Interval:
    """Means over concepts of means over answers, prompts resampled."""

    def __init__(self, n: int, seed: int, level: float) -> None:
        self.n, self.seed, self.level = n, seed, level

    def mean(self, rows: Any, values: Any) -> Estimate:
        """NaN values are left out."""
        x = np.asarray(values, dtype=np.float64)
        kept = ~np.isnan(x)
        x, codes = x[kept], np.unique(rows["concept"].to_numpy()[kept], return_inverse=True)[1]
        return self._estimate(lambda at: _balanced(x[at], codes[at]), rows["group"].to_numpy()[kept])

    def score(self, rows: Any, values: Any) -> Estimate:
        """Mean of scores from 0 to 2; where no resample differs, the ends of a share of as many prompts."""
        found = self.mean(rows, values)
        if found.low != found.high:
            return found
        groups = len(np.unique(rows["group"].to_numpy()[~np.isnan(np.asarray(values, dtype=np.float64))]))
        low, high = wilson(found.value / 2 * groups, groups, self.level)  # pyright: ignore[reportArgumentType]
        return Estimate(found.value, 2 * low, 2 * high, found.n, self.level)

    def change(self, rows: Any, names: Sequence[str]) -> Estimate:
        """Mean over concepts, and over what applies to each, of |mean change|."""
        table = rows[list(names)].to_numpy(dtype=np.float64) if names else np.zeros((len(rows), 0))
        codes = np.unique(rows["concept"].to_numpy(), return_inverse=True)[1]

        def statistic(at: NDArray) -> float:
            found = []
            for code in np.unique(codes[at]):
                part = table[at[codes[at] == code]]
                counts = (~np.isnan(part)).sum(0)
                if counts.any():
                    found.append(np.abs(np.nansum(part, axis=0)[counts > 0] / counts[counts > 0]).mean())
            return float(np.mean(found)) if found else math.nan

        if not table.size or np.isnan(table).all():
            return Estimate(math.nan, math.nan, math.nan, 0, self.level)
        return self._estimate(statistic, rows["group"].to_numpy())

    def _estimate(self, statistic: Any, groups: NDArray) -> Estimate:
        at = np.arange(len(groups))
        value = statistic(at)
        if len(np.unique(groups)) < 2:
            return Estimate(value, math.nan, math.nan, len(at), self.level)
        low, high = cluster_bootstrap(statistic, at, groups=groups, n=self.n, seed=self.seed, level=self.level)
        return Estimate(value, low, high, len(at), self.level)


def _balanced(x: NDArray, codes: NDArray) -> float:
    """Mean of the classes' means."""
    counts = np.bincount(codes)
    sums = np.bincount(codes, weights=x)
    return float((sums[counts > 0] / counts[counts > 0]).mean())
