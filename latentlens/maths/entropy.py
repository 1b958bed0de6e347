"""How spread out a next-token distribution is, from its logits.

entropy      Shannon entropy, of all tokens or of the k likeliest renormalised
confidence   margin between the two likeliest, entropy, and 1 / p of the likeliest

Everything is computed in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from latentlens.errors import BadInput


class Confidence(NamedTuple):
    """Per row: p1 - p2; entropy in nats; 1 / p1, which the paper calls perplexity."""

    margin: Tensor
    entropy: Tensor
    perplexity: Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """Log softmax over the last axis in float32, whatever came in (float16 logits overflow when exponentiated).

    Raises: BadInput: no token, or a row holds NaN, +infinity, or nothing but -infinity. Single -infinities (masked
        tokens) are allowed.
    """
    x = torch.as_tensor(logits).detach().to("cpu", torch.float32)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise BadInput(f"logits of shape {tuple(x.shape)}: give (..., vocabulary)")
    broken = x.isnan().any(-1) | x.isposinf().any(-1) | x.isneginf().all(-1)
    if broken.any():
        raise BadInput(f"{int(broken.sum())} of {broken.numel()} rows of logits hold NaN or infinity")
    return torch.log_softmax(x, -1)


def entropy(logits: Tensor, *, top_k: int | None = None, base: float = 2.0) -> Tensor:
    """Shannon entropy of softmax(logits).

        H = -sum_v p_v log_base p_v,    0 <= H <= log_base V

    With `top_k`, p is renormalised over the k largest logits. Dropping the tail makes it smaller as a rule and the
    bound becomes log_base k: the two are not comparable.

    >>> round(float(entropy(torch.tensor([8.0, 4.0, 2.0, 2.0]).log())), 6)
    1.75

    Args:
        logits: (..., V), any float dtype; -infinity is a probability of 0.
        top_k: how many of the largest to keep; None for all, also where V is smaller.
        base: of the logarithm: 2 for bits, `math.e` for nats.

    Returns: (...), float32.
    Raises: BadInput: NaN or +infinity, top_k below 1, base not above 1.
    """
    if top_k is not None and top_k < 1:
        raise BadInput(f"top_k={top_k}: keep at least 1 token, or None for all")
    if not base > 1:
        raise BadInput(f"base={base}: the base of the logarithm is above 1, for instance 2 (bits)")
    log_p = log_probabilities(logits)
    if top_k is not None and top_k < log_p.shape[-1]:
        log_p = torch.log_softmax(log_p.topk(top_k, -1).values, -1)
    return torch.special.entr(log_p.exp()).sum(-1) / math.log(base)


def confidence(logits: Tensor) -> Confidence:
    """How sure the next token is: margin = p1 - p2, entropy in nats, perplexity = 1 / p1.

    The margin grows with confidence, the other two fall. (The perplexity of a distribution is otherwise exp(H).)

    Args: logits: (..., V), V at least 2.
    Returns: three tensors (...), float32.
    Raises: BadInput: as `entropy`, or a single token.
    Source: baselines of Tracing the Traces (arXiv 2510.10494).
    """
    log_p = log_probabilities(logits)
    if log_p.shape[-1] < 2:
        raise BadInput("a margin needs at least 2 tokens")
    first, second = log_p.topk(2, -1).values.exp().unbind(-1)
    return Confidence(first - second, torch.special.entr(log_p.exp()).sum(-1), 1 / first)
