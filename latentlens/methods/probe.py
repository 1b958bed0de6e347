"""Can a label be read from the activations by a linear probe, and where in the model?

    sweep = fit(acts, labels, groups=cities)      # every site of the activations, one split
    sweep.best().auroc                            # held out, with its interval
    sweep.best().direction                        # ready to steer with

One call gives the answer together with what would make it worthless: a probe on shuffled labels and a
probe on a control task. Whole groups are held out, because with random labels and several rows of each
question a row-wise split reaches an AUROC of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap
from latentlens.values.activations import Activations
from latentlens.values.results import Estimate, ProbeSweep, SiteProbe
from latentlens.values.sites import Site

_SPLITS_TRIED = 200
_FOLDS = 5
_SMALL = 2_000_000  # numbers in the activations of one site


class _Split(NamedTuple):
    """Row indices of the two sides."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


class _Task(NamedTuple):
    """Something to learn on a split: labels of all rows (those outside the split are not read)."""

    split: _Split
    labels: list[NDArray[np.bool_]]


def fit(
    acts: Activations,
    labels: Sequence[Any] | NDArray[Any],
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    types: Sequence[Any] | NDArray[Any] | None = None,
    sites: Site | str | Sequence[Site | str] | None = None,
    C: float | Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
    seed: int = 0,
    test_share: float = 0.3,
    n_bootstrap: int = 1000,
    n_controls: int = 20,
    level: float = 0.95,
) -> ProbeSweep:
    """Fit a logistic probe at every site, and report its held-out AUROC with interval and controls.

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
        C: inverse strength of the penalty, one value or several to choose from.
        seed: of the split, the folds, the bootstrap and the control draws.
        test_share: share of the rows held out.
        n_bootstrap: resamples of the held-out groups.
        n_controls: draws of each control.
        level: coverage of all intervals.

    Returns: a ProbeSweep, its probes in the order of the activations.
    Raises:
        TooFewExamples: one class only; fewer than two groups a side; no split or fold with both classes.
        BadInput: lengths differ, more than two labels, a site with heads, `types` that never recur.
        NonFiniteActivations: NaN or infinity in the activations: a probe never sees them.
    Source: control task and selectivity: Hewitt and Liang 2019 (arXiv 1909.03368), there in accuracy,
        here in AUROC.
    """
    n_rows = len(acts)
    y, classes = _binary(labels, n_rows)
    group = _codes("groups", groups if groups is not None else acts.labels.get("text"), n_rows)
    if n_controls < 1:
        raise BadInput(f"n_controls={n_controls}: a probe without controls is not reported; give at least 1")
    grid = [float(c) for c in (C if isinstance(C, Sequence) else [C])]
    if not grid or min(grid) <= 0:
        raise BadInput(f"C={C}: give one or several positive numbers, for instance (0.01, 0.1, 1)")
    chosen = list(acts.sites) if sites is None else acts.expand(sites)
    if not chosen:
        raise BadInput("no site to probe: the activations are empty, or sites=[] was given")
    split_seed, fold_seed, boot_seed, shuffle_seed, control_seed = np.random.SeedSequence(seed).generate_state(5)

    main = _split_by_group(y, group, test_share, np.random.default_rng(split_seed))
    folds = _folds(y, group, main.train, int(fold_seed)) if len(grid) > 1 or len(chosen) > 1 else []
    rng = np.random.default_rng(shuffle_seed)
    shuffled = _Task(main, [_shuffle(y, group, main, rng) for _ in range(n_controls)])
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
    if "model" in acts.about:
        facts["model"] = str(acts.about["model"])

    def probe(site: Site) -> SiteProbe:
        x = _finite(acts, site)
        cv, best_c = _cross_validate(x, y, folds, grid)
        weights, intercepts = _solve(x[main.train], [(y[main.train], best_c)])
        # float32 weights, then the intercept that belongs to them: the pair reproduces the logit.
        w = weights[0].astype(np.float32)
        scores = x @ w.astype(np.float64) + intercepts[0]
        held_out, row_groups = scores[main.test], group[main.test]
        value = auroc(held_out, y[main.test])
        low, high = cluster_bootstrap(
            auroc, held_out, y[main.test], groups=row_groups, n=n_bootstrap, seed=int(boot_seed), level=level
        )
        if low == high:  # perfect separation: no resample can differ, so ask the score interval
            positive, negative = (len(np.unique(row_groups[y[main.test] == side])) for side in (True, False))
            low, high = auroc_score_interval(value, positive, negative, level)
        null = _scores(x, shuffled, best_c)
        random = _scores(x, control, best_c) if control else None
        true = _scores(x, control._replace(labels=[y]), best_c)[0] if control else math.nan
        return SiteProbe(
            site=site,
            auroc=Estimate(value, low, high, len(main.test), level),
            train_auroc=auroc(scores[main.train], y[main.train]),
            cv_auroc=cv,
            C=best_c,
            shuffled=_spread(null, level),
            control=None if random is None else _spread(random, level),
            selectivity=None if random is None else _spread(true - random, level),
            weights=w,
            intercept=float(intercepts[0]),
            mean_difference=_mean_difference(x[main.train], y[main.train]),
            name=f"{classes[1]} against {classes[0]}",
            source=facts,
        )

    about = {
        "method": "logistic probe",
        **facts,
        "C": grid,
        "test_share": test_share,
        "n_bootstrap": n_bootstrap,
        "n_controls": n_controls,
        "control task": _control_name(types, control is not None),
        "activations": dict(acts.about),
    }
    # On matrices this small, waking BLAS threads costs more than they do: ten times, on a busy machine.
    small = n_rows * max(acts[s].shape[-1] for s in chosen) < _SMALL
    with threadpool_limits(1 if small else None, user_api="blas"):
        probes = tuple(probe(s) for s in chosen)
    return ProbeSweep(probes, classes, main.train, main.test, sides, about)


def _control_name(types: Any, possible: bool) -> str:
    """What the control task was, in words for the manifest."""
    if not possible:
        return "not run: no group has two rows; give types= that recur"
    return "random label for each group, split by rows" if types is None else "random label for each type"


# -- reading the input ----------------------------------------------------------------------------


def _binary(labels: Any, n_rows: int) -> tuple[NDArray[np.bool_], tuple[str, str]]:
    found = np.asarray(labels.tolist() if hasattr(labels, "tolist") else list(labels))
    if found.shape != (n_rows,):
        raise BadInput(
            f"labels of shape {found.shape} for {n_rows} rows of activations: give one label a row. Where a text "
            "has several rows, np.asarray(labels)[acts.labels['text']] repeats its label"
        )
    if found.dtype.kind not in "biufU":
        raise BadInput(f"labels must be bool, int or str, not {found.dtype}")
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise BadInput(f"{int(np.isnan(found).sum())} of {n_rows} labels are NaN: drop those rows (acts.rows(mask))")
    kinds = np.unique(found)
    if len(kinds) == 1:
        raise TooFewExamples(f"all {n_rows} labels are {kinds[0].item()!r}: a probe needs two classes")
    if len(kinds) != 2:
        shown = ", ".join(repr(k.item()) for k in kinds[:5])
        raise BadInput(f"{len(kinds)} distinct labels ({shown}...): this probe is binary. Compare: labels == one")
    return found == kinds[1], (str(kinds[0].item()), str(kinds[1].item()))


def _codes(what: str, values: Any, n_rows: int) -> NDArray[np.intp]:
    if values is None:
        return np.arange(n_rows)
    found = list(values)
    if len(found) != n_rows:
        raise BadInput(f"{len(found)} {what} for {n_rows} rows of activations: give one a row")
    # A dictionary, because groups may be tuples or of mixed kinds; equal values get equal codes.
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(v, len(numbers)) for v in found], dtype=np.intp)


def _finite(acts: Activations, site: Site) -> NDArray[np.float64]:
    values = acts[site]
    if values.ndim != 2:
        raise BadInput(f"{site} has rows of shape {tuple(values.shape[1:])}: a linear probe reads rows of shape (d,)")
    x = values.detach().to("cpu").double().numpy()
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise NonFiniteActivations(
            f"{int(bad.sum())} of {len(x)} rows at {site} hold NaN or infinity (first: row {int(bad.argmax())}). "
            "Drop them with acts.rows(mask) after finding out why: float16 overflows above 65504"
        )
    return x


# -- who is on which side -------------------------------------------------------------------------


def _split_by_group(y: NDArray, group: NDArray, test_share: float, rng: np.random.Generator) -> _Split:
    n_groups = int(group.max()) + 1
    if not 0 < test_share < 1:
        raise BadInput(f"test_share={test_share}: a share lies between 0 and 1, for instance .3")
    if n_groups < 4:
        raise TooFewExamples(f"{n_groups} group(s) of rows: a grouped split needs at least 2 on each side")
    sizes, positives = np.bincount(group), np.bincount(group, weights=y)
    best, best_gap = None, math.inf
    for _ in range(_SPLITS_TRIED):
        order = rng.permutation(n_groups)
        rows = np.cumsum(sizes[order])
        k = int(np.clip(np.abs(rows - test_share * len(y)).argmin() + 1, 2, n_groups - 2))
        n_test, p_test = int(rows[k - 1]), float(positives[order[:k]].sum())
        n_train, p_train = len(y) - n_test, float(y.sum()) - p_test
        if not (0 < p_test < n_test and 0 < p_train < n_train):
            continue
        gap = abs(n_test / len(y) - test_share) + abs(p_test / n_test - p_train / n_train)
        if gap < best_gap:
            best, best_gap = order[:k], gap
    if best is None:
        of_one, of_zero = len(np.unique(group[y])), len(np.unique(group[~y]))
        raise TooFewExamples(
            f"no split of {n_groups} groups has both classes on both sides: {of_one} group(s) hold label 1, "
            f"{of_zero} hold label 0; each class must be in at least 2"
        )
    test = np.isin(group, best)
    return _Split(np.flatnonzero(~test), np.flatnonzero(test))


def _folds(y: NDArray, group: NDArray, train: NDArray, seed: int) -> list[_Split]:
    """Grouped folds of the training side in which both parts hold both classes."""
    yt, gt = y[train], group[train]
    n_folds = min(_FOLDS, len(np.unique(gt[yt])), len(np.unique(gt[~yt])))
    folds = []
    if n_folds >= 2:
        cutter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        cut = [_Split(train[a], train[b]) for a, b in cutter.split(yt, yt, gt)]
        folds = [f for f in cut if all(0 < y[side].sum() < len(side) for side in f)]
    if not folds:
        raise TooFewExamples(
            f"the training side ({len(train)} rows, {len(np.unique(gt))} groups) has no grouped fold with both "
            "classes, so C and the best site cannot be chosen: give more groups, or one C and one site"
        )
    return folds


def _shuffle(y: NDArray, group: NDArray, split: _Split, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Labels permuted within each side; group by group where every group has one label."""
    one_label = all(0 in (p, n - p) for p, n in zip(np.bincount(group, weights=y), np.bincount(group)))
    out = y.copy()
    for side in split:
        if one_label:
            members, first = np.unique(group[side], return_index=True)
            new = dict(zip(members.tolist(), rng.permutation(y[side][first]).tolist()))
            out[side] = [new[g] for g in group[side].tolist()]
        else:
            out[side] = rng.permutation(y[side])
    return out


def _control_task(
    y: NDArray,
    group: NDArray,
    types: Any,
    main: _Split,
    test_share: float,
    n_draws: int,
    rng: np.random.Generator,
) -> _Task | None:
    """A random label for each type, and the split it is learned on; None where no group recurs."""
    if types is None:
        kind, split = group, _split_inside_groups(group, test_share, rng)
        if split is None:
            return None
    else:
        kind = _codes("types", types, len(y))
        test = main.test[np.isin(kind[main.test], kind[main.train])]
        split = _Split(main.train, test)
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


def _split_inside_groups(group: NDArray, test_share: float, rng: np.random.Generator) -> _Split | None:
    """Every group with two rows or more gives some to each side."""
    train, test = [], []
    for g in range(int(group.max()) + 1):
        rows = rng.permutation(np.flatnonzero(group == g))
        k = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
        test.append(rows[:k])
        train.append(rows[k:])
    split = _Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(test)))
    return split if len(split.test) else None


# -- fitting --------------------------------------------------------------------------------------


def _solve(x: NDArray, tasks: Sequence[tuple[NDArray, float]]) -> tuple[NDArray, NDArray]:
    """Raw-coordinate weights (n_tasks, d) and intercepts of probes (labels, C) on the same rows."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    flat = _constant(x)
    std[flat] = 1.0
    z = (x - mean) / std
    z[:, flat] = 0.0
    back = None
    if x.shape[1] > len(x):
        # The penalised solution lies in the span of the rows: fit in their coordinates, exactly.
        u, s, back = np.linalg.svd(z, full_matrices=False)
        z = u * s
    weights, intercepts = np.empty((len(tasks), x.shape[1])), np.empty(len(tasks))
    for i, (y, c) in enumerate(tasks):
        found = LogisticRegression(C=c, max_iter=2000).fit(z, y)
        w = found.coef_[0] if back is None else found.coef_[0] @ back
        weights[i] = np.where(flat, 0.0, w / std)
        intercepts[i] = found.intercept_[0] - mean @ weights[i]
    return weights, intercepts


def _scores(x: NDArray, task: _Task, c: float) -> NDArray[np.float64]:
    """Held-out AUROC of a probe fitted to each of the task's labellings."""
    train, test = task.split
    weights, _ = _solve(x[train], [(y[train], c) for y in task.labels])
    return np.array([auroc(x[test] @ w, y[test]) for w, y in zip(weights, task.labels, strict=True)])


def _cross_validate(x: NDArray, y: NDArray, folds: list[_Split], grid: list[float]) -> tuple[float, float]:
    """Best mean AUROC over the folds and its C; the strongest penalty of equals."""
    if not folds:
        return math.nan, grid[0]
    table = np.zeros((len(folds), len(grid)))
    for i, (train, test) in enumerate(folds):
        weights, _ = _solve(x[train], [(y[train], c) for c in grid])
        table[i] = [auroc(x[test] @ w, y[test]) for w in weights]
    means = table.mean(axis=0)
    best = max(range(len(grid)), key=lambda j: (means[j], -grid[j]))
    return float(means[best]), grid[best]


def _constant(x: NDArray) -> NDArray[np.bool_]:
    """Features that differ from their mean by rounding only."""
    return x.std(axis=0) <= 1e-6 * np.abs(x).max(axis=0)


def _mean_difference(x: NDArray, y: NDArray) -> NDArray[np.float32]:
    difference = x[y].mean(axis=0) - x[~y].mean(axis=0)
    return np.where(_constant(x), 0.0, difference).astype(np.float32)


def _spread(draws: NDArray, level: float) -> Estimate:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(draws.mean()), float(low), float(high), len(draws), level)
