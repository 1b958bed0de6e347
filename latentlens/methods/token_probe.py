"""A probe that chooses which tokens to read: attention over the positions of a text.

    logit = sum_t softmax_t(q . x_t + p t) (v . x_t) + b

`q` says where to look, `v` what to read there. With q = p = 0 it is the probe of the mean over tokens, and that is
where training starts. Heads are summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.directions import Direction, as_site
from latentlens.values.labelled_rows import binary_labels
from latentlens.values.markup import Shown
from latentlens.values.sites import Site


def attend(x: Tensor, mask: Tensor, q: Tensor, v: Tensor, slope: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n,) and weights (n, heads, T). x: (n, T, d); mask: (n, T); q, v: (heads, d); slope: (heads,)."""
    place = torch.arange(x.shape[1], dtype=x.dtype) / max(x.shape[1] - 1, 1)
    seen = x @ q.T + place[:, None] * slope
    weights = seen.masked_fill(~mask[..., None], -1e9).softmax(1)
    return (weights * (x @ v.T)).sum((1, 2)) + b, weights.mT


@dataclass(frozen=True, eq=False)
class TokenProbe(Shown):
    """An attention probe in raw coordinates. direction: what is read, summed over heads."""

    direction: Direction
    q: Tensor
    v: Tensor
    slope: Tensor
    b: Tensor
    mean: Tensor
    std: Tensor

    def scores(self, tokens: Activations) -> NDArray[np.float64]:
        """Logit of every text, in the order of its number."""
        x, mask = padded(tokens, self.direction.site)
        with torch.no_grad():
            return attend((x - self.mean) / self.std, mask, self.q, self.v, self.slope, self.b)[0].double().numpy()

    def weights(self, tokens: Activations) -> Tensor:
        """Where it looks: (n, heads, T), 0 behind the end of a text."""
        x, mask = padded(tokens, self.direction.site)
        with torch.no_grad():
            return attend((x - self.mean) / self.std, mask, self.q, self.v, self.slope, self.b)[1]


def padded(tokens: Activations, site: Site) -> tuple[Tensor, Tensor]:
    """Tokens by text, (n, T, d), right padded, and which are there, (n, T). Texts are numbered from 0 without gaps.

    Raises: BadInput, NonFiniteActivations.
    """
    if "text" not in tokens.labels:
        raise BadInput("the activations have no label `text`: capture with where='all'")
    of, values = np.asarray(tokens.labels["text"]).astype(int), tokens[site].float()
    counts = np.bincount(of)
    if not counts.all():
        raise BadInput(f"text {int(counts.argmin())} has no token: number the texts from 0 without gaps")
    if not bool(values.isfinite().all()):
        raise NonFiniteActivations(f"NaN or infinity at {site}: drop those texts")
    order = np.argsort(of, kind="stable")
    place = np.concatenate([np.arange(c) for c in counts])
    x = torch.zeros(len(counts), int(counts.max()), values.shape[1])
    x[torch.as_tensor(of[order]), torch.as_tensor(place)] = values[torch.as_tensor(order)]
    return x, torch.as_tensor(np.arange(x.shape[1]) < counts[:, None])


def fit_tokens(
    tokens: Activations, labels: NDArray, *, site: Site | str, rows: NDArray | None = None, heads: int = 1,
    steps: int = 500, lr: float = 0.02, weight_decay: float = 0.01, seed: int = 0,
) -> TokenProbe:  # fmt: skip
    """Fit on the texts `rows` (all by default); score others with `probe.scores(tokens)`.

    Args: tokens: activations with the label `text`. labels: one a text. site: which. heads: directions of attention.
        steps, lr, weight_decay: of AdamW, full batch. seed: of v, which starts near 0; q starts at 0.
    Raises: BadInput, TooFewExamples, NonFiniteActivations.
    Source: attention probes of EleutherAI and of Kantamneni et al. (arXiv 2502.16681), appendix.
    """
    place = as_site(site)
    x, mask = padded(tokens, place)
    y, classes = binary_labels(labels, len(x))
    at = torch.arange(len(x)) if rows is None else torch.as_tensor(np.asarray(rows))
    if not 0 < y[at.numpy()].sum() < len(at):
        raise TooFewExamples(f"{len(at)} texts to fit on hold one class only")
    inside = x[at][mask[at]]
    mean, std = inside.mean(0), inside.std(0)
    std[std <= 1e-6 * mean.abs()] = torch.inf
    z, truth, here = (x[at] - mean) / std, torch.as_tensor(y)[at].float(), mask[at]
    g = torch.Generator().manual_seed(seed)
    q = torch.zeros(heads, x.shape[2])
    v = 1e-3 * torch.randn(heads, x.shape[2], generator=g)
    slope, b = torch.zeros(heads), torch.zeros(())
    learnt = [t.requires_grad_() for t in (q, v, slope, b)]
    optimiser = torch.optim.AdamW(learnt, lr=lr, weight_decay=weight_decay)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            logits, _ = attend(z, here, *learnt)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, truth).backward()
            optimiser.step()
    q, v, slope, b = (t.detach() for t in learnt)
    about = {"method": "attention probe", "heads": heads, "seed": seed, "texts": len(at)}
    direction = Direction((v.sum(0) / std), place, f"attention probe {classes[1]} against {classes[0]}", "raw", about)
    return TokenProbe(direction, q, v, slope, b, mean, std)
