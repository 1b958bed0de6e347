"""Intention metrics: how undecided a model is before it writes, and how many dimensions that state fills.

    logits = lm.logits(prompts)                                    # last prompt position
    intention.entropy(logits)                                      # bits, one a prompt
    acts = lm.activations(prompts, "resid_post[-5:]", where="last")
    intention.effective_dimensionality(acts)

Two warnings come with them. Entropy at the last prompt position moves mostly with the last prompt TOKENS, so regimes
whose prompts end differently cannot be compared by it. And that position is before any reasoning, whatever the prompt
asks for: nothing here measures a state after thinking.

Source: Intention Collapse (arXiv 2601.01011). Paper and published code differ in all metrics; both are here by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths import dimension
from latentlens.maths.entropy import entropy as _entropy
from latentlens.maths.entropy import log_probabilities
from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap
from latentlens.values.activations import Activations
from latentlens.values.intention import Contrast, Dimensionality, EntropyCurve, LayerDimension, OptionEntropy
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


def entropy(logits: Tensor | Activations, *, top_k: int | None = None, base: float = 2.0) -> NDArray[np.float64]:
    """Intention entropy: Shannon entropy of the next-token distribution.

        H_int = -sum_v p(v) log2 p(v),   p = softmax(logits at the last prompt position), temperature 1

    Args:
        logits: (n, V) from `lm.logits(prompts)`, or activations that hold the site `logits`.
        top_k: None for the whole vocabulary (the paper); 100 for what its code computed: the 100 largest,
            renormalised (smaller, bound log2 100 = 6.64; the code also adds 1e-10 inside the logarithm, which
            changes the ninth digit).
        base: 2 gives bits.

    Returns: (n,), between 0 and log_base V.
    Raises: BadInput: NaN or infinity among the logits, another shape, top_k below 1.
    Source: arXiv 2601.01011, section 4.
    """
    return _entropy(_logits(logits), top_k=top_k, base=base).double().numpy()


def option_entropy(
    logits: Tensor | Activations, options: Sequence[int] | Sequence[Sequence[int]], *, base: float = 2.0
) -> OptionEntropy:
    """Entropy over answer options alone, with the probability that they have together.

        H_opt = -sum_o q_o log q_o,   q_o = p_o / mass,   mass = sum_o p_o,   p: FULL softmax

    The published code sums q instead of p, so that its mass is always 1.

    Args:
        logits: as `entropy`.
        options: token ids, one an option, or one list of ids a text.
        base: 2 gives bits.

    Raises: BadInput: fewer than two options, repeated ones, ids outside the vocabulary, or lengths that differ.
    """
    log_p = log_probabilities(_logits(logits))
    per_text = len(options) > 0 and isinstance(options[0], (list, tuple, np.ndarray))
    ids = torch.as_tensor(np.asarray(options if per_text else [list(options)] * len(log_p)))  # type: ignore[arg-type]
    if ids.ndim != 2 or len(ids) != len(log_p) or ids.shape[-1] < 2:
        raise BadInput(f"options of shape {tuple(ids.shape)} for {len(log_p)} texts: at least two ids, the same number")
    if ids.dtype.is_floating_point or int(ids.min()) < 0 or int(ids.max()) >= log_p.shape[-1]:
        raise BadInput(f"options must be token ids from 0 to {log_p.shape[-1] - 1}")
    if any(len(set(row)) < len(row) for row in ids.tolist()):
        raise BadInput("an option is named twice: one token id each (do two options begin with the same token?)")
    chosen = log_p.gather(-1, ids)
    return OptionEntropy(
        _entropy(chosen, base=base).double().numpy(),
        chosen.double().exp().sum(-1).numpy(),
        math.log(ids.shape[-1], base),
    )


def entropy_curve(
    acts: Activations,
    *,
    groups: ArrayLike | None = None,
    top_k: int | None = None,
    base: float = 2.0,
    max_steps: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> EntropyCurve:
    """Mean entropy at each generated step, step 0 being the last prompt position.

    Args:
        acts: `lm.activations(runs, "logits", where="last_prompt+response")`, one row a position.
        groups: (n_texts,) what to resample, such as the question; the text by default.
        top_k, base: as `entropy`.
        max_steps: how far; by default to the last step that at least three groups reach.
        seed: of the bootstrap. level: coverage.

    Raises: BadInput: the activations do not say which text and position a row is; groups of another length.
        TooFewExamples: no step is reached by three groups.
    """
    bits = entropy(acts, top_k=top_k, base=base)
    if not {"text", "position"} <= set(acts.labels):
        raise BadInput("an entropy curve needs the labels text and position: take them from lm.activations")
    text, position = np.asarray(acts.labels["text"]), np.asarray(acts.labels["position"])
    names, codes = np.unique(text, return_inverse=True)
    first = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(first, codes, position)
    steps = position - first[codes]
    group = _per_text(groups, names)[codes]
    found: list[Estimate] = []
    last = int(steps.max()) + 1 if len(steps) else 0
    for step in range(last if max_steps is None else min(last, max_steps)):
        at = steps == step
        if len(np.unique(group[at])) < 3:
            break
        found.append(_mean(bits[at], group[at], seed, level))
    if not found:
        raise TooFewExamples(f"{len(names)} text(s) in {len(np.unique(group))} group(s): a curve needs at least 3")
    return EntropyCurve(np.arange(len(found)), tuple(found), "bits" if base == 2 else f"log base {base:g}")


def effective_dimensionality(
    acts: Activations,
    *,
    sites: Any = None,
    groups: ArrayLike | None = None,
    share: float = 0.9,
    level: float = 0.95,
) -> Dimensionality:
    """Effective dimension of a cloud of states at each site, in each of the ways that the paper and its code use.

        PR[l] = (sum_i l_i)^2 / sum_i l_i^2              l_i: eigenvalues of the covariance over items
        aggregated = sum_l w_l PR[l],  w_l = tr C[l] / sum tr C                       (version 2, the paper)
        k90[l] = fewest components with 90% of the variance; median over layers       (version 2, the code)
        k90 of the layer vectors of one item, averaged over items                     (version 1, by its numbers)

    Args:
        acts: one row an item, sites of equal width (n, d).
        sites: which; all by default. The paper takes the last five blocks.
        groups: (n,) rows that are not independent of each other, for the interval.
        share: of the variance in k90.
        level: coverage of the intervals (jackknife over groups, with Student's t).

    Returns: Dimensionality; PR and k90 are NaN at a site whose states do not vary.
    Raises: TooFewExamples: fewer than three items. NonFiniteActivations. BadInput: sites of different widths.
    Source: arXiv 2601.01011, section 4 and published notebooks.
    """
    chosen, x = _states(acts, sites)
    n, d = x.shape[1:]
    if n < 3:
        raise TooFewExamples(f"{n} item(s): an effective dimension with an interval needs at least 3")
    group = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    layers = []
    for site, points in zip(chosen, x, strict=True):
        values = dimension.spectrum(points)
        ratio = dimension.participation_ratio(points)
        count = len(np.unique(group))
        error = dimension.participation_error(points, group)
        half = float(student_t.ppf((1 + level) / 2, count - 1)) * error
        top = float(min(n - 1, d))
        interval = (max(1.0, ratio - half), min(top, ratio + half)) if math.isfinite(ratio) else (math.nan, math.nan)
        layers.append(
            LayerDimension(
                site,
                Estimate(ratio, *interval, n, level),
                dimension.components_for(points, share),
                float(values.sum()),
            )
        )
    per_item = x.transpose(1, 0, 2)
    items = [dimension.components_for(one, share) for one in per_item] if len(chosen) > 1 else [math.nan] * n
    return Dimensionality(tuple(layers), n, d, np.array(items), {"share": share, "activations": dict(acts.about)})


def dimension_robustness(
    acts: Activations,
    *,
    sites: Any = None,
    sizes: Sequence[int] = (25, 50, 100, 150, 200),
    repeats: int = 20,
    seed: int = 0,
    inverted: bool = False,
    level: float = 0.95,
) -> pd.DataFrame:
    """Other estimators of the same thing: does the finding depend on the number of items or on the formula?

    - "participation" on subsamples of each size without replacement: it grows with n until n is far above it, so
      compare regimes at equal n only;
    - "TwoNN" and "Levina-Bickel" on all items: intrinsic dimension from neighbour distances;
    - "participation above noise" and "eigenvalues above noise": after Marchenko-Pastur.

    Args: acts, sites: as `effective_dimensionality`. sizes: those above n are left out. repeats: subsamples a size.
        seed: of the subsamples. inverted: as `maths.dimension.marchenko_pastur`. level: spread of the subsamples.
    Returns: a pandas frame: site, estimator, n, value, low, high (NaN where there is nothing to spread over).
    Raises: as `effective_dimensionality`.
    """
    import pandas as pd

    chosen, x = _states(acts, sites)
    n, d = x.shape[1:]
    if n < 4:
        raise TooFewExamples(f"{n} item(s): the robustness set needs at least 4")
    rng = np.random.default_rng(seed)
    tail = (1 - level) / 2
    draws = {size: [rng.permutation(n)[:size] for _ in range(repeats)] for size in sizes if 2 <= size <= n}
    rows: list[tuple[str, str, int, float, float, float]] = []
    for site, points in zip(chosen, x, strict=True):
        for size, parts in draws.items():
            found = np.array([dimension.participation_ratio(points[part]) for part in parts])
            ends = np.quantile(found, [tail, 1 - tail])
            rows.append((str(site), "participation", size, float(found.mean()), float(ends[0]), float(ends[1])))
        values = dimension.spectrum(points)
        kept = dimension.marchenko_pastur(values, n, d, inverted=inverted)
        single = {
            "TwoNN": dimension.two_nn(points),
            "Levina-Bickel": dimension.levina_bickel(points),
            "participation above noise": dimension.participation_of(kept),
            "eigenvalues above noise": float(len(kept)),
        }
        rows += [(str(site), name, n, value, math.nan, math.nan) for name, value in single.items()]
    return pd.DataFrame(rows, columns=["site", "estimator", "n", "value", "low", "high"])


def relation(
    metric: ArrayLike, correct: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Point-biserial correlation between a metric and being right, r(H_int, correct) in the paper.

        r = cov(m, y) / (sd(m) sd(y)),   y = 0 or 1

    Args: metric: (n,) finite. correct: (n,) bool. groups: (n,) what to resample. seed, level: of the bootstrap.
    Returns: Estimate; NaN where the metric or the labels do not vary.
    Raises: BadInput: lengths differ, NaN.
    """
    m, y, group = _pair(metric, correct, groups)

    def r(a: NDArray, b: NDArray) -> float:
        return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else math.nan

    value = r(m, y)
    if math.isnan(value):
        return Estimate(math.nan, math.nan, math.nan, len(m), level)
    try:
        ends = cluster_bootstrap(r, m, y, groups=group, seed=seed, level=level)
    except TooFewExamples:
        ends = (math.nan, math.nan)
    return Estimate(value, *ends, len(m), level)


def average(metric: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean of a metric over items with its interval.

    Args: metric: (n,). groups: (n,) what to resample; the item by default. seed, level: of the bootstrap.
    Raises: BadInput: NaN, lengths differ. TooFewExamples: fewer than two groups.
    """
    values, _, group = _pair(metric, metric, groups)
    return _mean(values, group, seed, level)


def contrast(
    first: ArrayLike,
    second: ArrayLike,
    *,
    names: tuple[str, str] = ("first", "second"),
    groups: ArrayLike | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Contrast:
    """Does a metric tell two regimes apart, on the same items?

    Args: first, second: (n,) the metric of item i in either regime. names: of the regimes. groups: (n,) what to
        resample; the item by default, so that its two values stay together. seed, level: of the bootstrap.
    Raises: BadInput: lengths differ, NaN. TooFewExamples: fewer than two groups.
    """
    a, b, group = _pair(first, second, groups)

    def over(x: NDArray, y: NDArray) -> float:
        return auroc(np.concatenate([x, y]), np.repeat([False, True], len(x)))

    difference = _mean(b - a, group, seed, level)
    value = over(a, b)
    low, high = cluster_bootstrap(over, a, b, groups=group, n=400, seed=seed, level=level)
    if low == high:
        count = len(np.unique(group))
        low, high = auroc_score_interval(value, count, count, level)
    return Contrast(*names, difference, Estimate(value, low, high, len(a), level))


# -- reading the input ----------------------------------------------------------------------------


def _logits(given: Tensor | Activations) -> Tensor:
    x = given["logits"] if isinstance(given, Activations) else torch.as_tensor(given)
    if x.ndim != 2:
        raise BadInput(f"logits of shape {tuple(x.shape)}: give (n, vocabulary), as lm.logits(prompts) does")
    return x


def _states(acts: Activations, sites: Any) -> tuple[list[Site], NDArray[np.float64]]:
    """The sites asked for, and their states (n_sites, n, d)."""
    chosen = list(acts.sites) if sites is None else acts.expand(sites)
    if not chosen:
        raise BadInput("no site: the activations are empty, or sites=[] was given")
    x = acts.stack(chosen)
    if x.ndim != 3:
        raise BadInput(f"states of shape {tuple(x.shape[2:])} a row: give sites with rows of shape (d,)")
    if not bool(torch.isfinite(x).all()):
        bad = ~torch.isfinite(x).all(-1).all(0)
        raise NonFiniteActivations(f"{int(bad.sum())} of {x.shape[1]} rows hold NaN or infinity: drop them first")
    return chosen, x.detach().to("cpu").double().numpy()


def _per_text(groups: ArrayLike | None, names: NDArray) -> NDArray[np.intp]:
    """A group code for every text that has rows; `groups` is indexed by the number of the text."""
    if groups is None:
        return np.arange(len(names))
    given = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(given) <= int(names.max()):
        raise BadInput(f"{len(given)} groups, but text {int(names.max())} has rows: give one group a text")
    return given[names]


def _pair(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None) -> tuple[NDArray, NDArray, NDArray]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    group = np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 1 or x.shape != y.shape or len(group) != len(x):
        raise BadInput(f"shapes {x.shape} and {y.shape} with {len(group)} groups: give (n,) of the same items")
    if np.isnan(x).any() or np.isnan(y).any():
        raise BadInput(f"{int((np.isnan(x) | np.isnan(y)).sum())} of {len(x)} rows are NaN: drop them first")
    return x, y, group


def _mean(values: NDArray, group: NDArray, seed: int, level: float) -> Estimate:
    ends = cluster_bootstrap(lambda v: float(v.mean()), values, groups=group, seed=seed, level=level)
    return Estimate(float(values.mean()), *ends, len(values), level)
