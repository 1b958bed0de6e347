"""The report that a concept probe needs before anyone believes it: ten parts, by default all of them.

    found = probe_report(acts, labels, groups=questions, texts=prompts, types=templates,
                         untrained=acts_of_random_weights, tokens=acts_of_all_tokens,
                         others={"negated": (acts2, labels2)}, effect=change_of_answer)
    found.auroc, found.p          # of the whole procedure, choices included
    found.table("layers")

A part that needs data which was not given is left out and named in `missing`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.maths import readouts
from latentlens.maths.calibration_scores import brier, expected_calibration_error, probability_of, reliability
from latentlens.maths.grouped_splits import shuffled, split_inside_groups
from latentlens.maths.nested_probe import (
    Nested,
    held_out,
    inflation,
    masked_scores,
    max_statistic,
    nested_scores,
    permutation_null,
)
from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap, wilson
from latentlens.maths.word_counts import words_and_length
from latentlens.values.activations import Activations
from latentlens.values.directions import Direction
from latentlens.values.labelled_rows import (
    NonFinite,
    Usable,
    binary_labels,
    finite_rows,
    finite_sets,
    group_codes,
    taken,
    tokens_of,
    usable,
)
from latentlens.values.probe_report import ProbeReport
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

_WORDS = 2000  # of the bag of words
_RANDOM = 5  # random directions beside the probe's


class _Case:
    """Rows, labels and settings that all parts share."""

    def __init__(self, y: NDArray, group: NDArray, settings: dict[str, Any]) -> None:
        self.y, self.group = y, group
        self.grid, self.seed, self.level = settings["C"], settings["seed"], settings["level"]
        self.n_outer, self.n_inner = settings["n_outer"], settings["n_inner"]
        self.n_bootstrap, self.n_controls = settings["n_bootstrap"], settings["n_controls"]
        self.wider = 1.0

    def nested(self, x: Tensor, y: NDArray | None = None, group: NDArray | None = None) -> Nested:
        labels, groups = (self.y, self.group) if y is None or group is None else (y, group)
        return nested_scores(
            x, labels, groups, self.grid, readouts.logistic, n_outer=self.n_outer, n_inner=self.n_inner, seed=self.seed
        )

    def interval(self, scores: NDArray, y: NDArray | None = None, group: NDArray | None = None) -> Estimate:
        """AUROC with the group bootstrap's interval, widened by what refitting adds."""
        labels, groups = (self.y, self.group) if y is None or group is None else (y, group)
        value, how = auroc(scores, labels), {"n": self.n_bootstrap, "seed": self.seed, "level": self.level}
        low, high = cluster_bootstrap(auroc, scores, labels, groups=groups, **how)
        if low == high:
            positive, negative = (len(np.unique(groups[labels == side])) for side in (True, False))
            low, high = auroc_score_interval(value, positive, negative, self.level)
        low, high = value - self.wider * (value - low), value + self.wider * (high - value)
        return Estimate(value, max(low, 0.0), min(high, 1.0), len(labels), self.level)

    def share(self, hits: NDArray, statistic: Callable[..., float], *more: NDArray) -> Estimate:
        low, high = cluster_bootstrap(
            statistic, hits, *more, groups=self.group, n=self.n_bootstrap, seed=self.seed, level=self.level
        )
        value, n = statistic(hits, *more), len(np.unique(self.group))
        if low == high and value in (0.0, 1.0):  # no resample can differ: count groups
            low, high = wilson(round(value * n), n, self.level)
        return Estimate(value, low, high, len(hits), self.level)


def probe_report(
    acts: Activations,
    labels: Sequence[Any] | NDArray[Any],
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    types: Sequence[Any] | NDArray[Any] | None = None,
    sites: Site | str | Sequence[Site | str] | None = None,
    texts: Sequence[str] | None = None,
    untrained: Activations | None = None,
    tokens: Activations | None = None,
    others: Mapping[str, tuple[Activations, Any]] | None = None,
    effect: Callable[[Direction], Sequence[float]] | None = None,
    C: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
    n_outer: int = 5,
    n_inner: int = 4,
    n_permutations: int = 200,
    n_bootstrap: int = 1000,
    n_controls: int = 10,
    seed: int = 0,
    level: float = 0.95,
    nonfinite: NonFinite = "raise",
) -> ProbeReport:
    """Examine a logistic probe of one concept.

    1 folds: grouped outer folds; site and C chosen by grouped inner folds. 2 scores: AUROC, accuracy and balanced
    accuracy at a threshold from inner folds, majority rate, counts. 3 chance: permutation p (labels permuted over
    groups, every probe refitted, one C) corrected for the sites tried by the maximum. Intervals resample groups and are
    widened by the ratio of the spread over permuted refits to the bootstrap's. 4 controls: control task and selectivity
    in accuracy and in AUROC, shuffled labels. 5 calibration: Brier, ECE (10 equal bins), with and without the
    temperature of the inner folds; reliability. 6 layers: every site; bag of words, length, untrained model.
    7 aggregation: last token, mean, maximum of token scores. 8 transfer: AUROC from each data set to each, cosines of
    their directions, the worst. 9 samples: fewer training groups; rarer positives. 10 causal: `effect` of the
    direction, of the mean difference and of random directions, all of the probe's length.

    Args:
        acts: one row a label; sites of one width. Put the embedding (`resid_pre[0]`) among them.
        labels: (n_rows,), two values; the larger is label 1.
        groups: (n_rows,), what must not be on both sides. Default: the text.
        types: (n_rows,), what the control task labels. Default: the groups, split by rows inside them.
        sites: of `acts`; all by default.
        texts: (n_rows,) strings: for the bag of words and the length.
        untrained: activations of the same rows in a model with random weights.
        tokens: activations of all tokens; their label `text` counts the rows of `acts`.
        others: name -> (activations, labels) of other data about the same concept.
        effect: direction -> one number an item, by how much the direction added to the model moves its answer
            towards label 1. It runs the model; this function never does.
        C: values to choose from. n_outer, n_inner: folds. n_permutations: of part 3. n_bootstrap: of intervals.
            n_controls: draws of part 4. seed: of everything. level: of intervals.
        nonfinite: about NaN and infinity: "raise"; "skip" leaves out, everywhere, the rows that hold any, and counts
            them in `about["nonfinite"]`; "flag" gives up the sites that hold any: NaN in part 6, named in `missing`.

    Returns: ProbeReport.
    Raises: TooFewExamples, BadInput, NonFiniteActivations: as `probe.fit`.
    Source: Hewitt and Liang 2019 (arXiv 1909.03368) for selectivity; Ojala and Garriga, JMLR 11 (2010) for the
        permutation test; AxBench (arXiv 2501.17148) for the bag of words and the maximum over tokens.
    """
    n_rows = len(acts)
    y, classes = binary_labels(labels, n_rows)
    group = group_codes("groups", groups if groups is not None else acts.labels.get("text"), n_rows)
    chosen = list(acts.sites) if sites is None else acts.expand(sites)
    grid = sorted(float(c) for c in C)
    if not chosen or not grid or grid[0] <= 0:
        raise BadInput(f"sites={sites}, C={C}: give at least one site and positive values of C")
    if n_permutations < 20 or n_controls < 1:
        raise BadInput(f"n_permutations={n_permutations}, n_controls={n_controls}: at least 20 and 1")
    settings = {
        "C": grid, "n_outer": n_outer, "n_inner": n_inner, "n_permutations": n_permutations, "n_bootstrap": n_bootstrap,
        "n_controls": n_controls, "seed": seed, "level": level,
    }  # fmt: skip
    left = usable(acts, chosen, nonfinite)
    if not left.everything:
        labelled = {"groups": groups, "types": types, "texts": texts}
        more = {
            "effect": effect, "others": finite_sets(others, nonfinite), "tokens": tokens_of(tokens, left.rows),
            "untrained": None if untrained is None else untrained.rows(left.rows),
            "sites": [site for site in chosen if site not in left.broken], **settings,
        } | {name: taken(values, left.rows) for name, values in labelled.items()}  # fmt: skip
        return _completed(probe_report(acts.rows(left.rows), taken(list(labels), left.rows), **more), left)
    case = _Case(y, group, settings)
    x = torch.stack([finite_rows(acts, site) for site in chosen])
    nested = case.nested(x)
    middle = grid[len(grid) // 2]
    observed, null, kept = permutation_null(
        x, y, group, middle, readouts.logistic, nested.folds, n=n_permutations, seed=seed
    )
    case.wider = inflation(null, kept, group, seed, level)
    corrected, p = max_statistic(observed, null)
    best = Counter(nested.site.tolist()).most_common(1)[0][0]
    strength = float(np.median(nested.C[nested.site == best]))
    final = readouts.logistic(
        x[best][None], torch.as_tensor(y)[None], torch.tensor([strength]), torch.ones(1, n_rows, dtype=torch.bool)
    )
    name = f"{classes[1]} against {classes[0]}"
    about = {"method": "logistic probe", "C": strength, "seed": seed, "intercept": float(final.intercepts[0, 0])}
    about |= {"rows": n_rows} | ({"model": str(acts.about["model"])} if "model" in acts.about else {})
    direction = Direction(final.weights[0, 0].float(), chosen[best], f"probe {name}", "raw", about)
    score = case.interval(nested.scores)
    rows: dict[str, list[dict[str, Any]]] = {
        "folds": _folds(case, nested, chosen),
        "scores": _scores(case, nested, score),
        "chance": [
            {"site": str(s), f"AUROC at C={middle:g}": o, "p": (1 + (null[:, i] >= o).sum()) / (1 + len(null)),
             "p, corrected for sites": corrected[i]} for i, (s, o) in enumerate(zip(chosen, observed))
        ],
        "calibration": _calibration(case, nested),
        "layers": [{"what": str(s), "AUROC": case.interval(v)} for s, v in zip(chosen, nested.by_site)],
        "samples": _samples(case, x[best][None], nested, strength),
    }  # fmt: skip
    missing: dict[str, str] = {}
    rows["controls"] = _controls(case, x[best][None], nested, types, strength)
    if len(rows["controls"]) == 1:
        missing["control task"] = "no group has two rows and no type recurs: give types="
    rows["layers"] += _baselines(case, texts, untrained, chosen, missing)
    _put(rows, missing, "aggregation", tokens and _aggregation(case, tokens, chosen[best], strength),
         "give tokens=, activations of all tokens of the same texts")  # fmt: skip
    _put(rows, missing, "transfer", others and _transfer(case, x[best], chosen[best], others, strength, score),
         "give others={name: (activations, labels)}, for instance negated twins")  # fmt: skip
    _put(rows, missing, "causal", effect and _causal(effect, direction, x[best], y, seed, level),
         "give effect=, a function that steers the model with a direction")  # fmt: skip
    about = {**settings, "widening of intervals": case.wider, "sites": [str(s) for s in chosen]}
    return ProbeReport(score, p, direction, classes, rows, missing, about, _reliability(case, nested))


def _completed(found: ProbeReport, left: Usable) -> ProbeReport:
    """The report with what was left out: NaN for the sites that were given up."""
    nan = Estimate(math.nan, math.nan, math.nan, 0, found.auroc.level)
    layers = [*found.rows["layers"], *({"what": str(site), "AUROC": nan} for site in left.broken)]
    missing = {str(site): f"{n} rows hold NaN or infinity there" for site, n in left.broken.items()}
    return replace(
        found, rows={**found.rows, "layers": layers}, missing={**found.missing, **missing},
        about={**found.about, "nonfinite": left.told},
    )  # fmt: skip


def _put(rows: dict, missing: dict, part: str, found: Any, why: str) -> None:
    if found:
        rows[part] = found
    else:
        missing[part] = why


def _folds(case: _Case, nested: Nested, sites: list[Site]) -> list[dict[str, Any]]:
    return [
        {
            "fold": i, "site": str(sites[nested.site[i]]), "C": nested.C[i], "inner AUROC": nested.inner[i],
            "AUROC": auroc(nested.scores[split.test], case.y[split.test]), "rows": len(split.test),
            "groups": len(np.unique(case.group[split.test])),
        }
        for i, split in enumerate(nested.folds)
    ]  # fmt: skip


def _balanced(right: NDArray, y: NDArray) -> float:
    sides = [right[y == side] for side in (True, False)]
    return float(np.mean([side.mean() for side in sides])) if all(map(len, sides)) else math.nan


def _scores(case: _Case, nested: Nested, score: Estimate) -> list[dict[str, Any]]:
    y = case.y
    right = (nested.logits > nested.threshold[nested.fold]) == y
    return [
        {"what": "AUROC, whole procedure", "value": score},
        {"what": "balanced accuracy", "value": case.share(right, _balanced, y)},
        {"what": "accuracy", "value": case.share(right, lambda r: float(r.mean()))},
        {"what": "majority rate", "value": max(y.mean(), 1 - y.mean())},
        {"what": "rows of label 1", "value": int(y.sum())},
        {"what": "rows of label 0", "value": int((~y).sum())},
        {"what": "groups", "value": int(case.group.max()) + 1},
    ]


def _calibration(case: _Case, nested: Nested) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for name, p in _probabilities(nested).items():
        out += [{"what": f"Brier, {name}", "value": case.share(p, brier, case.y)}]
        out += [{"what": f"ECE of 10 bins, {name}", "value": expected_calibration_error(p, case.y)}]
    out.append({"what": "temperature, median of folds", "value": float(np.median(nested.temperature))})
    for low, high, mean, share, n in reliability(probability_of(nested.logits), case.y):
        out.append(
            {"what": f"share of label 1 where p in {low:.1f}-{high:.1f} (mean {mean:.2f}, n={n})", "value": share}
        )
    return out


def _probabilities(nested: Nested) -> dict[str, NDArray]:
    """Out-of-fold probabilities of label 1, before and after the temperature of the inner folds."""
    plain = np.ones(len(nested.folds))
    of = {"as fitted": plain, "with temperature": nested.temperature}
    return {name: probability_of(nested.logits, heat[nested.fold]) for name, heat in of.items()}


def _reliability(case: _Case, nested: Nested) -> dict[str, tuple[tuple[float, Estimate], ...]]:
    """By kind of probability, per bin with rows: the mean probability, and the share of label 1 with its interval."""
    return {
        name: tuple(
            (mean, Estimate(share, *wilson(round(share * n), n, case.level), n, case.level))
            for _, _, mean, share, n in reliability(p, case.y)
        )
        for name, p in _probabilities(nested).items()
    }


def _controls(case: _Case, x: Tensor, nested: Nested, types: Any, strength: float) -> list[dict[str, Any]]:
    """Control task on folds where types recur; shuffled labels on the outer folds."""
    y, rng = case.y, np.random.default_rng(case.seed)
    if types is None:
        kind, split = case.group, split_inside_groups(case.group, 0.3, rng)
        pairs = [] if split is None else [(split.train, split.test)]
    else:
        kind = group_codes("types", types, len(y))
        pairs = [(f.train, f.test[np.isin(kind[f.test], kind[f.train])]) for f in nested.folds]
    pairs = [(a, b) for a, b in pairs if len(b)]
    null = [shuffled(y, case.group, split, rng) for split in nested.folds[:1] for _ in range(case.n_controls)]
    found = held_out(x, [(nested.folds[0].train, nested.folds[0].test)], null, strength)
    rows = [{"what": "shuffled labels, AUROC", "value": _spread(found[0], case.level)}]
    draws = [(rng.random(int(kind.max()) + 1) < y.mean())[kind] for _ in range(case.n_controls)]
    draws = [d for d in draws if all(0 < d[a].sum() < len(a) and 0 < d[b].sum() < len(b) for a, b in pairs)]
    if not pairs or not draws:
        return rows
    control, true = held_out(x, pairs, draws, strength), held_out(x, pairs, [y], strength)
    for i, unit in enumerate(("AUROC", "accuracy")):
        rows += [
            {"what": f"control task, {unit}", "value": _spread(control[i], case.level)},
            {"what": f"true labels on the same split, {unit}", "value": float(true[i][0])},
            {"what": f"selectivity, {unit}", "value": _spread(true[i][0] - control[i], case.level)},
        ]
    return rows


def _spread(draws: NDArray, level: float) -> Estimate:
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(np.nanmean(draws)), float(low), float(high), len(draws), level)


def _baselines(
    case: _Case, texts: Sequence[str] | None, untrained: Activations | None, sites: list[Site], missing: dict[str, str]
) -> list[dict[str, Any]]:
    out = []
    if texts is None:
        missing["bag of words, length"] = "give texts="
    else:
        if len(texts) != len(case.y):
            raise BadInput(f"{len(texts)} texts for {len(case.y)} rows: give one a row")
        for name, rows in zip(("bag of words", "length"), words_and_length(texts, _WORDS), strict=True):
            out.append({"what": name, "AUROC": case.interval(case.nested(torch.from_numpy(rows)[None]).scores)})
    if untrained is None:
        missing["untrained model"] = "give untrained=, activations of the same rows with random weights"
    else:
        x = torch.stack([finite_rows(untrained, site) for site in sites])
        out.append({"what": "untrained model, best site", "AUROC": case.interval(case.nested(x).scores)})
    return out


def _aggregation(case: _Case, tokens: Activations, site: Site, strength: float) -> list[dict[str, Any]]:
    of, values = np.asarray(tokens.labels["text"]).astype(int), finite_rows(tokens, site)
    n = len(case.y)
    if set(of.tolist()) != set(range(n)):
        raise BadInput(f"tokens= holds texts {of.min()} to {of.max()}: they must be the {n} rows of the activations")
    counts = torch.bincount(torch.as_tensor(of), minlength=n)
    mean = torch.zeros(n, values.shape[1], dtype=values.dtype).index_add_(0, torch.as_tensor(of), values)
    last = np.array([np.flatnonzero(of == i)[-1] for i in range(n)])
    rows = {"last token": values[last], "mean of tokens": mean / counts[:, None]}
    out = [{"how": name, "AUROC": case.interval(case.nested(v[None]).scores)} for name, v in rows.items()]
    # Every token carries its text's label; a text scores as its highest token.
    nested_folds = case.nested(rows["last token"][None]).folds
    masks = np.stack([np.isin(of, f.train) for f in nested_folds])
    y = np.broadcast_to(case.y[of], masks.shape).copy()
    scores = masked_scores(values[None], y, masks, np.full(len(masks), strength), readouts.logistic)[0]
    for name, join in (("maximum of token scores", np.maximum), ("mean of token scores", np.add)):
        pooled = np.full((len(masks), n), -np.inf if join is np.maximum else 0.0)
        for i in range(len(masks)):
            join.at(pooled[i], of, scores[i])
        if join is np.add:
            pooled /= counts.numpy()
        joined = np.empty(n)
        for i, fold in enumerate(nested_folds):
            joined[fold.test] = pooled[i, fold.test]
        out.append({"how": name, "AUROC": case.interval(joined)})
    return out


def _transfer(
    case: _Case, x: Tensor, site: Site, others: Mapping[str, tuple[Activations, Any]], strength: float, own: Estimate
) -> list[dict[str, Any]]:
    data = {"this": (x, case.y, case.group)}
    for name, (acts, labels) in others.items():
        y, _ = binary_labels(labels, len(acts))
        data[name] = (finite_rows(acts, site), y, group_codes("groups", acts.labels.get("text"), len(acts)))
    fits = {
        name: readouts.logistic(
            v[None], torch.as_tensor(y)[None], torch.tensor([strength]), torch.ones(1, len(y), dtype=torch.bool)
        )
        for name, (v, y, _) in data.items()
    }
    units = {name: f.weights[0, 0] / f.weights[0, 0].norm() for name, f in fits.items()}
    plain = case.wider
    out = []
    for a in data:
        for b, (v, y, g) in data.items():
            if a == b and a != "this":
                value: Any = case.interval(case.nested(v[None], y, g).scores, y, g)
            elif a == b:
                value = own
            else:
                case.wider = 1.0  # nothing was fitted on these rows
                value = case.interval(fits[a].scores(v[None])[0, 0].numpy(), y, g)
                case.wider = plain
            out.append({"fitted on": a, "scored on": b, "AUROC": value, "cosine": float(units[a] @ units[b])})
    worst = min((r for r in out if r["fitted on"] == "this"), key=lambda r: r["AUROC"].value)
    out.append({**worst, "fitted on": "this, worst case"})
    return out


def _samples(case: _Case, x: Tensor, nested: Nested, strength: float) -> list[dict[str, Any]]:
    """Pooled out-of-fold AUROC with a part of the training groups, and with a part of the positives."""
    rng, y, group, repeats = np.random.default_rng(case.seed), case.y, case.group, 5
    arms: list[tuple[str, Callable[[NDArray], NDArray]]] = []
    for share in (0.1, 0.25, 0.5, 1.0):

        def fewer(train: NDArray, share: float = share) -> NDArray:
            members = np.unique(group[train])
            return train[np.isin(group[train], rng.permutation(members)[: max(2, round(share * len(members)))])]

        arms.append((f"{share:.0%} of the training groups", fewer))
    for share in (0.05, 0.1, 0.25):

        def rarer(train: NDArray, share: float = share) -> NDArray:
            zero, one = train[~y[train]], train[y[train]]
            k = max(1, min(len(one), round(share / (1 - share) * len(zero))))
            return np.concatenate([zero, rng.permutation(one)[:k]])

        arms.append((f"positives at most {share:.0%} of training rows", rarer))
    out = []
    for name, take in arms:
        values, sizes = [], []
        masks = np.zeros((repeats, len(nested.folds), len(y)), dtype=bool)
        for r in range(repeats):
            for i, fold in enumerate(nested.folds):
                masks[r, i, take(fold.train)] = True
        flat = masks.reshape(-1, len(y))
        good = np.array([0 < y[m].sum() < m.sum() for m in flat]).reshape(repeats, -1).all(axis=1)
        if not good.any():
            continue
        flat = masks[good].reshape(-1, len(y))
        scores = masked_scores(
            x, np.broadcast_to(y, flat.shape).copy(), flat, np.full(len(flat), strength), readouts.logistic
        )[0].reshape(int(good.sum()), len(nested.folds), -1)
        for r in range(len(scores)):
            pooled = np.empty(len(y))
            for i, fold in enumerate(nested.folds):
                pooled[fold.test] = scores[r, i, fold.test]
            values.append(auroc(pooled, y))
            sizes.append(flat.sum(axis=1).mean())
        out.append({"training rows": name, "n": round(float(np.mean(sizes))), "AUROC over draws": _spread(
            np.array(values), case.level)})  # fmt: skip
    return out


def _causal(
    effect: Callable[[Direction], Sequence[float]], direction: Direction, x: Tensor, y: NDArray, seed: int, level: float
) -> list[dict[str, Any]]:
    mean = torch.as_tensor((x[y].double().mean(0) - x[~y].double().mean(0)).float())
    arms = [("probe", direction), ("mean difference", Direction(mean, direction.site, "mean difference"))]
    arms += [(f"random {i}", direction.random_like(seed + i)) for i in range(_RANDOM)]
    out = []
    for name, arm in arms:
        moved = np.asarray(effect(arm.scaled_to(direction.norm)), dtype=float)
        if moved.ndim != 1 or len(moved) < 2 or not np.isfinite(moved).all():
            raise BadInput(f"effect= must give one finite number an item, at least 2; it gave shape {moved.shape}")
        low, high = cluster_bootstrap(lambda v: float(v.mean()), moved, seed=seed, level=level)
        value = Estimate(float(moved.mean()), low, high, len(moved), level)
        out.append({"direction": name, "cosine to the probe": direction.cosine(arm), "effect": value})
    return out
