"""Do ablated SAE latents take away the concept that they were chosen for, and only that one? TPP and SCR.

    found = tpp(sae, {"truth": (states, labels), "plural": (other_states, other_labels)})
    found = scr(sae, states, truth, negated)           # a probe that learned "negated" with "true"

The states are those at the SAE's site; a latent is ablated by taking away what it adds, the reconstruction error kept.
Beside every score stands that of as many random active latents. Both scores vary between seeds of splits and probes by
20-40% (TPP) and can change ranks (SCR), so several seeds are run and their spread is the interval.

Source: SAEBench (arXiv 2503.09532). Its probes are trained by 20 epochs of Adam with an L1 penalty, ours are logistic
regressions; its seed is 42, ours are several; the random latents are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths import readouts
from latentlens.maths.grouped_splits import split_by_group
from latentlens.values.labelled_rows import binary_labels, group_codes
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.sae import SAE

if TYPE_CHECKING:
    import pandas as pd

_COUNTS = (2, 5, 10, 20)  # published: up to 500, of SAEs with thousands of latents


@dataclass(frozen=True, eq=False)
class LatentScores(Shown):
    """TPP or SCR by how many latents were ablated. n of every Estimate counts seeds; its interval is their Student's t.

    name: "TPP" or "SCR". chosen: number of latents -> score. random: the same with as many random active latents.
    accuracy: of the probes on held-out rows before anything is ablated, by what they were trained for.
    """

    name: str
    chosen: Mapping[int, Estimate]
    random: Mapping[int, Estimate]
    accuracy: Mapping[str, Estimate]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a number of latents: score and control with their ends, seeds."""
        import pandas as pd

        ends = lambda name, e: {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
        return pd.DataFrame(
            {"latents": k, **ends(self.name, e), **ends("random", self.random[k]), "seeds": e.n}
            for k, e in self.chosen.items()
        )

    def table(self) -> pd.DataFrame:
        """The same for people."""
        import pandas as pd

        return pd.DataFrame(
            {"latents ablated": k, self.name: e.short, "random latents": self.random[k].short}
            for k, e in self.chosen.items()
        )

    def __repr__(self) -> str:
        parts = [f"{k} latents {e.short} (random {self.random[k].short})" for k, e in self.chosen.items()]
        return f"LatentScores({self.name}: {', '.join(parts)}; {next(iter(self.chosen.values())).n} seeds)"


def tpp(
    sae: SAE,
    data: Mapping[str, tuple[Tensor, ArrayLike]],
    *,
    groups: Mapping[str, Sequence[Any]] | None = None,
    counts: Sequence[int] = _COUNTS,
    seeds: Sequence[int] = range(5),
    C: float = 0.1,
    test_share: float = 0.3,
    level: float = 0.95,
) -> LatentScores:
    """Targeted probe perturbation: ablate the latents of one concept, read the probes of all.

    Per seed every concept is split by groups, a probe is fitted and `choose_latents` picks on the training side, and
    accuracies come from the other; see `targeted_probe_perturbation`.

    Args:
        sae: of the site that the states come from.
        data: concept -> (states (n, d), two labels (n,)).
        groups: concept -> (n,) what must not be on both sides; rows by default.
        counts: how many latents. seeds: of splits and random latents, at least two. C: of the probes.
        test_share: share of rows held out. level: coverage.
    Raises: BadInput: fewer than two concepts or seeds, widths, counts. TooFewExamples, NonFiniteActivations.
    """
    if len(data) < 2:
        raise BadInput(f"{len(data)} concept(s): TPP compares a concept with others, give at least 2")
    read = {name: _rows(sae, name, x, y, (groups or {}).get(name)) for name, (x, y) in data.items()}
    sets, clean = {kind: {k: [] for k in counts} for kind in ("chosen", "random")}, []
    for seed in seeds:
        rng, sides = np.random.default_rng(seed), []
        for x, y, group in read.values():
            train, test = split_by_group(y, group, test_share, rng)
            sides.append((x[train], y[train], x[test], y[test], _fitted(x[train], y[train], C)))
        clean.append([_accuracy(probe, x, y) for _, _, x, y, probe in sides])
        for k in counts:
            for kind, pick in _pickers(sae, rng, signed=True).items():
                ablated = [
                    [_accuracy(probe, _without(sae, x, chosen), y) for _, _, x, y, probe in sides]
                    for chosen in (pick(x, y, probe, k) for x, y, _, _, probe in sides)
                ]
                sets[kind][k].append(targeted_probe_perturbation(clean[-1], ablated))
    found = {kind: {k: over_seeds(v, level) for k, v in by.items()} for kind, by in sets.items()}
    accuracy = {name: over_seeds(v, level) for name, v in zip(read, np.transpose(clean))}
    return LatentScores("TPP", **found, accuracy=accuracy, about={"seeds": list(seeds), "C": C, "concepts": list(read)})


def scr(
    sae: SAE,
    states: Tensor,
    target: ArrayLike,
    spurious: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    counts: Sequence[int] = _COUNTS,
    seeds: Sequence[int] = range(5),
    C: float = 0.1,
    test_share: float = 0.3,
    level: float = 0.95,
) -> LatentScores:
    """Spurious correlation removal: how much of what a biased probe lost do ablated latents bring back?

    The biased probe is fitted to `target` on training rows where it agrees with `spurious`; the clean one on training
    rows with the four combinations equally often. Latents are chosen by the biased probe and the difference of means of
    `spurious` on those balanced rows, and accuracy is read on balanced held-out rows; see
    `spurious_correlation_removal`.

    Args: sae, counts, seeds, C, test_share, level: as `tpp`. states: (n, d). target, spurious: (n,) two labels each.
        groups: (n,) what must not be on both sides; rows by default.
    Raises: as `tpp`. TooFewExamples: a combination of the labels without rows on a side.
    """
    x, y, group = _rows(sae, "target", states, target, groups)
    s, _ = binary_labels(list(np.asarray(spurious)), len(x))
    sets = {kind: {k: [] for k in counts} for kind in ("chosen", "random")}
    base, clean = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        train, test = split_by_group(y, group, test_share, rng)
        fair, held_out = _balanced(train, y, s, rng), _balanced(test, y, s, rng)
        biased_rows = train[y[train] == s[train]]
        biased, unbiased = _fitted(x[biased_rows], y[biased_rows], C), _fitted(x[fair], y[fair], C)
        base.append(_accuracy(biased, x[held_out], y[held_out]))
        clean.append(_accuracy(unbiased, x[held_out], y[held_out]))
        for k in counts:
            for kind, pick in _pickers(sae, rng, signed=False).items():
                moved = _without(sae, x[held_out], pick(x[fair], s[fair], biased, k))
                after = _accuracy(biased, moved, y[held_out])
                sets[kind][k].append(spurious_correlation_removal(base[-1], after, clean[-1]))
    found = {kind: {k: over_seeds(v, level) for k, v in by.items()} for kind, by in sets.items()}
    accuracy = {"biased": over_seeds(base, level), "clean": over_seeds(clean, level)}
    return LatentScores("SCR", **found, accuracy=accuracy, about={"seeds": list(seeds), "C": C})


def choose_latents(
    codes: Tensor, labels: NDArray[np.bool_], decoder: Tensor, probe: Tensor, n: int, *, signed: bool = True
) -> NDArray[np.intp]:
    """The n latents of the largest (mean difference of activation) x (decoder . probe).

    Args: codes: (rows, d_sae). labels: (rows,). decoder: (d_sae, d). probe: (d,). n: how many. signed: negative
        products count as 0 (TPP); False takes the absolute value (SCR).
    Raises: BadInput: shapes, or n outside 1..d_sae.
    Source: SAEBench (arXiv 2503.09532).
    """
    y = torch.as_tensor(np.asarray(labels, dtype=bool))
    if codes.shape[1] != len(decoder) or len(codes) != len(y) or decoder.shape[1] != len(probe):
        raise BadInput(
            f"codes {tuple(codes.shape)}, decoder {tuple(decoder.shape)}, probe {tuple(probe.shape)} do not agree"
        )
    if not 1 <= n <= len(decoder):
        raise BadInput(f"n={n}: choose between 1 and {len(decoder)} latents")
    effect = (codes[y].double().mean(0) - codes[~y].double().mean(0)) * (decoder.double() @ probe.double())
    effect = effect.clamp_min(0) if signed else effect.abs()
    return effect.topk(n).indices.numpy()


def targeted_probe_perturbation(clean: ArrayLike, ablated: ArrayLike) -> float:
    """TPP: by how much more a concept's own ablation hurts its probe than it hurts the others.

        mean_i [ (a_i - a_i^{abl i}) - mean_{j != i} (a_j - a_j^{abl i}) ]

    Args: clean: (K,), accuracies. ablated: (A, K), row i after ablating the latents of concept i; fewer rows than
        concepts average over the first A.
    >>> round(targeted_probe_perturbation([.9, .8, .85], [[.6, .78, .85]]), 3)
    0.29

    Raises: BadInput: shapes, one concept. Source: SAEBench (arXiv 2503.09532).
    """
    a, b = np.asarray(clean, dtype=float), np.asarray(ablated, dtype=float)
    if a.ndim != 1 or b.ndim != 2 or b.shape[1] != len(a) or not 1 <= len(b) <= len(a) or len(a) < 2:
        raise BadInput(f"clean {a.shape} and ablated {b.shape}: (K,) and (A, K) with A at most K and K at least 2")
    drop = a - b
    own = np.array([drop[i, i] for i in range(len(b))])
    return float(np.mean(own - (drop.sum(axis=1) - own) / (len(a) - 1)))


def spurious_correlation_removal(base: float, ablated: float, clean: float) -> float:
    """SCR: share of the distance from a biased probe's accuracy to a clean one's that ablation recovers.

        (A_ablated - A_base) / (A_clean - A_base), 0 where the denominator is below .001

    >>> round(spurious_correlation_removal(.6, .75, .9), 3)
    0.5

    Source: SAEBench (arXiv 2503.09532).
    """
    room = clean - base
    return 0.0 if room < 0.001 else float((ablated - base) / room)


def over_seeds(scores: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of one score over seeds with Student's interval; n counts seeds.

    Raises: BadInput: fewer than two seeds: the spread between seeds is most of the uncertainty.
    """
    values = np.asarray(scores, dtype=float)
    if len(values) < 2:
        raise BadInput(f"{len(values)} seed(s): TPP and SCR need several, at least 2")
    half = student_t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values), level)


# -- rows, probes, ablations -----------------------------------------------------------------------


def _rows(sae: SAE, name: str, x: Tensor, labels: ArrayLike, groups: Any) -> tuple[Tensor, NDArray, NDArray]:
    if x.ndim != 2 or x.shape[1] != sae.d_in:
        raise BadInput(f"{name}: states {tuple(x.shape)}, but the SAE reads (n, {sae.d_in})")
    if not bool(x.isfinite().all()):
        raise NonFiniteActivations(f"{name}: NaN or infinity in its states: drop those rows")
    y, _ = binary_labels(list(np.asarray(labels)), len(x))
    return x.float(), y, group_codes("groups", range(len(x)) if groups is None else groups, len(x))


def _fitted(x: Tensor, y: NDArray, C: float) -> readouts.Readouts:
    if not 0 < y.sum() < len(y):
        raise TooFewExamples(f"{len(y)} rows to fit a probe on hold one class only")
    labels = torch.as_tensor(y)[None]
    return readouts.logistic(x[None], labels, torch.tensor([C], dtype=torch.float64), torch.ones_like(labels))


def _accuracy(probe: readouts.Readouts, x: Tensor, y: NDArray) -> float:
    return float(((probe.scores(x[None])[0, 0] > 0).numpy() == y).mean())


def _without(sae: SAE, x: Tensor, chosen: NDArray) -> Tensor:
    """The states less what some latents add to them: the error of the reconstruction stays."""
    index = chosen.tolist()
    added, scale = sae.encode(x, index).float() @ sae.decoder(index).float(), sae.scale(x)
    return x - (added if scale is None else added * scale.float())


def _pickers(sae: SAE, rng: np.random.Generator, *, signed: bool) -> dict[str, Callable[..., NDArray]]:
    """Ways of choosing k latents from training rows: by `choose_latents`, and at random among the active ones."""

    def chosen(x: Tensor, y: NDArray, probe: readouts.Readouts, k: int) -> NDArray:
        decoder = sae.decoder(list(range(sae.d_sae)))
        return choose_latents(sae.encode(x), y, decoder, probe.weights[0, 0], k, signed=signed)

    def random(x: Tensor, y: NDArray, probe: readouts.Readouts, k: int) -> NDArray:
        active = np.flatnonzero((sae.encode(x) > 0).any(0).numpy())
        return rng.permutation(active)[:k] if len(active) >= k else rng.permutation(sae.d_sae)[:k]

    return {"chosen": chosen, "random": random}


def _balanced(rows: NDArray, y: NDArray, s: NDArray, rng: np.random.Generator) -> NDArray:
    cells = [rows[(y[rows] == a) & (s[rows] == b)] for a in (False, True) for b in (False, True)]
    least = min(map(len, cells))
    if not least:
        raise TooFewExamples(f"of {len(rows)} rows a combination of target and spurious label has none: give more rows")
    return np.concatenate([rng.permutation(cell)[:least] for cell in cells])
