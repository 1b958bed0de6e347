"""How strongly to steer: strengths that can be compared.

kl_budget        the strength that spends one nat of KL: the fair unit for comparing methods
bisect_score     the strength at which a noisy score falls to a target (ESR's threshold finder)

No model is run here: the caller hands in a function that answers a strength, and every search also has a form
that asks for many strengths at once (`kl_budget_batch`, `bisect_score_batch`), one call a round for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import betainc, ndtr

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.calibration import End, KlBudget, ScoreThreshold

Update = Literal["published", "centred"]

# A KL below zero by more than this is no rounding error.
_ROUNDING = 1e-3
# Certainties of one answer; a certainty of 0 or 1 could never be revised.
_CERTAIN = 1e-12


# -- a KL budget ----------------------------------------------------------------------------------


def kl_budget(
    kl: Callable[[float], Any],
    *,
    target: float = 1.0,
    low: float = 0.01,
    high: float = 16.0,
    tol: float = 0.05,
    max_iterations: int = 12,
    quantile: float = 0.95,
) -> KlBudget:
    """The strength c at which the p95 of the per-token KL is one nat.

        KL_t(c) = sum_w p_c(w | x_<t) (log p_c(w | x_<t) - log p_0(w | x_<t))        nats
        solve   f(log c) = log quantile_t KL_t(c) - log target = 0   for c in [low, high]

    by regula falsi in log-log coordinates with the Illinois rule (the end that stays twice counts half), because
    KL grows as c^2 while it is small and the curve is then a straight line of slope 2. The first question is the
    geometric middle of the range; until one strength lies on either side the next one is extrapolated with that
    slope, at least a factor 2 away.

    >>> round(kl_budget(lambda c: [c * c / 2] * 20).coeff, 6)
    1.414214

    Args:
        kl: strength -> KL of every token, any array or tensor; which tokens is the caller's affair (the custom:
            the first 20 greedy tokens of a few prompts, written under steering, scored with and without it).
            NaN or infinity counts as more than any budget.
        target: nats.
        low, high: range of strengths, both positive; for the other sign hand in `lambda c: kl(-c)`.
        tol: allowed error as a share of the target.
        max_iterations: how often `kl` may be called at most.
        quantile: of the per-token KL, between 0 and 1.

    Returns: a KlBudget. "Not bracketed" is reported in it, with the end, and not raised; so is a KL that jumps
        past the target (greedy text changes by whole tokens), where the nearest strength is returned.
    Raises: BadInput: range, target, tolerance or quantile make no sense; a clearly negative KL.
        TooFewExamples: no token: count the end-of-text token as one.
    Source: target, range, tolerance, rule: steering-lite (github.com/wassname/steering-lite, calibrate.py), where
        brackets come from doubling. Illinois rule: Dowell and Jarratt, BIT 11 (1971) 168-174.
    """
    (found,) = kl_budget_batch(
        lambda coeffs: [kl(c) for c in coeffs if c is not None],
        1,
        target=target,
        low=low,
        high=high,
        tol=tol,
        max_iterations=max_iterations,
        quantile=quantile,
    )
    return found


def kl_budget_batch(
    kl_many: Callable[[list[float | None]], Sequence[Any]],
    n: int,
    *,
    target: float = 1.0,
    low: float = 0.01,
    high: float = 16.0,
    tol: float = 0.05,
    max_iterations: int = 12,
    quantile: float = 0.95,
) -> list[KlBudget]:
    """`kl_budget` for n problems (directions, latents, methods) at once: one call a round asks for all of them.

    Args:
        kl_many: n strengths -> n arrays of per-token KL, in nats. The strength of a finished problem is None and
            its answer is ignored.
        n: number of problems. The rest as in `kl_budget`; the range is the same for all.

    Returns: n results, each the same as if solved alone.
    Raises: BadInput: also when the number of answers is not n. TooFewExamples: as `kl_budget`.
    Source: as `kl_budget`.
    """
    if not (0 < low < high < math.inf):
        raise BadInput(f"low={low}, high={high}: strengths need 0 < low < high; search the other sign by its own call")
    if not (0 < target < math.inf and 0 < tol < 1):
        raise BadInput(f"target={target} nat and tol={tol}: the target is positive, the tolerance a share below 1")
    if not 0 < quantile <= 1 or max_iterations < 1 or n < 1:
        raise BadInput(f"quantile={quantile} (0 to 1), max_iterations={max_iterations} and n={n} (at least 1 each)")
    traces: list[list[tuple[float, float, int]]] = [[] for _ in range(n)]
    searches = [_illinois(target, low, high, tol) for _ in range(n)]
    asked: list[float | None] = [next(search) for search in searches]
    ends: list[End] = [""] * n
    for _ in range(max_iterations):
        answers = kl_many(list(asked))
        if len(answers) != n:
            raise BadInput(f"{len(answers)} answers to {n} strengths: give one a problem, None where None was asked")
        for i, coeff in enumerate(asked):
            if coeff is None:
                continue
            value, n_tokens = _kl_quantile(answers[i], quantile, coeff)
            traces[i].append((coeff, value, n_tokens))
            try:
                asked[i] = searches[i].send(value)
            except StopIteration as stop:
                asked[i], ends[i] = None, stop.value
        if all(coeff is None for coeff in asked):
            break
    return [_budget(tuple(trace), target, quantile, tol, end) for trace, end in zip(traces, ends, strict=True)]


def _illinois(target: float, low: float, high: float, tol: float) -> Generator[float, float, End]:
    """Yields the next strength, is sent its KL; ends when solved, or when an end of the range stops it."""
    c = math.sqrt(low * high)
    below: tuple[float, float] | None = None  # (log strength, log KL / target) of the two sides
    above: tuple[float, float] | None = None
    stayed = ""
    while True:
        v = yield c
        if abs(v - target) <= tol * target:
            return ""
        f = math.log(v / target) if 0 < v < math.inf else math.copysign(math.inf, v - target)
        if v < target:
            below = (math.log(c), f)
            if above is not None and stayed == "above":
                above = (above[0], above[1] / 2)
            stayed = "above"
        else:
            above = (math.log(c), f)
            if below is not None and stayed == "below":
                below = (below[0], below[1] / 2)
            stayed = "below"
        if below is None or above is None:
            if c == (high if above is None else low):
                return "high" if above is None else "low"
            step = min(max(1.25 * math.exp(min(abs(f), 10) / 2), 2.0), 16.0)
            c = min(c * step, high) if above is None else max(c / step, low)
            continue
        (x0, f0), (x1, f1) = below, above
        if abs(x1 - x0) < tol / 20:
            return ""  # between them the KL jumps past the target: steeper than c^39
        c = math.exp((x0 * f1 - x1 * f0) / (f1 - f0) if math.isfinite(f1 - f0) else (x0 + x1) / 2)


def _budget(
    trace: tuple[tuple[float, float, int], ...], target: float, quantile: float, tol: float, end: End
) -> KlBudget:
    def distance(entry: tuple[float, float, int]) -> float:
        return abs(math.log(entry[1] / target)) if 0 < entry[1] < math.inf else math.inf

    coeff, achieved, n_tokens = min(reversed(trace), key=distance)
    solved = abs(achieved - target) <= tol * target
    bracketed = solved or len({value < target for _, value, _ in trace}) == 2
    return KlBudget(coeff, achieved, target, quantile, tol, n_tokens, trace, bracketed, end)


def _kl_quantile(values: Any, quantile: float, coeff: float) -> tuple[float, int]:
    kl = torch.as_tensor(values).detach().to("cpu", torch.float64).numpy().ravel()
    if not kl.size:
        raise TooFewExamples(f"no token at strength {coeff:g}: the end-of-text token counts as one")
    if (kl < -_ROUNDING).any():
        raise BadInput(
            f"a KL of {np.nanmin(kl):.3g} nat at strength {coeff:g}: a KL over the vocabulary is not negative"
        )
    kl = np.where(np.isnan(kl), np.inf, np.maximum(kl, 0.0))
    # Interpolating between two infinite neighbours would give NaN.
    method = "linear" if np.isfinite(kl).all() else "higher"
    return float(np.quantile(kl, quantile, method=method)), int(kl.size)


# -- a threshold of a score -----------------------------------------------------------------------


def bisect_score(
    score: Callable[[float], float | None],
    prior: tuple[float, float] = (7.0, 5.0),
    bounds: tuple[float, float] = (0.0, 100.0),
    *,
    target: float = 0.3,
    rounds: int = 10,
    grid: int = 10_000,
    trials: int = 5,
    update: Update = "published",
    max_resamples: int = 3,
    level: float = 0.95,
) -> ScoreThreshold:
    """The strength at which a mean score falls to `target`, found by probabilistic bisection.

    The belief about the root b* is a mass on `grid` points of [lo, hi], at first the normal density of `prior`.
    Each round asks for the score s at the posterior median b (the first point where the cumulative mass reaches a
    half) and, with certainty p that the root lies on side y, multiplies the mass on that side by p, on the other by
    1 - p, at b itself by sqrt(p (1 - p)):

        y = right if s >= target else left
        "published":  p = P(X > target) for y right, P(X < target) for y left,  X ~ Beta(.5 + n s, .5 + n (1 - s))
        "centred":    p = Phi((s - target) / sqrt(target (1 - target) / n))     for y right, 1 - that for y left

    A certainty below a half counts as the complement for the other side. The median of the Beta is not s: with
    n = 5 trials and target .3 the published update is undecided at s = .2851 and so converges there; "centred" is
    undecided at the target itself. `effective_target` of the result says which.

    >>> round(bisect_score(lambda b: max(0.0, 1 - b / 20)).coeff, 4)
    14.2914

    Args:
        score: strength -> mean score of its trials in [0, 1], expected to fall with strength; None when nothing
            could be scored (no attempt), which is asked again.
        prior: mean and standard deviation of the belief, in units of the strength.
        bounds: (lo, hi).
        target: score.
        rounds: answers to collect.
        grid: points.
        trials: n, how many scores are behind a mean.
        update: "published" (the ESR code's) or "centred".
        max_resamples: how often one question may be repeated before the search stops.
        level: of the posterior interval.

    Returns: a ScoreThreshold. Not bracketed (every score on one side of the target, or the median at an end of
        the grid) is reported in it, and not raised.
    Raises: BadInput: bounds, prior or counts make no sense; a score outside [0, 1].
    Source: ESR (arXiv 2602.06941) with its code (threshold_finder.py); after Waeber, Frazier and Henderson, SIAM
        Journal on Control and Optimization 51 (2013). The clipping of p, the centred update and the reports of
        failure are ours.
    """
    (found,) = bisect_score_batch(
        lambda coeffs: [score(c) for c in coeffs if c is not None],
        1,
        prior,
        bounds,
        target=target,
        rounds=rounds,
        grid=grid,
        trials=trials,
        update=update,
        max_resamples=max_resamples,
        level=level,
    )
    return found


def bisect_score_batch(
    score_many: Callable[[list[float | None]], Sequence[float | None]],
    n: int,
    prior: tuple[float, float] = (7.0, 5.0),
    bounds: tuple[float, float] = (0.0, 100.0),
    *,
    target: float = 0.3,
    rounds: int = 10,
    grid: int = 10_000,
    trials: int = 5,
    update: Update = "published",
    max_resamples: int = 3,
    level: float = 0.95,
) -> list[ScoreThreshold]:
    """`bisect_score` for n latents at once: one call a round answers the next question of each.

    Args:
        score_many: n strengths -> n mean scores. The strength of a finished latent is None and its answer is
            ignored; an answer of None repeats that latent's question in the next call.
        n: number of latents. The rest as in `bisect_score`. Memory: n x grid x 8 bytes.

    Returns: n results, each the same as if solved alone.
    Raises: BadInput: also when the number of answers is not n.
    Source: as `bisect_score`.
    """
    lo, hi = bounds
    mean, sd = prior
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi and math.isfinite(mean) and sd > 0):
        raise BadInput(f"bounds={bounds} and prior={prior}: needs lo < hi and a positive standard deviation")
    if not 0 < target < 1 or not 0 < level < 1 or update not in ("published", "centred"):
        raise BadInput(f"target={target}, level={level} (0 to 1), update={update!r} ('published' or 'centred')")
    if min(n, rounds, trials) < 1 or grid < 2 or max_resamples < 0:
        raise BadInput(f"n={n}, rounds={rounds}, trials={trials} (at least 1), grid={grid} (2), {max_resamples=} (0)")
    points = np.linspace(lo, hi, grid)
    one = -0.5 * ((points - mean) / sd) ** 2
    log_mass = np.tile(one - one.max(), (n, 1))
    traces: list[list[tuple[float, float]]] = [[] for _ in range(n)]
    repeats, resampled = np.zeros(n, dtype=int), np.zeros(n, dtype=int)
    median = _quantile_index(log_mass, 0.5)
    active = np.ones(n, dtype=bool)
    while active.any():
        asked = [float(points[median[i]]) if active[i] else None for i in range(n)]
        answers = score_many(list(asked))
        if len(answers) != n:
            raise BadInput(f"{len(answers)} answers to {n} strengths: give one a latent, None where None was asked")
        for i, coeff in enumerate(asked):
            if coeff is None:
                continue
            s = answers[i]
            if s is None or math.isnan(s):
                resampled[i] += 1
                repeats[i] += 1
                active[i] = repeats[i] <= max_resamples
                continue
            if not 0 <= s <= 1:
                raise BadInput(f"a score of {s} at strength {coeff:g}: scores lie between 0 and 1 (divide by 100?)")
            repeats[i] = 0
            traces[i].append((coeff, float(s)))
            log_mass[i] += _log_update(float(s), target, trials, update, int(median[i]), grid)
            log_mass[i] -= log_mass[i].max()
            active[i] = len(traces[i]) < rounds
        median = _quantile_index(log_mass, 0.5)
    ends = [_quantile_index(log_mass, q) for q in ((1 - level) / 2, (1 + level) / 2)]
    undecided = _undecided(target, trials, update)
    results = []
    for i, trace in enumerate(traces):
        sides = {s >= target for _, s in trace}
        at_end: End = "low" if median[i] == 0 else "high" if median[i] == grid - 1 else ""
        one_sided: End = "" if len(sides) != 1 else "high" if sides == {True} else "low"
        results.append(
            ScoreThreshold(
                coeff=float(points[median[i]]),
                low=float(points[ends[0][i]]),
                high=float(points[ends[1][i]]),
                level=level,
                target=target,
                effective_target=undecided,
                trace=tuple(trace),
                resampled=int(resampled[i]),
                bracketed=len(sides) == 2 and not at_end,
                end=at_end or one_sided,
                complete=len(trace) == rounds,
            )
        )
    return results


def _right(s: float, target: float, trials: int, update: Update) -> float:
    """Certainty that the root lies at a greater strength, given a mean score s."""
    if update == "centred":
        return float(ndtr((s - target) / math.sqrt(target * (1 - target) / trials)))
    return 1 - float(betainc(0.5 + trials * s, 0.5 + trials * (1 - s), target))


def _log_update(s: float, target: float, trials: int, update: Update, at: int, grid: int) -> NDArray[np.float64]:
    right = min(max(_right(s, target, trials, update), _CERTAIN), 1 - _CERTAIN)
    out = np.full(grid, math.log(right))
    out[:at] = math.log(1 - right)
    out[at] = 0.5 * (math.log(right) + math.log(1 - right))
    return out


def _undecided(target: float, trials: int, update: Update) -> float:
    """The score at which the update moves the belief to neither side."""
    at_zero, at_one = (_right(s, target, trials, update) - 0.5 for s in (0.0, 1.0))
    if update == "centred" or at_zero > 0 or at_one < 0:
        return target if update == "centred" else (0.0 if at_zero > 0 else 1.0)
    return float(
        root_scalar(lambda s: _right(s, target, trials, update) - 0.5, bracket=(0.0, 1.0), method="brentq").root
    )


def _quantile_index(log_mass: NDArray[np.float64], q: float) -> NDArray[np.intp]:
    """First grid point of every row at which the cumulative share of the mass reaches q."""
    cumulative = np.cumsum(np.exp(log_mass), axis=1)
    return (cumulative >= q * cumulative[:, -1:]).argmax(axis=1)
