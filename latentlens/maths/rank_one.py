"""The rank-one edit of ReFT-r1: how strongly a text holds a direction, added along that direction everywhere."""

from __future__ import annotations

from torch import Tensor

from latentlens.errors import BadInput


def latents(states: Tensor, w: Tensor, mask: Tensor | None = None) -> Tensor:
    """max(h . w, 0) of every state, 0 where the mask is false: (..., t, d) -> (..., t)."""
    found = (states @ w).clamp_min(0)
    return found if mask is None else found * mask


def split_top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean of the k largest latents of each text (...,), and the sum of all others (...,): (..., t).

    Texts with fewer than k positions average what they have.

    Raises: BadInput: k below 1.
    """
    if k < 1:
        raise BadInput(f"k={k}: at least one latent is averaged")
    top = values.topk(min(k, values.shape[-1]), dim=-1).values
    return top.mean(-1), values.sum(-1) - top.sum(-1)


def rank_one_edit(states: Tensor, w: Tensor, k: int = 8, mask: Tensor | None = None) -> Tensor:
    """H' = h + (mean of the k largest latents of the text) w, at every position of the text.

    >>> import torch
    >>> states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
    >>> rank_one_edit(states, torch.tensor([0.6, 0.8]), k=2)[0].tolist()  # latents .6, .8, 2.8, 0; mean 1.8
    [2.0799999237060547, 1.440000057220459]

    Args: states: (..., t, d). w: (d,), of length 1. k: how many. mask: (..., t), which positions count and are edited.
    Returns: (..., t, d).
    Source: ReFT-r1 in AxBench (arXiv 2501.17148).
    """
    mean, _ = split_top(latents(states, w, mask), k)
    moved = mean[..., None, None] * w
    return states + (moved if mask is None else moved * mask[..., None])
