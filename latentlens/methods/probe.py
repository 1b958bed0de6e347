"""Can a label be read from the activations by a linear probe, and where in the model?

    sweep = fit(acts, labels, groups=cities)      # every site of the activations, one split
    sweep.best().auroc                            # held out, with its interval
    sweep.best().direction                        # ready to steer with
    fit(acts, labels, groups=cities, method="lda")

One call gives the answer together with what would make it worthless: a probe on shuffled labels and a
probe on a control task. Whole groups are held out, because with random labels and several rows of each
question a row-wise split reaches an AUROC of 1. All sites, folds, penalties and control draws are fitted
together, so the controls cost little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths import readouts
from latentlens.maths.grouped_splits import Split, grouped_folds, shuffled, split_by_group, split_inside_groups
from latentlens.maths.statistics import auroc, auroc_rows, auroc_score_interval, cluster_bootstrap
from latentlens.values.activations import Activations
from latentlens.values.labelled_rows import (
    NonFinite,
    Usable,
    binary_labels,
    finite_rows,
    group_codes,
    taken,
    usable,
)
from latentlens.values.results import Estimate, ProbeSweep, SiteProbe
from latentlens.values.sites import Site

METHODS: dict[str, readouts.Fitter] = {
    "logistic": readouts.logistic,
    "mean difference": readouts.mean_difference,
    "lda": readouts.lda,
    "ridge": readouts.ridge,
}
_TUNED = ("logistic", "ridge", "sparse")  # the methods that C matters to
_FOLDS = 5
_TOGETHER = 1 << 25  # numbers of activations fitted at a time


class _Task(NamedTuple):
    """Something to learn on a split: labels of all rows (those outside the split are not read)."""

    split: Split
    labels: list[NDArray[np.bool_]]


def fit(
    acts: Activations,
    labels: Sequence[Any] | NDArray[Any],
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    types: Sequence[Any] | NDArray[Any] | None = None,
    sites: Site | str | Sequence[Site | str] | None = None,
    method: str = "logistic",
    k: int = 5,
    C: float | Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
    seed: int = 0,
    test_share: float = 0.3,
    n_bootstrap: int = 1000,
    n_controls: int = 20,
    level: float = 0.95,
    nonfinite: NonFinite = "raise",
) -> ProbeSweep:
    """Fit a linear probe at every site, and report its held-out AUROC with interval and controls.

    The methods, `score = x . weights + intercept` for all (`latentlens.maths.readouts` has the formulas):

    - "logistic": penalised logistic regression on standardised rows.
    - "mean difference": of the class means. It often steers better than it reads.
    - "lda": mean difference whitened by the within-class covariance, shrunk by Ledoit and Wolf's share.
    - "ridge": least squares on labels -1 and 1.
    - "sparse": the k features (SAE latents) whose class means differ most, then logistic regression on them.

    For "logistic":

    minimise |w|^2 / 2 + C sum_i log(1 + exp(-y_i (w . z_i + b))),  z = (x - mean) / std, y = -1 or 1

    mean and std come from the training rows. The probe returned is in raw coordinates, `x @ weights +
    intercept`, weights = w / std. No group is on both sides; of many random splits by group the one whose
    sides agree best in size and share of positives is taken (no score is looked at). C, and the site that
    `sweep.best()` names, are chosen by grouped cross-validation inside the training side.

    Controls, `n_controls` draws each, with the C of the real probe:

    - shuffled labels: permuted within each side (over groups where a group has one label), refitted.
      Expected .5; the spread is the null of this data.
    - control task: each type gets one fixed random label, at the rate of the real ones. `types` may be a
      word or a template that recurs on both sides of the split. By default the groups are the types; as
      they never recur across the split, this control has its own split, by rows inside each group.
      selectivity = AUROC of the true labels on that same split - AUROC of the control.

    Args:
        acts: activations, one row a label; sites of shape (n_rows, d).
        labels: (n_rows,), two distinct values; the larger (True, 1, the last in the alphabet) is label 1.
        groups: (n_rows,) what must not be on both sides: question, topic, city. Default: the text.
        types: (n_rows,) what the control task gives a random label. Default: the groups.
        sites: which sites; all by default.
        method: how the direction is found, see above.
        k: features that "sparse" keeps.
        C: inverse strength of the penalty, one value or several to choose from; not used by "mean difference"
            and "lda".
        seed: of the split, the folds, the bootstrap and the control draws.
        test_share: share of the rows held out.
        n_bootstrap: resamples of the held-out groups.
        n_controls: draws of each control.
        level: coverage of all intervals.
        nonfinite: what to do about NaN and infinity. "raise". "skip": leave out, at every site, the rows that hold
            any; `about["nonfinite"]` counts them and `train_rows`, `test_rows` still index `acts`. "flag": give up
            the sites that hold any; their numbers are NaN, `about["nonfinite"]` names them, `best()` never is one.

    Returns: a ProbeSweep, its probes in the order of the activations.
    Raises:
        TooFewExamples: one class only; fewer than two groups a side; no split or fold with both classes.
        BadInput: lengths differ, more than two labels, a site with heads, `types` that never recur.
        NonFiniteActivations: NaN or infinity, and `nonfinite` is "raise" or leaves nothing.
    Source: control task and selectivity: Hewitt and Liang 2019 (arXiv 1909.03368), there in accuracy,
        here in AUROC.
    """
    n_rows = len(acts)
    y, classes = binary_labels(labels, n_rows)
    group = group_codes("groups", groups if groups is not None else acts.labels.get("text"), n_rows)
    if n_controls < 1:
        raise BadInput(f"n_controls={n_controls}: a probe without controls is not reported; give at least 1")
    grid = [float(c) for c in (C if isinstance(C, Sequence) else [C])]
    if not grid or min(grid) <= 0:
        raise BadInput(f"C={C}: give one or several positive numbers, for instance (0.01, 0.1, 1)")
    if method not in (*METHODS, "sparse"):
        raise BadInput(f"method={method!r}: allowed are {', '.join((*METHODS, 'sparse'))}")
    fitter = readouts.sparse(k) if method == "sparse" else METHODS[method]
    grid = grid if method in _TUNED else grid[:1]
    chosen = list(acts.sites) if sites is None else acts.expand(sites)
    if not chosen:
        raise BadInput("no site to probe: the activations are empty, or sites=[] was given")
    left = usable(acts, chosen, nonfinite)
    if not left.everything:
        options = {"method": method, "k": k, "C": C, "seed": seed, "test_share": test_share, "level": level}
        options |= {"n_bootstrap": n_bootstrap, "n_controls": n_controls, "types": taken(types, left.rows)}
        sites = [site for site in chosen if site not in left.broken]
        part = acts.rows(left.rows), taken(list(labels), left.rows)
        return _completed(fit(*part, groups=taken(groups, left.rows), sites=sites, **options), chosen, left)
    split_seed, fold_seed, boot_seed, shuffle_seed, control_seed = np.random.SeedSequence(seed).generate_state(5)

    main = split_by_group(y, group, test_share, np.random.default_rng(split_seed))
    choosing = len(grid) > 1 or len(chosen) > 1
    folds = grouped_folds(y, group, main.train, _FOLDS, int(fold_seed)) if choosing else []
    rng = np.random.default_rng(shuffle_seed)
    null = _Task(main, [shuffled(y, group, main, rng) for _ in range(n_controls)])
    control = _control_task(y, group, types, main, test_share, n_controls, np.random.default_rng(control_seed))
    sides = (len(np.unique(group[main.train])), len(np.unique(group[main.test])))
    facts = {
        "seed": seed,
        "classes": list(classes),
        "n_train": len(main.train),
        "n_test": len(main.test),
        "groups_train": sides[0],
        "groups_test": sides[1],
    }
    if method == "sparse":
        facts["latents"] = k
    if "model" in acts.about:
        facts["model"] = str(acts.about["model"])

    def report(site: Site, x: Tensor, part: _Part) -> SiteProbe:
        # float32 weights, then the intercept that belongs to them: the pair reproduces the logit.
        w = part.weights.astype(np.float32)
        scores = x.double().numpy() @ w.astype(np.float64) + part.intercept
        held_out, row_groups = scores[main.test], group[main.test]
        value = auroc(held_out, y[main.test])
        low, high = cluster_bootstrap(
            auroc, held_out, y[main.test], groups=row_groups, n=n_bootstrap, seed=int(boot_seed), level=level
        )
        if low == high:  # perfect separation: no resample can differ, so ask the score interval
            positive, negative = (len(np.unique(row_groups[y[main.test] == side])) for side in (True, False))
            low, high = auroc_score_interval(value, positive, negative, level)
        return SiteProbe(
            site=site,
            auroc=Estimate(value, low, high, len(main.test), level),
            train_auroc=auroc(scores[main.train], y[main.train]),
            cv_auroc=part.cv,
            C=part.C,
            shuffled=_spread(part.null, level),
            control=None if part.control is None else _spread(part.control, level),
            selectivity=None if part.control is None else _spread(part.true - part.control, level),
            weights=w,
            intercept=part.intercept,
            mean_difference=_mean_difference(x[main.train].double().numpy(), y[main.train]),
            name=f"{classes[1]} against {classes[0]}",
            source=facts,
            method="logistic probe" if method == "logistic" else method,
        )

    about = {
        "method": "logistic probe" if method == "logistic" else method,
        **facts,
        "C": grid,
        "test_share": test_share,
        "n_bootstrap": n_bootstrap,
        "n_controls": n_controls,
        "control task": _control_name(types, control is not None),
        "activations": dict(acts.about),
    }
    probes: list[SiteProbe] = []
    for batch in _batches(acts, chosen, n_rows):
        x = torch.stack([finite_rows(acts, site) for site in batch])
        parts = _fit_batch(x, y, fitter, grid, main, folds, null, control)
        probes += [report(site, rows, part) for site, rows, part in zip(batch, x, parts, strict=True)]
    return ProbeSweep(tuple(probes), classes, main.train, main.test, sides, about)


def _completed(found: ProbeSweep, sites: Sequence[Site], left: Usable) -> ProbeSweep:
    """A sweep over some rows and sites as one over all: rows counted in all of them, NaN at the sites given up."""
    index, first = np.flatnonzero(left.rows), found.probes[0]
    nan = Estimate(math.nan, math.nan, math.nan, 0, first.auroc.level)
    none = replace(
        first, auroc=nan, train_auroc=math.nan, cv_auroc=math.nan, C=math.nan, shuffled=nan,
        control=None if first.control is None else nan, selectivity=None if first.selectivity is None else nan,
        weights=np.full_like(first.weights, np.nan), mean_difference=np.full_like(first.mean_difference, np.nan),
        intercept=math.nan,
    )  # fmt: skip
    probes = tuple(replace(none, site=s) if s in left.broken else found[s] for s in sites)
    return replace(
        found, probes=probes, train_rows=index[found.train_rows], test_rows=index[found.test_rows],
        about={**found.about, "nonfinite": left.told},
    )  # fmt: skip


def _control_name(types: Any, possible: bool) -> str:
    """What the control task was, in words for the manifest."""
    if not possible:
        return "not run: no group has two rows; give types= that recur"
    return "random label for each group, split by rows" if types is None else "random label for each type"


def _batches(acts: Activations, sites: list[Site], n_rows: int) -> list[list[Site]]:
    """Neighbouring sites of equal shape and dtype, as many as are fitted together."""
    out: list[list[Site]] = []
    for site in sites:
        shape, first = acts[site].shape, acts[out[-1][0]] if out else None
        room = max(1, _TOGETHER // max(1, math.prod(shape)))
        if first is not None and first.shape == shape and first.dtype == acts[site].dtype and len(out[-1]) < room:
            out[-1].append(site)
        else:
            out.append([site])
    return out


def _control_task(
    y: NDArray,
    group: NDArray,
    types: Any,
    main: Split,
    test_share: float,
    n_draws: int,
    rng: np.random.Generator,
) -> _Task | None:
    """A random label for each type, and the split it is learned on; None where no group recurs."""
    if types is None:
        kind, split = group, split_inside_groups(group, test_share, rng)
        if split is None:
            return None
    else:
        kind = group_codes("types", types, len(y))
        test = main.test[np.isin(kind[main.test], kind[main.train])]
        split = Split(main.train, test)
        if not 0 < y[test].sum() < len(test):
            raise BadInput(
                f"{len(test)} of {len(main.test)} held-out rows have a type that was trained on: the control task "
                "needs types that recur in every group, such as a word or a template"
            )
    n_types, rate = int(kind.max()) + 1, float(y[split.train].mean())
    draws: list[NDArray[np.bool_]] = []
    for _ in range(100 * n_draws):
        drawn = (rng.random(n_types) < rate)[kind]
        if all(0 < drawn[side].sum() < len(side) for side in split):
            draws.append(drawn)
        if len(draws) == n_draws:
            return _Task(split, draws)
    raise TooFewExamples(f"{n_types} types are too few to give them random labels of both kinds")


# -- fitting --------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """What was fitted at one site."""

    weights: NDArray[np.float64]
    intercept: float
    C: float
    cv: float
    null: NDArray[np.float64]
    control: NDArray[np.float64] | None
    true: float


def _fit_batch(
    x: Tensor,
    y: NDArray,
    fitter: readouts.Fitter,
    grid: list[float],
    main: Split,
    folds: list[Split],
    null: _Task,
    control: _Task | None,
) -> list[_Part]:
    """All sites of a batch: choose C, fit the probe, and both controls with that C."""
    cv, best = _cross_validate(x, y, fitter, folds, grid)
    out: list[_Part | None] = [None] * len(x)
    for c in sorted(set(best)):
        at = [i for i, value in enumerate(best) if value == c]
        part = x if len(at) == len(x) else x[at]
        found = _fitted(part, main.train, [y], [c], fitter)
        nulls = _scores(part, null, c, fitter)
        controls = _scores(part, control, c, fitter) if control else None
        true = _scores(part, control._replace(labels=[y]), c, fitter) if control else None
        for j, i in enumerate(at):
            out[i] = _Part(
                found.weights[j, 0].numpy(), float(found.intercepts[j, 0]), c, cv[i], nulls[j],
                None if controls is None else controls[j], math.nan if true is None else float(true[j, 0]),
            )  # fmt: skip
    return [part for part in out if part is not None]


def _fitted(
    x: Tensor, rows: NDArray, labels: list[NDArray], strengths: list[float], fitter: readouts.Fitter
) -> readouts.Readouts:
    """Readouts of several labellings of the same rows; rows outside are not handed over at all."""
    y = torch.as_tensor(np.stack([label[rows] for label in labels]))
    return fitter(x[:, rows], y, torch.tensor(strengths, dtype=torch.float64), torch.ones_like(y))


def _scores(x: Tensor, task: _Task, c: float, fitter: readouts.Fitter) -> NDArray[np.float64]:
    """Held-out AUROC of a probe fitted to each of the task's labellings, (sites, labellings)."""
    train, test = task.split
    found = _fitted(x, train, task.labels, [c] * len(task.labels), fitter)
    truth = np.stack([label[test] for label in task.labels])
    return np.stack([auroc_rows(s, truth) for s in found.scores(x[:, test]).numpy()])


def _cross_validate(
    x: Tensor, y: NDArray, fitter: readouts.Fitter, folds: list[Split], grid: list[float]
) -> tuple[list[float], list[float]]:
    """At each site the best mean AUROC over the folds and its C; the strongest penalty of equals."""
    if not folds:
        return [math.nan] * len(x), [grid[0]] * len(x)
    used = np.sort(np.concatenate([folds[0].train, folds[0].test]))
    inside = x[:, used]
    masks = [torch.as_tensor(np.isin(used, train)) for train, _ in folds]
    rows = torch.stack([mask for mask in masks for _ in grid])
    labels = torch.as_tensor(y[used]).expand(rows.shape)
    found = fitter(inside, labels, torch.tensor(grid * len(folds), dtype=torch.float64), rows)
    table = np.zeros((len(x), len(folds), len(grid)))
    for i, mask in enumerate(masks):
        columns = slice(i * len(grid), (i + 1) * len(grid))
        part = readouts.Readouts(found.weights[:, columns], found.intercepts[:, columns])
        scores, truth = part.scores(inside[:, ~mask]).numpy(), y[used][~mask.numpy()]
        table[:, i] = [auroc_rows(s, truth) for s in scores]
    means = table.mean(axis=1)
    best = [max(range(len(grid)), key=lambda j: (row[j], -grid[j])) for row in means]
    return [float(row[j]) for row, j in zip(means, best)], [grid[j] for j in best]


def _mean_difference(x: NDArray, y: NDArray) -> NDArray[np.float32]:
    flat = x.std(axis=0) <= 1e-6 * np.abs(x).max(axis=0)
    return np.where(flat, 0.0, x[y].mean(axis=0) - x[~y].mean(axis=0)).astype(np.float32)


def _spread(draws: NDArray, level: float) -> Estimate:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(draws.mean()), float(low), float(high), len(draws), level)
