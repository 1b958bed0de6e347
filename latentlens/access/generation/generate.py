"""Generation: batched, KV-cached, steered, and equal to an uncached, unpadded single row token for token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.batching import batches, grouped_batches, halving
from latentlens.access.editing.edits import Edits, require_acted
from latentlens.access.editing.selector import Frame, sentence_index
from latentlens.access.generation.recorder import Readings, Recorder
from latentlens.access.generation.sampling import choose, row_key
from latentlens.access.hooks import hooked, require_fired
from latentlens.access.layout import Layout
from latentlens.errors import BadInput
from latentlens.values.interventions import Intervention, Plan
from latentlens.values.rollouts import Record
from latentlens.values.rows import TokenRow

#: Told of every finished batch: which requests, what they wrote, what was read of them.
Finished = Callable[[Sequence[int], list[tuple[int, ...]], Sequence[Readings]], Any]


@dataclass(frozen=True)
class Watch:
    """Who decides, while rows are written, which go on.

    ask: told which requests, what they have written, what was read of them, and which are stopped; says which go on.
    every: asked each so many tokens. together: per request, what must be in one batch with it. last: when for the last
    time. record: what to read for the question, and for nothing else.
    """

    ask: Callable[[Sequence[int], list[tuple[int, ...]], Sequence[Readings], Sequence[bool]], Sequence[bool]]
    every: int
    together: Sequence[Any]
    last: int | None = None
    record: Record | None = None


@dataclass(frozen=True)
class Request:
    """One continuation to make: a prompt row, the key of its randomness, and its plan."""

    row: TokenRow
    seed: int
    sample: int
    plan: Plan = ()


@dataclass(frozen=True)
class Decoding:
    """How to continue: at most `max_new_tokens`, stopping after any of `stop_ids`."""

    max_new_tokens: int
    temperature: float
    stop_ids: frozenset[int]
    token_budget: int
    new_cache: Callable[[], Any] | None  # None recomputes everything at every step
    logits_to_keep: bool = False  # whether the model can leave out the logits of earlier positions
    special_ids: frozenset[int] = frozenset()
    allow_idle: bool = False  # whether an edit that never acts is no error


def generate(
    layout: Layout,
    requests: Sequence[Request],
    how: Decoding,
    advance: Callable[[int], Any] = lambda tokens: None,
    finished: Finished = lambda which, texts, readings: None,
    record: Record | None = None,
    watch: Watch | None = None,
) -> list[tuple[int, ...]]:
    """Generated token ids of every request, in the given order.

    Args:
        advance: told how many tokens were made since the last call (for a progress bar).
        finished: told which requests a batch finished, and their tokens and readings.
        record: what to read on the way.
        watch: who may stop rows on the way.
    Raises: OutOfMemory, HookNeverFired.
    """
    done: list[tuple[int, ...]] = [()] * len(requests)
    lengths = [len(request.row) + how.max_new_tokens for request in requests]

    acted: Counter[Intervention] = Counter()

    def run(batch: Sequence[int]) -> None:
        judge = None if watch is None else (watch, batch)
        texts, readings = _decode_batch(layout, [requests[i] for i in batch], how, advance, record, acted, judge)
        for i, ids in zip(batch, texts, strict=True):
            done[i] = ids
        finished(batch, texts, readings)

    if watch is None:
        for batch in batches(lengths, how.token_budget):
            halving(batch, run)
    else:
        for groups in grouped_batches(lengths, watch.together, how.token_budget):
            halving(groups, lambda part: run([i for group in part for i in group]))
    if not how.allow_idle:
        require_acted(acted)
    return done


def _decode_batch(
    layout: Layout,
    requests: Sequence[Request],
    how: Decoding,
    advance: Callable[[int], Any],
    record: Record | None,
    acted: Counter[Intervention],
    judge: tuple[Watch, Sequence[int]] | None = None,
) -> tuple[list[tuple[int, ...]], list[Readings]]:
    rows = [request.row for request in requests]
    edits = Edits(layout, [request.plan for request in requests], rows)
    asks = None if judge is None else judge[0].record
    recorder = Recorder(layout, read, rows) if (read := record or asks) else None
    state, ends = _State(layout, requests, how), edits.sentence_ends
    special = how.special_ids if edits.reads_special or (recorder and recorder.selector.reads_special) else frozenset()
    calls = recorder.around(edits.calls()) if recorder else edits.calls()

    def forward() -> Tensor:
        frame = state.frame(ends, special)
        edits.announce(frame)
        if recorder:
            recorder.announce(frame)
        return state.forward()

    with torch.no_grad(), hooked(calls) as fired:
        for step in range(how.max_new_tokens):
            logits = forward()
            if judge is not None and _is_asked(judge[0], step):  # all that is written has been read
                kept = state.reject(*judge, recorder.readings(state.texts, everything=True) if recorder else [])
                if recorder and record is None and not _is_asked_after(judge[0], step):
                    recorder.stop()
                if kept is None:
                    break
                logits = logits[kept]
            ids = choose(logits, how.temperature, state.keys, torch.full_like(state.keys, step))
            advance(state.append(ids))
            if not state.open.any():
                break
            if not (record and record.last_token):
                state.drop_finished()
        if record and record.last_token:  # it has been sampled, and nothing has read it yet
            forward()
    require_fired(fired)
    acted.update(edits.acted())
    return state.texts, recorder.readings(state.texts) if recorder and record else []


def _is_asked(watch: Watch, step: int) -> bool:
    return step > 0 and step % watch.every == 0 and (watch.last is None or step <= watch.last)


def _is_asked_after(watch: Watch, step: int) -> bool:
    return watch.last is None or step + watch.every <= watch.last


class _State:
    """Rows being written: padded on the left, so that all of them end, and go on, in one column.

    texts: what has been written, by request. live: the requests whose rows are still in the batch, in order. open:
    those that are not finished. stopped: those that somebody stopped.
    """

    def __init__(self, layout: Layout, requests: Sequence[Request], how: Decoding) -> None:
        self.layout, self.how = layout, how
        self.texts: list[tuple[int, ...]] = [()] * len(requests)
        self.live = np.arange(len(requests))
        self.open = np.ones(len(requests), dtype=bool)
        self.stopped = np.zeros(len(requests), dtype=bool)
        device = layout.device
        self.keys = torch.tensor([row_key(r.row.ids, r.seed, r.sample) for r in requests], device=device)
        lengths = np.array([len(request.row) for request in requests])
        self.n_prompt = int(lengths.max())
        self.pad = self.n_prompt - lengths
        ids = np.zeros((len(requests), self.n_prompt), dtype=np.int64)
        for i, request in enumerate(requests):
            ids[i, self.pad[i] :] = request.row.ids
        self.ids = torch.from_numpy(ids).to(device)
        self.written = np.zeros((len(requests), 0), dtype=np.int64)  # the generated columns, on the host
        self.past: Any = how.new_cache() if how.new_cache else None

    @property
    def start(self) -> int:
        """First column of the next forward."""
        width = self.ids.shape[1]
        return 0 if self.past is None or width == self.n_prompt else width - 1

    def frame(self, ends: frozenset[int], special_ids: frozenset[int]) -> Frame:
        """What the next forward holds.

        Args: ends, special_ids: token ids that end a sentence, or are special; empty when nobody asks for them.
        """
        columns = np.arange(self.start, self.ids.shape[1])
        positions = np.maximum(columns[None] - self.pad[self.live][:, None], -1)
        written = self.written[self.live]
        first = self.start - self.n_prompt  # of the generated columns
        special = sentences = None
        if special_ids and written.shape[1]:
            special = _from_column(np.isin(written, list(special_ids)), first)
        if ends and written.shape[1]:
            sentences = _from_column(sentence_index(written, 0, ends), first)
        return Frame(self.live, positions, special, sentences, self.open[self.live])

    def forward(self) -> Tensor:
        """Logits of the next token, (rows, vocab)."""
        width, start = self.ids.shape[1], self.start
        columns = torch.arange(width, device=self.ids.device)
        pad = torch.from_numpy(self.pad[self.live]).to(self.ids.device)
        inputs: dict[str, Any] = {
            "input_ids": self.ids[:, start:],
            "attention_mask": (columns[None] >= pad[:, None]).long(),
            "use_cache": self.past is not None,
        }
        if self.layout.accepts_position_ids:
            inputs["position_ids"] = (columns[None] - pad[:, None]).clamp(min=0)[:, start:]
        if self.past is not None:
            inputs["past_key_values"] = self.past
        if self.how.logits_to_keep:
            inputs["logits_to_keep"] = 1
        return self.layout.model(**inputs).logits[:, -1]

    def append(self, ids: Tensor) -> int:
        """Add one token a row; finished rows get a filler that nothing reads. Returns how many were added."""
        self.ids = torch.cat([self.ids, ids[:, None]], 1)
        tokens = ids.tolist()
        column = np.zeros((len(self.written), 1), dtype=np.int64)
        column[self.live, 0] = tokens
        self.written = np.concatenate([self.written, column], axis=1)
        before = int(self.open.sum())
        for i, token in zip(self.live.tolist(), tokens, strict=True):
            if self.open[i]:
                self.texts[i] += (token,)
                self.open[i] = token not in self.how.stop_ids
        return before

    def reject(self, watch: Watch, which: Sequence[int], readings: Sequence[Readings]) -> Tensor | None:
        """Ask which rows go on, and take the others out of the batch at once.

        Returns: places of the rows that are left, or None when none of them is open.
        """
        said = np.asarray(watch.ask(which, self.texts, readings, self.stopped.tolist()), dtype=bool)
        if said.shape != (len(self.texts),):
            raise BadInput(f"Keep.ask gave {said.shape} answers for {len(self.texts)} rollouts: one each")
        rejected = self.open & ~said
        self.open &= said
        self.stopped |= rejected
        if not self.open.any():
            return None
        return self._go_on_with(np.flatnonzero(~rejected[self.live]))

    def drop_finished(self) -> None:
        """Once half of the batch is finished, go on with the rest alone."""
        keep = np.flatnonzero(self.open[self.live])
        if 2 * len(keep) <= len(self.live):
            self._go_on_with(keep)

    def _go_on_with(self, keep: np.ndarray) -> Tensor:
        index = torch.from_numpy(keep).to(self.ids.device)
        if len(keep) == len(self.live):
            return index
        self.live = self.live[keep]
        self.ids, self.keys = self.ids[index], self.keys[index]
        if self.past is not None:
            self.past.batch_select_indices(index)
        return index


def _from_column(generated: np.ndarray, first: int) -> np.ndarray:
    """Values of generated columns for a forward that begins at column `first` of them (negative: in the prompt)."""
    if first >= 0:
        return generated[:, first:]
    return np.concatenate([np.zeros((len(generated), -first), generated.dtype), generated], axis=1)
