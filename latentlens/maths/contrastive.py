"""Pulling rows of one class together and others apart, and how well that worked."""

from __future__ import annotations

import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples


def supervised_contrastive(rows: Tensor, classes: Tensor, temperature: float = 0.07) -> Tensor:
    """Loss that is small where rows are nearer to rows of their own class than to others.

        L = mean_i  -1/|P(i)| sum_{p in P(i)} log( exp(z_i . z_p / T) / sum_{a != i} exp(z_i . z_a / T) )

    z: rows of length 1. P(i): the other rows of the class of i; rows that are alone in their class do not count.

    Args: rows: (n, d), scaled to length 1 here. classes: (n,). temperature: T.
    Returns: a scalar with its gradient.
    Raises: TooFewExamples: no class has two rows. BadInput: shapes, or a temperature that is not positive.
    Source: Khosla et al., Supervised Contrastive Learning (arXiv 2004.11362), L_out.
    """
    if rows.ndim != 2 or classes.shape != rows.shape[:1] or not temperature > 0:
        raise BadInput(f"rows {tuple(rows.shape)}, classes {tuple(classes.shape)}, temperature {temperature}")
    z = torch.nn.functional.normalize(rows, dim=-1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (classes[:, None] == classes[None, :]) & ~itself
    counted = positive.any(1)
    if not bool(counted.any()):
        raise TooFewExamples("no class has two rows: nothing to pull together")
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_share = logits - logits.logsumexp(1, keepdim=True)
    each = -torch.where(positive, log_share, 0.0).sum(1) / positive.sum(1).clamp_min(1)
    return each[counted].mean()


def nearest_is_own(rows: Tensor, classes: Tensor) -> tuple[Tensor, float]:
    """Whether the nearest other row, by cosine, has the same class; and how often that happens by chance.

        chance = mean_i (n_class(i) - 1) / (n - 1)

    Returns: (n,) bool, chance.
    Raises: TooFewExamples: fewer than two rows.
    """
    n = len(rows)
    if n < 2:
        raise TooFewExamples(f"{n} row(s): there is no other row to be near")
    z = torch.nn.functional.normalize(rows.double(), dim=-1)
    near = (z @ z.T).masked_fill_(torch.eye(n, dtype=torch.bool), -torch.inf).argmax(1)
    same = classes[:, None] == classes[None, :]
    return classes[near] == classes, float((same.sum(1) - 1).double().mean() / (n - 1))
