"""A number read from the last logits of many edited rows, each computed once and kept in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.batching import batches, halving
from latentlens.access.capture import row_sequences
from latentlens.access.editing.steering import own_forward
from latentlens.access.forward import last_positions, read
from latentlens.access.identity import context_digest
from latentlens.access.store.cache import RowKey, Selection
from latentlens.errors import BadInput, NonFiniteActivations
from latentlens.values.answer_metrics import Custom, ItemLogits, LogitDifference
from latentlens.values.interventions import Plan
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_LOGITS = Site("logits")
_VALUES = 1 << 26  # logits held at a time
_COMMIT_SECONDS = 20.0

Metric = ItemLogits | Custom


def read_metric(lm: LensModel, metric: Any, n_items: int) -> Metric:
    """A metric in token ids.

    Args: metric: a LogitDifference, a pair (right, wrong) of tokens, or a function of logits (n, vocab).
    Raises: BadInput: none of these, texts that are not one token, or not one entry an item.
    """
    if isinstance(metric, (ItemLogits, Custom)):
        return metric
    if isinstance(metric, tuple) and len(metric) == 2:
        metric = LogitDifference(*metric)
    if isinstance(metric, LogitDifference):
        sides = {name: _tokens(lm, name, getattr(metric, name), n_items) for name in ("right", "wrong")}
        return ItemLogits(**sides)
    if callable(metric):
        return Custom(metric)
    raise BadInput(
        f"metric={metric!r}: give ll.LogitDifference(' Paris', ' Rome'), the pair (' Paris', ' Rome'), or a function "
        "from logits (n, vocab) to (n,)"
    )


def _tokens(lm: LensModel, name: str, given: Any, n_items: int) -> tuple[tuple[int, ...], ...]:
    listed = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(listed, list):
        return (_ids(lm, name, listed),) * n_items
    if len(listed) != n_items:
        raise BadInput(f"{name}= is a list of {len(listed)} for {n_items} items: one entry each, or a tuple for all")
    return tuple(_ids(lm, name, one) for one in listed)


def _ids(lm: LensModel, name: str, given: Any) -> tuple[int, ...]:
    found = []
    for one in given if isinstance(given, tuple) else (given,):
        if isinstance(one, str):
            if lm.tokenizer is None:
                raise BadInput(f"{name}={one!r} needs a tokenizer: give token ids")
            ids = lm.tokenizer(one, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                pieces = [lm.tokenizer.decode([i]) for i in ids]
                raise BadInput(
                    f"{name}={one!r} is {len(ids)} tokens of this model ({pieces}): name one token, often with its "
                    f"leading space, or give the id of the first, {ids[:1]}"
                )
            one = ids[0]
        if not hasattr(one, "__index__") or isinstance(one, bool) or not 0 <= int(one) < lm.layout.vocab_size:
            raise BadInput(f"{name}={one!r} is no token: give a text or an id below {lm.layout.vocab_size}")
        found.append(int(one))
    if not found:
        raise BadInput(f"{name}= names no token")
    return tuple(found)


@dataclass
class Tally:
    """What measuring took: forward passes, rows computed, rows read from the cache."""

    forwards: int = 0
    computed_rows: int = 0
    cached_rows: int = 0


class Kept:
    """Tensors of rows in the activation cache, under names of their own beside the sites; committed in large pieces."""

    def __init__(self, lm: LensModel, cached: bool) -> None:
        self.cache = lm.cache if cached else None
        self.context = lm._identity.context(hash_weights=self.cache is not None)
        self.key = context_digest(self.context)
        self._pending: list[tuple[RowKey, Selection, Tensor]] = []
        self._since = time.monotonic()

    def find(self, asked: Sequence[tuple[str, str | None, Selection]]) -> list[Tensor | None]:
        """Tensors by (sequence, name, selection); None where there is none, or no name to keep it under."""
        out: list[Tensor | None] = [None] * len(asked)
        if self.cache is None:
            return out
        named = [i for i, (_, name, _) in enumerate(asked) if name is not None]
        hits = self.cache.lookup([(RowKey(self.key, asked[i][0], asked[i][1] or ""), asked[i][2]) for i in named])
        held = [(i, hit) for i, hit in zip(named, hits, strict=True) if hit is not None]
        for (i, _), value in zip(held, self.cache.read([hit for _, hit in held]), strict=True):
            out[i] = value
        return out

    def add(self, sequence: str, name: str | None, selection: Selection, value: Tensor) -> None:
        """Keep a tensor, soon."""
        if self.cache is None or self.cache.readonly or name is None:
            return
        self._pending.append((RowKey(self.key, sequence, name), selection, value))
        if time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what is pending."""
        if self.cache is not None and self._pending:
            self.cache.put(self.context, self._pending)
        self._pending, self._since = [], time.monotonic()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_error: Any) -> None:
        self.commit()  # after an interrupt too: what has been computed need not be computed again


def measure(
    lm: LensModel,
    rows: Sequence[TokenRow],
    plans: Sequence[Plan],
    metric: Metric,
    items: Sequence[int],
    kept: Kept,
    tally: Tally,
    progress: Callable[[int], Any] = lambda n: None,
) -> np.ndarray:
    """The metric of every row under its plan, (rows,) float64; equal rows are computed once.

    Args: plans: prepared, one a row. items: which item each row belongs to.
    Raises: NonFiniteActivations, OutOfMemory.
    """
    names = [metric.fingerprint(item) for item in items]
    sequences = row_sequences(rows, plans)
    keys = list(zip(sequences, names, strict=True))
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    values: dict[Any, float] = {}
    unique = list(first.values())
    asked = [(sequences[i], names[i], Selection.last(len(rows[i]))) for i in unique]
    for i, found in zip(unique, kept.find(asked), strict=True):
        if found is not None:
            values[keys[i]] = float(found[0, 0])
    tally.cached_rows += len(values)
    missing = [i for i in unique if keys[i] not in values]
    tally.computed_rows += len(missing)

    def run(part: Sequence[int]) -> None:
        which = [missing[k] for k in part]
        mine = [rows[i] for i in which]
        keep = lambda width: last_positions(mine, width)
        logits = read(lm.layout, mine, [_LOGITS], keep, [plans[i] for i in which])[_LOGITS].float()
        tally.forwards += 1
        found = metric(logits, [items[i] for i in which]).double().cpu()
        refuse_nonfinite(found, which)
        for i, value in zip(which, found, strict=True):
            values[keys[i]] = float(value.float())  # as it will be read again
            kept.add(sequences[i], names[i], Selection.last(len(rows[i])), value.float().reshape(1, 1))
        progress(sum(map(len, mine)))

    most = max(1, _VALUES // max(lm.layout.vocab_size, 1))
    with own_forward(lm.layout), torch.no_grad():
        for batch in batches([len(rows[i]) for i in missing], lm.token_budget):
            for start in range(0, len(batch), most):
                halving(batch[start : start + most], run)
    return np.array([values[key] for key in keys])


def refuse_nonfinite(values: Tensor, which: Sequence[int]) -> None:
    """Raise NonFiniteActivations when a metric or gradient is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteActivations(
            f"the metric or its gradient is NaN or infinite in a batch of {len(which)} rows; float16 overflows at "
            "65504: load with dtype='bfloat16'"
        )
