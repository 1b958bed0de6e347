"""Measuring what a plan did: each rollout is read again, once with its edits and once without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentlens.access.batching import batches, halving
from latentlens.access.editing.edits import Edits
from latentlens.access.forward import gather, read
from latentlens.access.layout import Layout
from latentlens.values.effects import EditCount, EditEffect
from latentlens.values.interventions import Plan
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

_LOGITS = Site("logits")
_VALUES = 1 << 26  # logits held at a time


def measure(layout: Layout, rows: Sequence[TokenRow], plans: Sequence[Plan], token_budget: int) -> EditEffect:
    """Edits fired, their sizes, and KL(steered || unsteered) at every position that a generated token was drawn from.

    Args: rows: prompts with what was generated; plans: prepared, one per row.
    """
    kl: list[np.ndarray] = [np.zeros(0)] * len(rows)
    counts: list[list[EditCount]] = [[] for _ in rows]
    fed = [row.cut(slice(0, max(len(row) - 1, 1))) for row in rows]  # the last token was never read
    budget = max(1, min(token_budget, _VALUES // max(layout.vocab_size, 1)))

    def run(part: Sequence[int]) -> None:
        mine, seen = [fed[i] for i in part], []
        at = [tuple(range(row.n_prompt - 1, len(row))) for row in mine]
        keep = lambda width: gather(width, [[p] for p in at], pooled=False)
        clean = read(layout, mine, [_LOGITS], keep)[_LOGITS]
        steered = read(layout, mine, [_LOGITS], keep, [plans[i] for i in part], lambda e: _recording(e, seen))[_LOGITS]
        parts = torch.split(kl_divergence(steered, clean).cpu(), [len(p) for p in at])
        for i, values in zip(part, parts, strict=True):
            kl[i] = values.double().numpy()
        for local, i in enumerate(part):
            counts[i] = _counts(seen[0], local, i)

    for batch in batches([len(row) for row in fed], budget):
        halving(batch, run)
    return EditEffect(tuple(kl), tuple(count for one in counts for count in one))


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats from logits (n, vocab), in float32: sum softmax(p) (log softmax(p) - log softmax(q))."""
    log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p.isneginf(), 0.0, terms).sum(-1).clamp(min=0)


def _recording(edits: Edits, seen: list[Edits]) -> None:
    for lane in edits.lanes:
        lane.record = []
    seen.append(edits)


def _counts(edits: Edits, row: int, rollout: int) -> list[EditCount]:
    found = []
    for lane in edits.lanes:
        if lane.which[row] < 0:
            continue
        delta, norm = np.zeros(0), np.zeros(0)
        for change in lane.record or []:
            mine = change.rows == row
            delta, norm = np.append(delta, change.delta[mine]), np.append(norm, change.norm[mine])
        moved = delta > 0
        sizes, shares = delta[moved], delta[moved] / np.maximum(norm[moved], 1e-12)
        found.append(
            EditCount(
                rollout,
                lane.items[lane.which[row]],
                int(moved.sum()),
                float(np.median(sizes)) if len(sizes) else 0.0,
                float(np.median(shares)) if len(shares) else 0.0,
            )
        )
    return found
