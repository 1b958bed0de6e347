"""Latent knowledge recoverability: does the state before the answer say whether it will be right?

    acts = lm.activations(prompts, "resid_post[-5:]", where="last")
    recoverability.recover(acts, correct, groups=questions)
    recoverability.transfer({"direct": acts, "steps": other}, {"direct": correct, "steps": other_correct})

The layers are concatenated, so columns outnumber rows and a probe fits any labels: only the held-out AUROC beside its
permutations says anything.

Source: Intention Collapse (arXiv 2601.01011).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.batched_logistic import fit_logistic
from latentlens.maths.nested_probe import inflation
from latentlens.maths.statistics import auroc, auroc_rows, auroc_score_interval, cluster_bootstrap
from latentlens.values.activations import Activations
from latentlens.values.intention import Recoverability, Transfer
from latentlens.values.results import Estimate

Split = Literal["holdout", "folds"]
_GRID = tuple(10.0**k for k in range(-4, 3))
_FOLDS = 5
_SPLITS_TRIED = 100
_TOLERANCE = 1e-4  # of the fits: AUROC is then that of the optimum to three digits
_REFITS = 20  # permutations from which on the interval of out-of-fold scores takes in what refitting adds
_NUMBERS = 1 << 24  # weights held at a time


class _Side(NamedTuple):
    """One part held out: rows to train on, to choose C on (may be empty), to test on."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]


class _Outcome(NamedTuple):
    scores: NDArray[np.float64]  # held-out log odds; NaN for rows that were not held out
    train_auroc: float
    C: float


def recover(
    acts: Activations,
    correct: ArrayLike,
    *,
    sites: Any = None,
    groups: ArrayLike | None = None,
    split: Split = "holdout",
    C: float | Sequence[float] | None = None,
    seed: int = 42,
    n_bootstrap: int = 1000,
    n_permutations: int = 200,
    level: float = 0.95,
) -> Recoverability:
    """AUROC of a logistic probe that predicts being right from the states of several layers.

        Recov = AUROC(sigmoid(W vec(I) + b), correct),   vec(I): the layers of an item concatenated

    - split="holdout" (the paper): 60% of the groups train, 20% choose C by AUROC, 20% test.
    - split="folds" (what the code's main table used): out-of-fold predictions of min(5, groups of the rarer class)
      folds, pooled into one AUROC, C = 1. The published intervals resample those fixed predictions, which all share
      their training rows, and on shuffled labels cover chance in 84% of cases instead of 95%; here they are widened
      by the ratio of the spread over permuted refits to the bootstrap's (`wider`; 1 without 20 permutations).

    Columns are z-scored on the training rows only. Where it cannot be computed (one class, too few of one) the numbers
    are NaN and `reason` says why; the published code returns .5 with the interval [0, 1] there.

    Args:
        acts: one row an item, taken before the answer.
        correct: (n,) bool.
        sites: which layers; all by default. The paper takes the last five blocks.
        groups: (n,) what must not be on both sides (several samples of one question). Default: every row its own.
        split: as above.
        C: inverse strength of the penalty. By default 1e-4 to 1e2 for "holdout" and 1 for "folds"; several values with
            "folds" are refused, as nothing is left to choose them on.
        seed: of the split, the bootstrap and the permutations.
        n_bootstrap: resamples of groups. n_permutations: labels permuted over groups (over rows where a group has
            both labels) and everything refitted, C included.
        level: coverage.

    Raises: BadInput: lengths differ, labels not binary, C not positive. NonFiniteActivations: NaN or infinity.
    Source: arXiv 2601.01011, section 4 (holdout), table 6 (folds).
    """
    x = _concatenated(acts, sites)
    y, group = _labels(correct, len(x)), _codes(groups, len(x))
    grid = _grid(C, split)
    split_seed, boot_seed, null_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    shape = {"n": len(y), "n_right": int(y.sum()), "d": x.shape[1], "split": split}

    def nothing(reason: str) -> Recoverability:
        none = Estimate(math.nan, math.nan, math.nan, len(y), level)
        return Recoverability(none, math.nan, none, math.nan, math.nan, folds=0, reason=reason, **shape)

    reason = _too_few(y, group, split)
    if reason:
        return nothing(reason)
    sides = _holdout(y, group, split_seed) if split == "holdout" else _folds(y, group, split_seed)
    if not sides:
        return nothing(f"no split of {int(group.max()) + 1} groups has both classes in every part")
    moved = _permutations(y, group, sides, n_permutations, np.random.default_rng(null_seed))
    real, *others = _predict(x, sides, np.concatenate([y[None], moved]), grid)
    tested = np.isfinite(real.scores)
    value = auroc(real.scores[tested], y[tested])
    null = np.array([auroc(one.scores[tested], new[tested]) for one, new in zip(others, moved, strict=True)])
    low, high = _interval(real.scores[tested], y[tested], group[tested], n_bootstrap, boot_seed, level)
    wider = 1.0
    if split == "folds" and len(null) >= _REFITS:  # out-of-fold scores share their training rows
        kept = np.stack([np.stack([new, one.scores]) for one, new in zip(others[:10], moved[:10], strict=True)])
        wider = inflation(null[:, None], kept, group, boot_seed, level)
    low, high = max(0.0, value - wider * (value - low)), min(1.0, value + wider * (high - value))
    tail = (1 - level) / 2
    ends = np.quantile(null, [tail, 1 - tail]) if len(null) else (math.nan, math.nan)
    return Recoverability(
        Estimate(value, low, high, int(tested.sum()), level),
        float((1 + (null >= value - 1e-12).sum()) / (1 + len(null))) if len(null) else math.nan,
        Estimate(float(null.mean()) if len(null) else math.nan, float(ends[0]), float(ends[1]), len(null), level),
        real.train_auroc,
        real.C,
        folds=len(sides),
        wider=wider,
        **shape,
    )


def transfer(
    acts: Mapping[str, Activations],
    correct: Mapping[str, ArrayLike],
    *,
    sites: Any = None,
    groups: ArrayLike | None = None,
    C: float = 1.0,
    seed: int = 42,
    n_bootstrap: int = 1000,
    level: float = 0.95,
) -> Transfer:
    """Train in one regime, test in every other, on items held out from both.

    One split of the items into folds serves all pairs: a probe of regime A that saw item i is never asked about item
    i in regime B. Out-of-fold log odds are pooled into one AUROC a cell.

    Args:
        acts: regime -> one row an item, the SAME items in the same order in every regime, sites of equal width.
        correct: regime -> (n,) bool.
        sites, C, seed, n_bootstrap, level: as `recover` with split="folds".
        groups: (n,) of the items.

    Returns: a cell for each pair; NaN where training or testing lacks a class.
    Raises: BadInput: fewer than two regimes, other regimes in `correct`, or lengths that differ.
    Source: arXiv 2601.01011, cross-regime control.
    """
    if len(acts) < 2 or set(acts) != set(correct):
        raise BadInput(f"regimes {sorted(acts)} with labels of {sorted(correct)}: give the same two or more")
    x = {name: _concatenated(one, sites) for name, one in acts.items()}
    if len({states.shape for states in x.values()}) > 1:
        shapes = {name: states.shape for name, states in x.items()}
        raise BadInput(f"states differ between regimes: {shapes}; give the same items and sites in each")
    n = len(next(iter(x.values())))
    y = {name: _labels(correct[name], n) for name in acts}
    group = _codes(groups, n)
    split_seed, boot_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    nan = Estimate(math.nan, math.nan, math.nan, n, level)
    cells = {}
    part = _blind_folds(group, split_seed)
    for a in acts:
        scores = {b: np.full(n, math.nan) for b in acts}
        for fold in range(int(part.max()) + 1):
            train, test = np.flatnonzero(part != fold), np.flatnonzero(part == fold)
            if not 0 < y[a][train].sum() < len(train):
                continue
            strength = torch.tensor([C], dtype=torch.float64)
            labels = torch.as_tensor(y[a][train])[None]
            states = torch.from_numpy(x[a][train])[None]
            found = fit_logistic(states, labels, strength, tol=_TOLERANCE, dtype=torch.float64)
            for b in acts:
                scores[b][test] = x[b][test] @ found.weights[0, 0].numpy() + float(found.intercepts[0, 0])
        for b in acts:
            done = np.isfinite(scores[b])
            if 0 < y[b][done].sum() < done.sum():
                value = auroc(scores[b][done], y[b][done])
                ends = _interval(scores[b][done], y[b][done], group[done], n_bootstrap, boot_seed, level)
                cells[a, b] = Estimate(value, *ends, int(done.sum()), level)
            else:
                cells[a, b] = nan
    return Transfer(tuple(acts), cells)


# -- who is on which side -------------------------------------------------------------------------


def _too_few(y: NDArray, group: NDArray, split: Split) -> str:
    """Why there is nothing to measure, or ""."""
    right, wrong = len(np.unique(group[y])), len(np.unique(group[~y]))
    if not right or not wrong:
        return f"all {len(y)} labels are {bool(y[0]) if len(y) else 'missing'}: one class has no AUROC"
    least = 3 if split == "holdout" else 2
    if min(right, wrong) < least:
        return f"{right} group(s) with right and {wrong} with wrong answers: split={split!r} needs {least} of each"
    return ""


def _holdout(y: NDArray, group: NDArray, seed: int) -> list[_Side]:
    """60/20/20 by group; of many random orders the one whose parts agree best in size and share of positives."""
    rng = np.random.default_rng(seed)
    count = int(group.max()) + 1
    cuts = [max(1, round(0.6 * count)), min(count - 1, max(2, round(0.8 * count)))]
    best, best_gap = None, math.inf
    for _ in range(_SPLITS_TRIED):
        parts = [np.flatnonzero(np.isin(group, p)) for p in np.split(rng.permutation(count), cuts)]
        if any(len(p) == 0 or not 0 < y[p].sum() < len(p) for p in parts):
            continue
        gap = sum(abs(y[p].mean() - y.mean()) for p in parts)
        gap += abs(len(parts[0]) / len(y) - 0.6) + abs(len(parts[2]) / len(y) - 0.2)
        if gap < best_gap:
            best, best_gap = parts, gap
    return [] if best is None else [_Side(*best)]


def _folds(y: NDArray, group: NDArray, seed: int) -> list[_Side]:
    from sklearn.model_selection import StratifiedGroupKFold

    n_folds = min(_FOLDS, len(np.unique(group[y])), len(np.unique(group[~y])))
    cutter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    empty = np.empty(0, dtype=np.intp)
    sides = [_Side(train, empty, test) for train, test in cutter.split(y, y, group)]
    return [side for side in sides if 0 < y[side.train].sum() < len(side.train) and len(side.test)]


def _blind_folds(group: NDArray, seed: int) -> NDArray[np.intp]:
    """Fold of every row, drawn by group without a look at labels, which differ between regimes."""
    count = int(group.max()) + 1
    if count < 2:
        raise TooFewExamples(f"{count} group(s) of items: folds need at least 2")
    order = np.random.default_rng(seed).permutation(count)
    part = np.empty(count, dtype=np.intp)
    part[order] = np.arange(count) % min(_FOLDS, count)
    return part[group]


# -- fitting --------------------------------------------------------------------------------------


def _scores(x: NDArray, train: NDArray, labels: NDArray, grid: Sequence[float]) -> NDArray[np.float64]:
    """Log odds of all rows by probes fitted to the training rows of each labelling with each C: (k, grid, n)."""
    columns = torch.as_tensor(np.repeat(labels[:, train], len(grid), axis=0))
    strengths, rows = torch.tensor(grid, dtype=torch.float64).repeat(len(labels)), torch.from_numpy(x)
    step, out = max(1, _NUMBERS // x.shape[1]), np.empty((len(columns), len(x)))
    for first in range(0, len(columns), step):  # weights of a few columns at a time: d may be 20,000
        part = slice(first, first + step)
        found = fit_logistic(rows[train][None], columns[part], strengths[part], tol=_TOLERANCE, dtype=torch.float64)
        out[part] = (found.weights[0] @ rows.T + found.intercepts[0][:, None]).numpy()
    return out.reshape(len(labels), len(grid), len(x))


def _predict(x: NDArray, sides: Sequence[_Side], labels: NDArray, grid: Sequence[float]) -> list[_Outcome]:
    """Held-out log odds for each labelling, (k, n); C is chosen on the validation side where there is one."""
    k = len(labels)
    scores, trained, chosen = np.full(labels.shape, math.nan), np.zeros(k), np.full(k, grid[0])
    for side in sides:
        found = _scores(x, side.train, labels, grid)
        best = np.zeros(k, dtype=np.intp)
        if len(side.validation):  # the strongest penalty of equals, as the grid ascends
            truth = np.repeat(labels[:, side.validation], len(grid), axis=0)
            at = found[..., side.validation].reshape(len(truth), -1)
            best = auroc_rows(at, truth).reshape(k, len(grid)).argmax(1)
            chosen = np.asarray(grid)[best]
        mine = found[np.arange(k), best]
        trained += auroc_rows(mine[:, side.train], labels[:, side.train]) / len(sides)
        scores[:, side.test] = mine[:, side.test]
    return [_Outcome(s, float(t), float(c)) for s, t, c in zip(scores, trained, chosen, strict=True)]


def _permutations(y: NDArray, group: NDArray, sides: Sequence[_Side], n: int, rng: np.random.Generator) -> NDArray:
    """Permuted labels, (at most n, rows); draws that leave a part with one class are drawn again."""
    sizes, positives = np.bincount(group), np.bincount(group, weights=y)
    one_label = bool(((positives == 0) | (positives == sizes)).all())
    parts = [p for side in sides for p in (side.train, side.validation) if len(p)]
    parts.append(np.concatenate([side.test for side in sides]))
    found: list[NDArray] = []
    for _ in range(5 * n):
        if len(found) == n:
            break
        new = rng.permutation(positives > 0)[group] if one_label else rng.permutation(y)
        if all(0 < new[p].sum() < len(p) for p in parts):
            found.append(new)
    return np.array(found).reshape(-1, len(y)).astype(bool)


def _interval(scores: NDArray, y: NDArray, group: NDArray, n: int, seed: int, level: float) -> tuple[float, float]:
    try:
        low, high = cluster_bootstrap(auroc, scores, y, groups=group, n=n, seed=seed, level=level)
    except TooFewExamples:
        return math.nan, math.nan
    if low == high:  # perfect separation: no resample can differ
        return auroc_score_interval(low, len(np.unique(group[y])), len(np.unique(group[~y])), level)
    return low, high


# -- reading the input ----------------------------------------------------------------------------


def _concatenated(acts: Activations, sites: Any) -> NDArray[np.float64]:
    chosen = list(acts.sites) if sites is None else acts.expand(sites)
    if not chosen:
        raise BadInput("no site: the activations are empty, or sites=[] was given")
    x = torch.cat([acts[site].detach().to("cpu").flatten(1) for site in chosen], -1).double().numpy()
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise NonFiniteActivations(f"{int(bad.sum())} of {len(x)} rows hold NaN or infinity: drop them first")
    return x


def _labels(correct: ArrayLike, n: int) -> NDArray[np.bool_]:
    y = np.asarray(correct)
    if y.shape != (n,):
        raise BadInput(f"labels of shape {y.shape} for {n} rows of activations: give one a row")
    if y.dtype != bool and not np.isin(y, (0, 1)).all():
        raise BadInput("labels say whether an answer was right: bool, or 0 and 1")
    return y.astype(bool)


def _codes(groups: ArrayLike | None, n: int) -> NDArray[np.intp]:
    if groups is None:
        return np.arange(n)
    found = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(found) != n:
        raise BadInput(f"{len(found)} groups for {n} rows of activations: give one a row")
    return found


def _grid(C: float | Sequence[float] | None, split: Split) -> list[float]:
    if split not in ("holdout", "folds"):
        raise BadInput(f"split={split!r}: allowed are 'holdout' (the paper) and 'folds' (its code)")
    if C is None:
        return list(_GRID) if split == "holdout" else [1.0]
    grid = sorted(float(c) for c in (C if isinstance(C, Sequence) else [C]))
    if not grid or grid[0] <= 0:
        raise BadInput(f"C={C}: give one or several positive numbers")
    if split == "folds" and len(grid) > 1:
        raise BadInput("split='folds' leaves nothing to choose C on: give one C, or split='holdout'")
    return grid
