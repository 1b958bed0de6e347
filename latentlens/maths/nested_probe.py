"""Nested, grouped cross-validation of probes at several sites, and its permutation null, on plain arrays.

    outer fold:  its rows are scored by a probe whose site and C were chosen by inner folds of the other rows
    scores:      out-of-fold logits minus the mean logit of that fold's training rows, so that folds with
                 different intercepts can be pooled

All outer x inner folds x penalties are columns of one batched fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import Tensor

from latentlens.errors import TooFewExamples
from latentlens.maths.calibration_scores import best_threshold, temperature
from latentlens.maths.grouped_splits import Split, grouped_folds, permuted
from latentlens.maths.readouts import Fitter, logistic
from latentlens.maths.statistics import auroc, auroc_rows, cluster_bootstrap

_NUMBERS = 1 << 25  # (site, column, row) scores held at a time


class Nested(NamedTuple):
    """What nested cross-validation found.

    scores: (n,), of the whole procedure, centred by fold. logits: (n,), not centred. by_site: (sites, n), with C
    chosen for that site inside each fold. site, C: (folds,), chosen. inner: (folds,), their inner AUROC. threshold,
    temperature: (folds,), from inner out-of-fold rows. folds: the outer folds. fold: (n,), which of them a row is in.
    """

    scores: NDArray[np.float64]
    logits: NDArray[np.float64]
    by_site: NDArray[np.float64]
    site: NDArray[np.intp]
    C: NDArray[np.float64]
    inner: NDArray[np.float64]
    threshold: NDArray[np.float64]
    temperature: NDArray[np.float64]
    folds: list[Split]
    fold: NDArray[np.intp]


def masked_scores(
    x: Tensor, labels: NDArray, masks: NDArray, strengths: NDArray, fitter: Fitter, *, centred: bool = True
) -> NDArray[np.float32]:
    """Scores of all rows by probes of each column: (sites, columns, n); labels, masks (columns, n)."""
    out = np.empty((len(x), *labels.shape), dtype=np.float32)
    step = max(1, _NUMBERS // max(1, len(x) * labels.shape[1]))
    for first in range(0, len(labels), step):
        part = slice(first, first + step)
        rows = torch.as_tensor(masks[part])
        found = fitter(x, torch.as_tensor(labels[part]), torch.as_tensor(strengths[part]), rows)
        scores = found.scores(x)
        if centred:
            share = rows.double() / rows.double().sum(1, keepdim=True)
            scores = scores - (scores * share).sum(-1, keepdim=True)
        out[:, part] = scores.float().numpy()
    return out


def nested_scores(
    x: Tensor, y: NDArray, group: NDArray, grid: list[float], fitter: Fitter, *, n_outer: int, n_inner: int, seed: int
) -> Nested:
    """Nested cross-validation; every choice is made inside the outer fold.

    Args: x: (sites, n, d). y: (n,) bool. group: (n,) codes. grid: values of C. fitter: how to fit.
    Raises: TooFewExamples: no grouped folds with both classes.
    """
    n, n_sites = len(y), len(x)
    outer = grouped_folds(y, group, np.arange(n), n_outer, seed)
    inner = [grouped_folds(y, group, f.train, n_inner, seed + 1 + i) for i, f in enumerate(outer)]
    splits = [s for fold in inner for s in fold] + outer
    masks = np.zeros((len(splits), n), dtype=bool)
    for i, split in enumerate(splits):
        masks[i, split.train] = True
    width = len(grid)
    columns = np.repeat(masks, width, axis=0)
    raw = masked_scores(
        x, np.broadcast_to(y, columns.shape).copy(), columns, np.tile(grid, len(splits)), fitter, centred=False
    ).reshape(n_sites, len(splits), width, n)
    scores, logits, by_site = np.full(n, np.nan), np.full(n, np.nan), np.full((n_sites, n), np.nan)
    fold_of = np.full(n, -1)
    site, strength, reached, cut, warm = [], [], [], [], []
    first = 0
    for i, (split, inside) in enumerate(zip(outer, inner, strict=True)):
        mine = range(first, first + len(inside))
        first += len(inside)
        table = np.stack([
            auroc_rows(raw[:, j][..., s.test].reshape(-1, len(s.test)), y[s.test]) for j, s in zip(mine, inside)
        ]).mean(0).reshape(n_sites, width)  # fmt: skip
        # The strongest penalty of equals, and the first site of equals.
        order = np.argsort(grid)
        best_c = order[table[:, order].argmax(axis=1)]
        best = int(table[np.arange(n_sites), best_c].argmax())
        out = raw[:, len(splits) - len(outer) + i]  # (sites, C, n)
        chosen = out[np.arange(n_sites), best_c]
        middle = chosen[:, split.train].mean(axis=1, keepdims=True)
        by_site[:, split.test] = (chosen - middle)[:, split.test]
        scores[split.test], logits[split.test] = by_site[best, split.test], chosen[best, split.test]
        held = np.concatenate([s.test for s in inside])
        held_logits = np.concatenate([raw[best, j, best_c[best]][s.test] for j, s in zip(mine, inside)])
        cut.append(best_threshold(held_logits, y[held]))
        warm.append(temperature(held_logits, y[held]))
        site.append(best)
        strength.append(grid[best_c[best]])
        reached.append(table[best, best_c[best]])
        fold_of[split.test] = i
    return Nested(
        scores, logits, by_site, np.array(site), np.array(strength), np.array(reached), np.array(cut),
        np.array(warm), outer, fold_of,
    )  # fmt: skip


def held_out(
    x: Tensor, pairs: list[tuple[NDArray, NDArray]], labels: list[NDArray], strength: float
) -> tuple[NDArray, NDArray]:
    """Mean over splits of held-out AUROC and accuracy of probes fitted to each labelling, (labellings,) each."""
    areas, rights = [], []
    for train, test in pairs:
        y = np.stack(labels)
        mask = np.zeros(y.shape, dtype=bool)
        mask[:, train] = True
        scores = masked_scores(x, y, mask, np.full(len(y), strength), logistic, centred=False)[0]
        areas.append(auroc_rows(scores[:, test], y[:, test]))
        rights.append(((scores[:, test] > 0) == y[:, test]).mean(axis=1))
    return np.nanmean(areas, axis=0), np.mean(rights, axis=0)


def permutation_null(
    x: Tensor, y: NDArray, group: NDArray, C: float, fitter: Fitter, folds: list[Split], *, n: int, seed: int
) -> tuple[NDArray, NDArray, NDArray]:
    """Out-of-fold AUROC at every site with one C: observed (sites,), and on permuted labels (n, sites).

    Labels move as `grouped_splits.permuted` says, every probe is refitted, on the same folds. Returns also the
    permuted scores of the first few permutations with their labels, (k, 1 + sites, n), to measure what a bootstrap of
    fixed scores leaves out.
    Raises: TooFewExamples: permuted labels leave a fold with one class, again and again.
    """
    rng = np.random.default_rng(seed)
    masks = np.zeros((len(folds), len(y)), dtype=bool)
    for i, split in enumerate(folds):
        masks[i, split.train] = True
    draws = [y]
    for _ in range(20 * n):
        if len(draws) > n:
            break
        drawn = permuted(y, group, rng)
        if all(0 < drawn[m].sum() < m.sum() for m in masks):
            draws.append(drawn)
    if len(draws) <= n:
        raise TooFewExamples("permuted labels keep leaving a fold with one class: give more groups or fewer folds")
    found = np.empty((n + 1, len(x)))
    kept = []
    step = max(1, _NUMBERS // (len(x) * len(y) * len(folds)))
    for first in range(0, n + 1, step):
        part = np.stack(draws[first : first + step])
        labels = np.repeat(part, len(folds), axis=0)
        columns = np.tile(masks, (len(part), 1))
        raw = masked_scores(x, labels, columns, np.full(len(labels), C), fitter)
        raw = raw.reshape(len(x), len(part), len(folds), -1)
        pooled = np.zeros((len(x), len(part), len(y)))
        for i, split in enumerate(folds):
            pooled[..., split.test] = raw[:, :, i][..., split.test]
        for site in range(len(x)):
            found[first : first + len(part), site] = auroc_rows(pooled[site], part)
        for j in range(len(part)):
            if 0 < first + j <= 10:
                kept.append(np.concatenate([part[j][None], pooled[:, j]]))
    return found[0], found[1:], np.stack(kept)


def max_statistic(observed: NDArray, null: NDArray) -> tuple[NDArray, float]:
    """Give p of each site corrected for all sites tried, and p of the best: (1 + #{max over sites >= seen}) / (1 + n).

    Source: Westfall and Young 1993; Nichols and Holmes, Human Brain Mapping 15 (2002).
    """
    highest = null.max(axis=1)
    p = (1 + (highest[:, None] >= observed - 1e-12).sum(axis=0)) / (1 + len(null))
    return p, float(p[observed.argmax()])


def inflation(null: NDArray, kept: NDArray, group: NDArray, seed: int, level: float = 0.95) -> float:
    """How much wider than a bootstrap of fixed scores the spread over refits is; at least 1.

    Out-of-fold scores of one data set share their training rows, which resampling the scores cannot see. The ratio
    is that of the standard deviation of the AUROC over permuted labels to the bootstrap's, both under the null.
    """
    quantile = student_t.ppf((1 + level) / 2, max(len(np.unique(group)) - 1, 1))
    half = []
    for labels, *sites in kept:
        for scores in sites:
            low, high = cluster_bootstrap(
                auroc, scores, labels.astype(bool), groups=group, n=200, seed=seed, level=level
            )
            half.append((high - low) / 2 / quantile)
    return max(1.0, float(null.std(axis=0).mean() / max(float(np.mean(half)), 1e-12)))
