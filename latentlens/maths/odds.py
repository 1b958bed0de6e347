"""Log odds of a set of outcomes, from logits or log probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentlens.errors import BadInput


def log_odds_of(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log p - log(1 - p), p the probability of a set of tokens: the refusal score.

        log sum_{w in set} e^z_w - log sum_{w not in set} e^z_w        float64, exact where p is near 0 or 1

    >>> float(log_odds_of(torch.tensor([0.0, 0.0, 0.0, 0.0]), [2]))  # p = 1/4
    -1.0986122886681098

    Args: logits: (..., vocab). tokens: distinct ids.
    Returns: (...), float64.
    Raises: BadInput: no token, one outside the vocabulary, or all of them.
    """
    chosen = torch.zeros(logits.shape[-1], dtype=torch.bool)
    ids = torch.as_tensor(list(tokens), dtype=torch.long)
    if not ids.numel() or int(ids.min()) < 0 or int(ids.max()) >= len(chosen):
        raise BadInput(f"tokens={list(tokens)[:8]}: give at least one id, each from 0 to {len(chosen) - 1}")
    chosen[ids] = True
    if bool(chosen.all()):
        raise BadInput("the set holds the whole vocabulary: its probability is 1")
    z, chosen = logits.double(), chosen.to(logits.device)
    return z[..., chosen].logsumexp(-1) - z[..., ~chosen].logsumexp(-1)
