"""Generation: batched, KV-cached, steered, and equal to an uncached, unpadded single row token for token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlens.access.batching import batches, halving
from latentlens.access.forward import edit_calls
from latentlens.access.hooks import hooked, require_fired
from latentlens.access.layout import Layout
from latentlens.access.sampling import choose, row_key
from latentlens.values.interventions import Intervention
from latentlens.values.rows import TokenRow
from latentlens.values.where import continues, steered_positions


@dataclass(frozen=True)
class Request:
    """One continuation to make: a prompt row and the key of its randomness."""

    row: TokenRow
    seed: int
    sample: int


@dataclass(frozen=True)
class Decoding:
    """How to continue: at most `max_new_tokens`, stopping after any of `stop_ids`."""

    max_new_tokens: int
    temperature: float
    stop_ids: frozenset[int]
    token_budget: int
    new_cache: Callable[[], Any] | None  # None recomputes everything at every step
    logits_to_keep: bool = False  # whether the model can leave out the logits of earlier positions


def generate(
    layout: Layout,
    requests: Sequence[Request],
    plan: Sequence[Intervention],
    how: Decoding,
    advance: Callable[[int], Any] = lambda tokens: None,
) -> list[tuple[int, ...]]:
    """Generated token ids of every request, in the given order.

    Args:
        plan: interventions, the same for all rows.
        advance: told how many tokens were made since the last call (for a progress bar).
    Raises: OutOfMemory, HookNeverFired.
    """
    done: list[tuple[int, ...]] = [()] * len(requests)
    lengths = [len(request.row) + how.max_new_tokens for request in requests]

    def run(batch: Sequence[int]) -> None:
        texts = _decode_batch(layout, [requests[i] for i in batch], plan, how, advance)
        for i, ids in zip(batch, texts, strict=True):
            done[i] = ids

    for batch in batches(lengths, how.token_budget):
        halving(batch, run)
    return done


def _decode_batch(
    layout: Layout,
    requests: Sequence[Request],
    plan: Sequence[Intervention],
    how: Decoding,
    advance: Callable[[int], Any],
) -> list[tuple[int, ...]]:
    state = _State(layout, requests, how)
    calls = edit_calls(layout, plan, state.mask)
    with torch.no_grad(), hooked(calls) as fired:
        for step in range(how.max_new_tokens):
            logits = state.forward()
            ids = choose(logits, how.temperature, state.keys, torch.full_like(state.keys, step))
            advance(state.append(ids))
            if not state.open:
                break
            state.drop_finished()
    require_fired(fired)
    return state.texts


class _State:
    """Rows being written: padded on the left, so that all of them end, and go on, in one column.

    texts: what has been written, by request. live: the requests whose rows are still in the batch, in order. open:
    those that are not finished.
    """

    def __init__(self, layout: Layout, requests: Sequence[Request], how: Decoding) -> None:
        self.layout, self.how = layout, how
        self.prompts = [request.row for request in requests]
        self.texts: list[tuple[int, ...]] = [()] * len(requests)
        self.live = list(range(len(requests)))
        self.open = set(self.live)
        device = layout.device
        self.keys = torch.tensor([row_key(r.row.ids, r.seed, r.sample) for r in requests], device=device)
        width = max(len(row) for row in self.prompts)
        self.lengths = torch.tensor([len(row) for row in self.prompts], device=device)
        self.ids = torch.zeros(len(requests), width, dtype=torch.long)
        for i, row in enumerate(self.prompts):
            self.ids[i, width - len(row) :] = torch.tensor(row.ids)
        self.ids = self.ids.to(device)
        self.n_prompt = width
        self.past: Any = how.new_cache() if how.new_cache else None
        self.start = 0  # first column of the running forward

    def forward(self) -> Tensor:
        """Logits of the next token, (rows, vocab)."""
        width = self.ids.shape[1]
        self.start = 0 if self.past is None or width == self.n_prompt else width - 1
        columns = torch.arange(width, device=self.ids.device)
        pad = self.n_prompt - self.lengths
        inputs: dict[str, Any] = {
            "input_ids": self.ids[:, self.start :],
            "attention_mask": (columns[None] >= pad[:, None]).long(),
            "use_cache": self.past is not None,
        }
        if self.layout.accepts_position_ids:
            positions = (columns[None] - pad[:, None]).clamp(min=0)
            inputs["position_ids"] = positions[:, self.start :]
        if self.past is not None:
            inputs["past_key_values"] = self.past
        if self.how.logits_to_keep:
            inputs["logits_to_keep"] = 1
        return self.layout.model(**inputs).logits[:, -1]

    def append(self, ids: Tensor) -> int:
        """Add one token a row; finished rows get a filler that nothing reads. Returns how many were added."""
        self.ids = torch.cat([self.ids, ids[:, None]], 1)
        before = len(self.open)
        for i, token in zip(self.live, ids.tolist(), strict=True):
            if i in self.open:
                self.texts[i] += (token,)
                if token in self.how.stop_ids:
                    self.open.discard(i)
        return before

    def drop_finished(self) -> None:
        """Once half of the batch is finished, go on with the rest alone."""
        if 2 * len(self.open) > len(self.live):
            return
        keep = [row for row, i in enumerate(self.live) if i in self.open]
        index = torch.tensor(keep, device=self.ids.device)
        self.live = [self.live[row] for row in keep]
        self.prompts = [self.prompts[row] for row in keep]
        self.ids, self.keys, self.lengths = self.ids[index], self.keys[index], self.lengths[index]
        if self.past is not None:
            self.past.batch_select_indices(index)

    def mask(self, item: Intervention) -> Tensor | None:
        """Boolean (rows, columns of the running forward): where this intervention acts now."""
        width, kind = self.ids.shape[1], item.where.kind
        columns = torch.arange(self.start, width, device=self.ids.device)
        inside = columns[None] >= (self.n_prompt - self.lengths)[:, None]
        if kind == "all":
            return inside
        if kind == "response":
            mask = inside & (columns >= self.n_prompt)[None]
        else:
            mask = torch.zeros_like(inside)
            for at, (i, row) in enumerate(zip(self.live, self.prompts, strict=True)):
                shift = self.n_prompt - len(row) - self.start
                seen = row.continued(self.texts[i][: width - self.n_prompt])
                if self.start < self.n_prompt:
                    mask[at, [shift + p for p in steered_positions(item.where, seen)]] = True
                elif len(seen) == width - self.n_prompt + len(row):  # not finished
                    mask[at, -1] = continues(item.where, seen, len(seen) - 1)
        return mask if mask.any() else None
