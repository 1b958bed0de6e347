"""G-ACT: steer each prompt by the vector of its cluster, which a probe reads from the residual stream.

    D = gact.differences(acts_target, [acts_other, ...])                   target-styled minus other-styled, per prompt
    found = gact.fit(acts_open, D, k=3, groups=tasks)                      clusters, a probe a site, held-out scores
    runs = lm.generate(prompts, steer=found.plan(0.2, sites=4))            chosen inside the hook, per row and token

    online = gact.Refiner(found)                                           learns from judged generations
    online.observe(states, difference, judged="Julia", wanted="Julia")
    found = online.result()

The paper's abstract and first figure are all that is public; what is ours is named in docs/gact.md.

Source: Sharma and Raman (arXiv 2506.18887).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths import softmax_probe
from latentlens.maths.clustering import kmeans, matching
from latentlens.maths.softmax_probe import Softmax, accuracy, macro_f1
from latentlens.maths.statistics import cluster_bootstrap, wilson
from latentlens.values.activations import Activations
from latentlens.values.gact import ClusterScore, ClusterStability, ClusterSteering, Refinement
from latentlens.values.labelled_rows import group_codes
from latentlens.values.results import Estimate

# Fewer prompts than this are all fitted on: a held-out score of one of them says nothing.
_FEW = 5
_STATISTICS = (accuracy, macro_f1)


def differences(target: Activations, others: Sequence[Activations]) -> Tensor:
    """D_q = h(q in the target style) - mean over the others of h(q in another style), (sites, prompts, d).

    Args: target, others: the same prompts in the same order, one row a prompt, at the same sites.
    Raises: BadInput: rows or sites that do not fit, or no other style.
    """
    if not others:
        raise BadInput("a difference needs at least one other style")
    for one in others:
        if one.sites != target.sites or len(one) != len(target):
            raise BadInput(
                f"the styles must hold the same prompts at the same sites: {len(target)} rows at {len(target.sites)} "
                f"sites, and {len(one)} at {len(one.sites)}"
            )
    return target.stack().float() - torch.stack([one.stack().float() for one in others]).mean(0)


def fit(
    states: Activations, difference: Tensor, *, k: int = 3, groups: Sequence[Any] | None = None, on: Any = "all",
    heads: Activations | None = None, test_share: float = 0.2, epochs: int = 20, rate: float = 1e-3, batch: int = 32,
    weight_decay: float = 0.01, n_controls: int = 20, n_bootstrap: int = 500, seed: int = 42, level: float = 0.95,
) -> ClusterSteering:  # fmt: skip
    """Cluster the differences and fit, at every site, a probe that names the cluster from the state.

        z = KMeans(D_l / mean |h_l|, all l side by side)        c_lk = mean of D_l over z = k
        p_l = softmax(W_l h_l + b_l), cross-entropy, AdamW      h standardised, the scaler folded in

    Clusters and probes come from the training prompts alone; a held-out prompt has the cluster of its nearest centroid.

    Args:
        states: one row a prompt, as the model will see it when it is steered (the style not named), at several sites.
        difference: (sites, prompts, d), from `differences`; the same prompts in the same order.
        k: clusters; reduced to the number of distinct differences.
        groups: what must not be on both sides of the split (the task of a prompt).
        on: "all" sites side by side, or one site whose differences are clustered.
        heads: `z` of the same rows; every head is then scored too, as ACT reads heads.
        test_share: of the groups, held out; nothing is when there are fewer than five prompts.
        epochs, rate, batch, weight_decay: of the probes.
        n_controls: labellings shuffled among the training prompts. n_bootstrap, level: of intervals; where all prompts
            are named right the ends are Wilson's for as many groups.
        seed: of the split, the clusters, and the probes.
    Returns: a ClusterSteering. A UserWarning when there are fewer than 2 K prompts.
    Raises: BadInput, TooFewExamples, NonFiniteActivations.
    """
    x, d = states.stack().float(), difference.float()
    if d.shape != x.shape:
        raise BadInput(f"states are (sites, prompts, d) = {tuple(x.shape)}, differences {tuple(d.shape)}")
    if not (x.isfinite().all() and d.isfinite().all()):
        raise NonFiniteActivations("states or differences hold NaN or infinity: drop those prompts first")
    n = x.shape[1]
    if n < 2 * k:
        warnings.warn(f"{n} prompts for {k} clusters: fewer than two a cluster say little", UserWarning, stacklevel=2)
    group = group_codes("groups", groups, n)
    train, test = _split(group, test_share, seed)
    scale = x[:, train].norm(dim=-1).mean(1).clamp(min=1e-12)
    at = list(range(len(x))) if on == "all" else [states.sites.index(states.expand(on)[0])]
    points = (d / scale[:, None, None])[at].transpose(0, 1).flatten(1).double().numpy()
    labels = np.zeros(n, dtype=np.intp)
    labels[train] = kmeans(points[train], k, seed=seed)
    k = int(labels[train].max()) + 1
    centroids = torch.stack([d[:, train[labels[train] == one]].mean(1) for one in range(k)], 1)
    how = {"epochs": epochs, "rate": rate, "batch": batch, "weight_decay": weight_decay, "seed": seed}
    about = {"method": "G-ACT", "n_train": len(train), "n_test": len(test), **how}
    found = ClusterSteering(
        states.sites, centroids, d[:, train].mean(1), softmax_probe.fit(x[:, train], labels[train], k, **how), scale,
        labels, train, test, (), tuple(at), about,
    )  # fmt: skip
    if len(test):
        labels[test] = found.nearest(d[:, test])
    shuffled = _shuffled(x[:, train], labels[train], k, n_controls, how)
    scores = _scores(found, x[:, test], labels[test], group[test], shuffled, n_bootstrap, seed, level)
    if heads is not None and len(test):
        scores = [_with_heads(score, heads, labels, train, test, k, how) for score in scores]
    return replace(found, scores=tuple(scores))


def evaluate(
    found: ClusterSteering, states: Activations, labels: NDArray[np.intp], *, groups: Sequence[Any] | None = None,
    n_bootstrap: int = 500, seed: int = 42, level: float = 0.95,
) -> list[tuple[Estimate, Estimate]]:  # fmt: skip
    """Accuracy and macro-F1 of the probes on other prompts, a pair a site.

    Args: states: one row a prompt at the same sites. labels: their clusters (`found.nearest(differences)`).
    """
    group = group_codes("groups", groups, len(states))
    named = found.choices(states.stack().float())

    def scored(statistic: Any, one: NDArray[np.intp]) -> Estimate:
        return _with_interval(statistic, labels, one, group, n_bootstrap, seed, level)

    return [(scored(accuracy, one), scored(macro_f1, one)) for one in named]


def forgotten(found: ClusterSteering) -> ClusterSteering:
    """The same clusters with probes that know nothing, all weights zero: where refinement that learns alone begins."""
    zero = replace(found.probe, weight=torch.zeros_like(found.probe.weight), bias=torch.zeros_like(found.probe.bias))
    return replace(found, probe=zero)


def stability(
    difference: Tensor, k: int = 3, *, draws: int = 10, share: float = 0.8, seed: int = 0, level: float = 0.95
) -> ClusterStability:
    """How alike the clusters are when KMeans starts elsewhere, and when it sees other prompts.

    Cluster numbers are arbitrary, so partitions are compared by the adjusted Rand index, and clusters matched by the
    prompts they share.

    Args: difference: (sites, prompts, d). draws: seeds, and random parts of `share` of the prompts.
    Raises: TooFewExamples: fewer than two prompts or draws.
    Source: Hubert and Arabie, Journal of Classification 2 (1985).
    """
    from sklearn.metrics import adjusted_rand_score

    n = difference.shape[1]
    if n < 2 or draws < 2:
        raise TooFewExamples(
            f"{n} prompts and {draws} draws: stability compares two partitions of two prompts at least"
        )
    unit = difference.float().norm(dim=-1).mean(1).clamp(min=1e-12)[:, None, None]
    points = (difference.float() / unit).transpose(0, 1).flatten(1).double().numpy()
    rng = np.random.default_rng(seed)
    of_seeds = [kmeans(points, k, seed=int(rng.integers(1 << 31)), n_init=1) for _ in range(draws)]
    of_parts, centroids = [], []
    for _ in range(draws):
        part = rng.permutation(n)[: max(1, round(share * n))]
        found = kmeans(points[part], k, seed=seed)
        centres = np.stack([points[part][found == one].mean(0) for one in range(int(found.max()) + 1)])
        of_parts.append(((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1))
        centroids.append(centres)
    pairs = [(i, j) for i in range(draws) for j in range(i)]
    cosines = []
    for i, j in pairs:
        for one, other in enumerate(matching(of_parts[i], of_parts[j])):
            if other >= 0:
                a, b = centroids[i][one], centroids[j][other]
                cosines.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)))
    rand = [[float(adjusted_rand_score(of[i], of[j])) for i, j in pairs] for of in (of_seeds, of_parts)]
    about = {"draws": draws, "share of prompts": share, "seed": seed}
    seeds, samples, matched = (_range(values, level) for values in (*rand, cosines))
    return ClusterStability(seeds, samples, matched, k, about)


class Refiner:
    """Online refinement: each judged generation in the target style teaches every probe the cluster that it belongs to.

        one SGD step on  mean of -log softmax(W h + b)_k  over the new row and `replay` rows of the buffer

    A generation teaches when the judge found the wanted style in it: its observed difference is then an instance of the
    style, and the cluster of the nearest centroid is the label. Others are counted and teach nothing.

    Args: rate: of a step (bounded, see `Softmax.stepped`). buffer: rows remembered, the oldest dropped. replay: rows
        drawn from it a step. frozen: count, but learn nothing.
    """

    def __init__(
        self, found: ClusterSteering, *, rate: float = 0.01, buffer: int = 256, replay: int = 7, frozen: bool = False,
        seed: int = 0,
    ) -> None:  # fmt: skip
        if rate <= 0 or buffer < 1 or replay < 0:
            raise BadInput(f"rate={rate}, buffer={buffer}, replay={replay}: a rate above 0, a buffer of 1 row at least")
        self._found, self._probe = found, found.probe
        self.rate, self.buffer, self.replay, self.frozen = rate, buffer, replay, frozen
        self._rng = np.random.default_rng(seed)
        self._kept: list[tuple[Tensor, int]] = []
        self._clusters: list[int] = []
        self._refused = self._unknown = 0

    def observe(self, states: Tensor, difference: Tensor, *, judged: str | None, wanted: str) -> int | None:
        """Learn from one generation.

        Args: states: (sites, d), of the prompt as it is when steered. difference: (sites, d), of the generation in the
            style against the others. judged: the style that the judge found; None or "unknown" where it found none.
        Returns: the cluster taught, None where nothing was.
        Raises: BadInput: shapes that do not fit. NonFiniteActivations.
        """
        shape = tuple(self._found.mean.shape)
        if tuple(states.shape) != shape or tuple(difference.shape) != shape:
            raise BadInput(f"one state and one difference a site, {shape}: got {tuple(states.shape)}")
        if not (states.isfinite().all() and difference.isfinite().all()):
            raise NonFiniteActivations("the state or the difference holds NaN or infinity")
        if judged != wanted:
            self._unknown += judged is None or judged == "unknown"
            self._refused += judged is not None and judged != "unknown"
            return None
        k = int(self._found.nearest(difference[:, None])[0])
        self.teach(states, k)
        return k

    def teach(self, states: Tensor, k: int) -> None:
        """Take one step towards cluster k for a state (sites, d)."""
        self._clusters.append(k)
        if self.frozen:
            return
        drawn = self._rng.permutation(len(self._kept))[: self.replay]
        rows = [(states.float(), k), *(self._kept[i] for i in drawn)]
        x, y = torch.stack([row for row, _ in rows], 1), torch.tensor([label for _, label in rows])
        self._probe = self._probe.stepped(x, y, self.rate)
        self._kept = [*self._kept, rows[0]][-self.buffer :]

    @property
    def seen(self) -> Refinement:
        """What was taught so far."""
        return Refinement(len(self._clusters), self._refused, self._unknown, self.frozen, tuple(self._clusters))

    def result(self) -> ClusterSteering:
        """The steering with the refined probes. Its `scores` are those before: `evaluate` it on other prompts."""
        return replace(self._found, probe=self._probe, about={**self._found.about, "refinement": self.seen})


def taught(
    found: ClusterSteering,
    states: Tensor,
    difference: Tensor,
    judged: Sequence[str | None],
    wanted: str,
    **options: Any,
) -> ClusterSteering:
    """Let a `Refiner` see generations one after another, and return what it made.

    Args: states, difference: (sites, n, d). judged: the style that the judge found in each. options: of the `Refiner`.
    """
    if not states.shape[1] == difference.shape[1] == len(judged):
        raise BadInput(
            f"{states.shape[1]} states, {difference.shape[1]} differences, {len(judged)} judgements: one each"
        )
    online = Refiner(found, **options)
    for i, style in enumerate(judged):
        online.observe(states[:, i], difference[:, i], judged=style, wanted=wanted)
    return online.result()


def _split(group: NDArray[np.intp], share: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(train, test) rows, whole groups."""
    if not 0 <= share < 1:
        raise BadInput(f"test_share={share}: a share lies between 0 and 1, for instance .2")
    if not len(group):
        raise TooFewExamples("no prompt to fit on")
    n_groups = int(group.max()) + 1
    out = 0 if share == 0 or len(group) < _FEW else min(max(round(share * n_groups), 1), n_groups - 1)
    test = np.isin(group, np.random.default_rng(seed).permutation(n_groups)[:out])
    return np.flatnonzero(~test), np.flatnonzero(test)


def _shuffled(x: Tensor, labels: NDArray[np.intp], k: int, draws: int, how: dict[str, Any]) -> Softmax | None:
    if not draws:
        return None
    rng = np.random.default_rng(how["seed"])
    return softmax_probe.fit(x, np.stack([rng.permutation(labels) for _ in range(draws)]), k, **how)


def _scores(
    found: ClusterSteering, x: Tensor, truth: NDArray[np.intp], group: NDArray[np.intp], shuffled: Softmax | None,
    n_bootstrap: int, seed: int, level: float,
) -> list[ClusterScore]:  # fmt: skip
    nan = Estimate(float("nan"), float("nan"), float("nan"), 0, level)
    if not len(truth):
        return [ClusterScore(site, nan, nan, nan.value, nan.value, nan, nan) for site in found.sites]
    named, always = found.choices(x), np.zeros(len(truth), dtype=np.intp)  # 0 is the largest cluster
    draws = 0 if shuffled is None else len(shuffled.mean) // len(x)
    wrong = None
    if shuffled is not None:
        wrong = shuffled.probabilities(x.repeat_interleave(draws, 0)).argmax(-1).numpy().reshape(len(x), draws, -1)
    scores = []
    for i, site in enumerate(found.sites):
        right, f1 = (_with_interval(s, truth, named[i], group, n_bootstrap, seed, level) for s in (accuracy, macro_f1))
        null = [nan if wrong is None else _range([s(truth, one) for one in wrong[i]], level) for s in _STATISTICS]
        largest = [s(truth, always) for s in _STATISTICS]
        scores.append(ClusterScore(site, right, f1, largest[0], largest[1], null[0], null[1]))
    return scores


def _with_heads(
    score: ClusterScore, heads: Activations, labels: NDArray[np.intp], train: NDArray[np.intp],
    test: NDArray[np.intp], k: int, how: dict[str, Any],
) -> ClusterScore:  # fmt: skip
    mine = [site for site in heads.sites if site.point == "z" and site.block == score.site.block]
    if not mine:
        return score
    x = heads[mine[0]].float().transpose(0, 1)  # (heads, rows, d_head)
    probe = softmax_probe.fit(x[:, train], labels[train], k, **how)
    named, truth = probe.probabilities(x[:, test]).argmax(-1).numpy(), labels[test]
    level = score.accuracy.level
    f1 = _range([macro_f1(truth, one) for one in named], level)
    return replace(
        score, heads_accuracy=_range([accuracy(truth, one) for one in named], level), heads_f1=f1, best_head_f1=f1.high
    )


def _with_interval(
    statistic: Any, truth: NDArray, named: NDArray, group: NDArray, n: int, seed: int, level: float
) -> Estimate:
    try:
        ends = cluster_bootstrap(statistic, truth, named, groups=group, n=n, seed=seed, level=level)
    except TooFewExamples:
        return Estimate(statistic(truth, named), float("nan"), float("nan"), len(truth), level)
    hits = int((truth == named).sum())
    if hits in (0, len(truth)):  # every resample repeats the same 0 or 1: the ends of a share of as many groups
        groups = len(np.unique(group))
        ends = wilson(groups if hits else 0, groups, level)
    return Estimate(statistic(truth, named), *ends, len(truth), level)


def _range(values: Sequence[float], level: float) -> Estimate:
    """Mean with the lowest and the highest; n counts the values."""
    if not values:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, level)
    return Estimate(float(np.mean(values)), min(values), max(values), len(values), level)
