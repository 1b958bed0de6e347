"""Metrics of endogenous steering resistance: rates of one condition, and paired changes between two.

rates(answers)                     multi-attempt and ESR rate, improvement, first score; NaN where undefined
paired(plain, ablated, "multi")    the same trials in two conditions: clustered interval and McNemar's exact test
clustered_share(yes, groups)       a share whose rows repeat
boost_levels(thresholds)           strengths around the thresholds, in their standard deviations
agreement({"rule": a, "model": b}) how far judges of the same answers agree
side_by_side(plain, ablated)       what was written, trial by trial
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.agreement import cohen_kappa, percent_agreement, spearman, with_interval
from latentlens.maths.clustered_means import clustered_ratios
from latentlens.maths.comparisons import mcnemar, sign_flip
from latentlens.maths.statistics import wilson
from latentlens.values.attempts import repeats_itself
from latentlens.values.esr import METRICS, Answers, EsrRates, Outcome, PairedEffect
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd

_SHARES = ("multi", "resisted", "improved", "degraded")


def rates(answers: Answers, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0) -> EsrRates:
    """The metrics of one condition with their intervals.

        n         trials with a score; attempts without one are left out of their trial first
        multi     #(more than one attempt) / n
        ESR       #(more than one attempt, last > first) / n
        improved  #(... last > first) / #(more than one attempt)
        gain      mean(last - first) over trials with more than one attempt
        Wald      p -+ z sqrt(p (1 - p) / n); for means  m -+ z sd / sqrt(n), sd with n - 1

    Args: answers: judged. level: coverage. n_boot, seed: of the bootstraps that draw whole latents, whole prompts.
    Returns: EsrRates; an estimate is as wide as the widest of its intervals, Wald's left out (it has no width at 0).
    Raises: TooFewExamples: no trial has a score.
    Source: ESR (arXiv 2602.06941), extract_paper_numbers.py; Wilson's interval and the bootstraps are ours.
    """
    kept = answers.where(answers.kept)
    n = len(kept)
    if not n:
        raise TooFewExamples(f"{answers.condition}: none of {len(answers)} trials has a score")
    multi, gain = kept.outcome("multi"), kept.gain
    resisted = kept.outcome("resisted")
    degraded = np.array([repeats_itself(text) for text in kept.texts], dtype=float)
    nothing = np.where(multi > 0, 1.0, 0.0)
    top = np.stack([kept.first, multi, resisted, resisted, gain * nothing, degraded], 1)
    bottom = np.stack([np.ones(n), np.ones(n), np.ones(n), nothing, nothing, np.ones(n)], 1)
    drawn = {
        "latent": clustered_ratios(top, bottom, groups=kept.latents, n=n_boot, seed=seed, level=level),
        "prompt": clustered_ratios(top, bottom, groups=kept.prompt_indices, n=n_boot, seed=seed, level=level),
    }
    made, intervals = {}, {}
    for k, metric in enumerate(METRICS):
        over = bottom[:, k] > 0
        values = top[over, k]
        count = int(over.sum())
        value = float(drawn["latent"].value[k])
        kinds = {"wald": _wald(values, metric in _SHARES, level)}
        if metric in _SHARES and count:
            kinds["wilson"] = Estimate(value, *wilson(round(values.sum()), count, level), count, level)
        for name, found in drawn.items():
            kinds[name] = Estimate(value, float(found.low[k]), float(found.high[k]), count, level)
        intervals[metric] = kinds
        made[metric] = widest(
            [e for name, e in kinds.items() if name != "wald"] if metric in _SHARES else kinds.values()
        )
    return EsrRates(answers.condition, n, len(answers) - n, int(multi.sum()), intervals=intervals, **made)


def paired(
    first: Answers,
    second: Answers | Sequence[Answers],
    outcome: Outcome = "multi",
    *,
    name: str = "",
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> PairedEffect:
    """How one outcome changes between two conditions of the same trials.

        change = mean_i (after_i - before_i);   several control sets: after_i is the mean over the sets

    Args:
        first, second: conditions with equal trials in equal order; `second` may be several sets of controls.
        outcome: "multi", "resisted" or "first". name: of `second`, when it is several.
        level, n_boot, seed: of the bootstraps over whole latents and whole prompts; the wider is reported.
    Returns: PairedEffect. McNemar's test for outcomes that are yes or no, of one condition; signs of whole latents are
        flipped in every case.
    Raises: BadInput: other trials. TooFewExamples: no trial is kept in both.
    """
    others = [second] if isinstance(second, Answers) else list(second)
    if not others or any(_replayed(first) != _replayed(other) for other in others):
        raise BadInput("paired conditions replay the same trials (latent, prompt, seed) in the same order")
    before = first.outcome(outcome)
    sets = np.stack([other.outcome(outcome) for other in others])
    keep = ~np.isnan(before) & ~np.isnan(sets).any(0)
    if not keep.any():
        raise TooFewExamples(f"{first.condition}: no trial is scored in both conditions")
    before, after = before[keep], sets[:, keep].mean(0)
    latents, prompts = first.latents[keep], first.prompt_indices[keep]
    change, intervals = clustered_change(after - before, {"latent": latents, "prompt": prompts}, level, n_boot, seed)
    gained = lost = None
    p = math.nan
    if outcome != "first" and len(others) == 1:
        tested = mcnemar(before, after)
        gained, lost, p = tested.only_second, tested.only_first, tested.p
    flipped = sign_flip(after - before, latents)
    label = name or (others[0].condition if len(others) == 1 else f"{len(others)} sets: {others[0].condition}, ...")
    return PairedEffect(
        outcome, first.condition, label, len(before), float(before.mean()), float(after.mean()), change, gained, lost,
        p, flipped, intervals,
    )  # fmt: skip


def clustered_change(
    differences: ArrayLike, groups: Mapping[str, ArrayLike], level: float = 0.95, n_boot: int = 1000, seed: int = 0
) -> tuple[Estimate, dict[str, Estimate]]:
    """Mean of paired differences with a bootstrap interval for every way of grouping, and the widest of them.

    Args: differences: (n,). groups: name -> (n,), what is drawn as a whole.
    Returns: the widest, and all by name.
    """
    values = np.asarray(differences, dtype=np.float64)
    found = {}
    for name, group in groups.items():
        e = clustered_ratios(values[:, None], groups=group, n=n_boot, seed=seed, level=level)
        found[name] = Estimate(float(e.value[0]), float(e.low[0]), float(e.high[0]), len(values), level)
    return widest(found.values()), found


def clustered_share(yes: Iterable[Any], groups: ArrayLike, *, level: float = 0.95, n_boot: int = 500) -> Estimate:
    """Share of yes with the wider of Wilson's interval and the bootstrap over groups; NaN without any row.

    Args: yes: one truth value a row. groups: what is drawn as a whole, one a row.
    """
    values = np.array([float(y) for y in yes])
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0, level)
    value, n = float(values.mean()), len(values)
    drawn = clustered_ratios(values[:, None], groups=groups, n=n_boot, level=level)
    score = Estimate(value, *wilson(round(values.sum()), n, level), n, level)
    return widest([score, Estimate(value, float(drawn.low[0]), float(drawn.high[0]), n, level)])


def boost_levels(thresholds: ArrayLike, n: int = 8, width: float = 3.0) -> NDArray[np.float64]:
    """Strengths from `width` standard deviations below the mean threshold to as many above, never below 0.

        linspace(mean - width sd, mean + width sd, n), clipped at 0        sd: of the population

    >>> boost_levels([4, 6, 8, 10])[:3].round(4).tolist()
    [0.2918, 2.2084, 4.1251]

    Raises: BadInput: fewer than two thresholds or levels. Source: ESR, experiment 2.
    """
    values = np.asarray(thresholds, dtype=np.float64)
    if values.size < 2 or n < 2:
        raise BadInput(f"{values.size} thresholds and n={n}: levels need two of either")
    mean, sd = values.mean(), values.std()
    return np.linspace(mean - width * sd, mean + width * sd, n).clip(min=0)


def two_proportions(k1: int, n1: int, k2: int, n2: int) -> tuple[float, float]:
    """Z and two-sided p of the difference of two independent shares, pooled variance; for published tables.

        z = (p1 - p2) / sqrt(p (1 - p) (1 / n1 + 1 / n2))

    Where trials are paired, `paired` is the stronger test.
    Raises: TooFewExamples: an empty sample.
    """
    if min(n1, n2) < 1:
        raise TooFewExamples("two shares need at least one trial each")
    pooled = (k1 + k2) / (n1 + n2)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    z = (k1 / n1 - k2 / n2) / spread if spread else math.nan
    return z, float(2 * norm.sf(abs(z)))


def agreement(judged: Mapping[str, Answers], *, n_boot: int = 500, seed: int = 0) -> pd.DataFrame:
    """How far judges of the same answers agree, a row a pair of judges.

    Columns: `both`: trials that both scored; `multi, same`: share on which both say "more than one attempt" or both say
    "one"; `multi, kappa`: the same beyond chance; `first, Spearman`: rank correlation of the first scores; `direction,
    same`: of the trials with several attempts for both, the share in which both say that the last is better, or both
    that it is not. Intervals resample latents; None where undefined.

    Raises: BadInput: fewer than two judges, or other trials.
    """
    import pandas as pd

    if len(judged) < 2 or len({_replayed(a) for a in judged.values()}) != 1:
        raise BadInput("agreement needs two or more judges of the same answers")
    rows = []
    for (name, a), (other, b) in combinations(judged.items(), 2):
        both = a.kept & b.kept
        line: dict[str, Any] = {"judge": name, "other": other, "both": int(both.sum())}
        several = both & (np.nan_to_num(a.outcome("multi")) > 0) & (np.nan_to_num(b.outcome("multi")) > 0)
        for title, statistic, keep, x, y in (
            ("multi, same", percent_agreement, both, a.outcome("multi"), b.outcome("multi")),
            ("multi, kappa", cohen_kappa, both, a.outcome("multi"), b.outcome("multi")),
            ("first, Spearman", spearman, both, a.first, b.first),
            ("direction, same", percent_agreement, several, a.outcome("resisted"), b.outcome("resisted")),
        ):
            line[title] = _estimate(statistic, x[keep], y[keep], a.latents[keep], n_boot, seed)
        line["both say several"] = int(several.sum())
        rows.append(line)
    return pd.DataFrame(rows)


def side_by_side(first: Answers, second: Answers, k: int = 6) -> pd.DataFrame:
    """Texts of the same trials in two conditions, those with several attempts in the first before the others.

    Columns: prompt, latent, scores and text in either condition. Raises: BadInput: other trials.
    """
    import pandas as pd

    if _replayed(first) != _replayed(second):
        raise BadInput("texts side by side are those of the same trials in two conditions")
    order = np.argsort(-np.nan_to_num(first.outcome("multi")), kind="stable")[:k]
    rows = []
    for i in order.tolist():
        line: dict[str, Any] = {"prompt": first.prompts[i], "latent": first.trials[i].latent}
        for one in (first, second):
            line[f"{one.condition}, scores"] = ", ".join(f"{s:.0f}" for s in one.scores[i])
            line[one.condition] = one.texts[i]
        rows.append(line)
    return pd.DataFrame(rows)


def widest(estimates: Any) -> Estimate:
    """One estimate with the lowest low and the highest high of several of the same value; NaN ends are passed over."""
    found = list(estimates)
    lows, highs = [e.low for e in found if not math.isnan(e.low)], [e.high for e in found if not math.isnan(e.high)]
    one = found[0]
    return Estimate(one.value, min(lows, default=math.nan), max(highs, default=math.nan), one.n, one.level)


def _wald(values: NDArray[np.float64], is_share: bool, level: float) -> Estimate:
    n = len(values)
    if n == 0 or (n == 1 and not is_share):
        return Estimate(float(values.mean()) if n else math.nan, math.nan, math.nan, n, level)
    mean = float(values.mean())
    spread = math.sqrt(mean * (1 - mean) / n) if is_share else float(values.std(ddof=1)) / math.sqrt(n)
    half = float(norm.ppf((1 + level) / 2)) * spread
    return Estimate(mean, mean - half, mean + half, n, level)


def _estimate(
    statistic: Any, x: NDArray[Any], y: NDArray[Any], groups: NDArray[Any], n_boot: int, seed: int
) -> Estimate | None:
    try:
        value, low, high = with_interval(statistic, x, y, groups=groups, n=n_boot, seed=seed)
    except TooFewExamples:
        return None
    return None if math.isnan(value) else Estimate(value, low, high, len(x))


def _replayed(answers: Answers) -> tuple[tuple[int, int, int], ...]:
    return tuple((t.latent, t.prompt, t.seed) for t in answers.trials)
