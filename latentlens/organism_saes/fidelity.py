"""How much of the model an SAE keeps: variance explained, latents a token, dead latents, loss recovered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.model import LensModel
from latentlens.access.saes.preflight import explained
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.methods import latents
from latentlens.organism_saes.train import N_TEXTS, corpus
from latentlens.values.replacements import Patch
from latentlens.values.results import Estimate
from latentlens.values.rows import TokenRow
from latentlens.values.sae import SAE
from latentlens.values.where import resolve


@dataclass(frozen=True)
class Fidelity:
    """What an SAE keeps on texts that it was not trained on; n of the estimates counts texts.

    explained: 1 - sum |x - xhat|^2 / sum |x - mean|^2 over content tokens. l0: active latents a token. dead: share of
    latents that fire on none of `tokens`. clean, replaced, zeroed: mean loss (nats a token) of the model as it is, with
    its states at the SAE's site replaced by their reconstructions, and replaced by zero. recovered: (zeroed - replaced)
    / (zeroed - clean).
    """

    explained: float
    l0: float
    dead: float
    tokens: int
    clean: float
    replaced: float
    zeroed: float
    recovered: Estimate


def fidelity(lm: LensModel, sae: SAE, n: int = 300) -> Fidelity:
    """Measure an SAE on the n texts that follow those it was trained on."""
    rows = lm.tokens(corpus(N_TEXTS + n)[N_TEXTS:])
    places = resolve("content", rows)
    acts = lm.activations(rows, sae.site, "content")
    states = acts[acts.sites[0]].float()
    found = latents.firing(sae.codes(acts))
    each = states.split([len(p) for p in places])
    here: dict[str, Any] = {"site": sae.site, "where": "content"}
    losses = {
        "clean": _losses(lm, rows, places, None),
        "replaced": _losses(lm, rows, places, [[Patch(sae.reconstruct(x), **here)] for x in each]),
        "zeroed": _losses(lm, rows, places, [[Patch(torch.zeros_like(x), **here)] for x in each]),
    }
    sums = {name: np.array([float(x.sum()) for x in one]) for name, one in losses.items()}
    predicted = sum(map(len, losses["clean"]))

    def recovered(clean: np.ndarray, replaced: np.ndarray, zeroed: np.ndarray) -> float:
        return float((zeroed.sum() - replaced.sum()) / (zeroed.sum() - clean.sum()))

    arrays = [sums[name] for name in ("clean", "replaced", "zeroed")]
    low, high = cluster_bootstrap(recovered, *arrays)
    value = Estimate(recovered(*arrays), low, high, len(rows))
    means = {name: float(one.sum() / predicted) for name, one in sums.items()}
    return Fidelity(explained(sae, states), found.l0, float(found.dead.mean()), len(states), **means, recovered=value)


def _losses(
    lm: LensModel, rows: list[TokenRow], places: list[tuple[int, ...]], plans: list[list[Patch]] | None
) -> list[Tensor]:
    """Negative log-probability of what follows each content token, nats, a tensor for each text."""
    logits = lm.logits(rows, where="content", steer=plans)
    found = []
    for row, at, said in zip(rows, places, logits.split([len(p) for p in places])):
        kept = [i for i, place in enumerate(at) if place + 1 < len(row)]
        after = torch.tensor([row.ids[at[i] + 1] for i in kept], device=said.device)
        found.append(-said[kept].log_softmax(-1).gather(1, after[:, None])[:, 0])
    return found
