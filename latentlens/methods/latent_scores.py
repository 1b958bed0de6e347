"""Do ablated SAE latents take away the concept that they were chosen for, and only that one? TPP and SCR.

The ablations run elsewhere (`probe accuracies in, scores out`); here are the choice of latents and the scores. Both
vary between seeds of the probes by 20-40% (TPP) and can change ranks (SCR): pass several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.results import Estimate


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
