"""Rows into batches: sorted by length within a token budget, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from latentlens.errors import OutOfMemory


def batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped so that rows x longest row <= token_budget (a row alone may exceed it); longest first.

    Longest first, because memory then runs out at once or not at all.

    >>> batches([1, 9, 2, 8], token_budget=18)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    out: list[list[int]] = []
    for i in order:
        if out and (len(out[-1]) + 1) * lengths[out[-1][0]] <= token_budget:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def grouped_batches(lengths: Sequence[int], groups: Sequence[Any], token_budget: int) -> list[list[list[int]]]:
    """The same with equal groups kept together: batches of groups of indices.

    >>> grouped_batches([4, 4, 9, 4], ["a", "a", "b", "a"], token_budget=12)
    [[[0, 1, 3]], [[2]]]
    """
    members: dict[Any, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    together = list(members.values())
    sizes = [len(group) * max(lengths[i] for i in group) for group in together]
    longest = {k: max(lengths[i] for i in group) for k, group in enumerate(together)}
    out: list[list[list[int]]] = []
    rows, widest = 0, 0
    for k in sorted(range(len(together)), key=lambda k: (-sizes[k], k)):
        wide = max(widest, longest[k])
        if out and (rows + len(together[k])) * wide <= token_budget:
            out[-1].append(together[k])
            rows, widest = rows + len(together[k]), wide
        else:
            out.append([together[k]])
            rows, widest = len(together[k]), longest[k]
    return out


def halving(batch: Sequence[Any], run: Callable[[Sequence[Any]], Any]) -> None:
    """Run a batch; when memory runs out, run its halves instead.

    Raises: OutOfMemory: a single row does not fit; the message says what can be done.
    """
    try:
        run(batch)
        return
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise OutOfMemory(
                "one row alone does not fit in memory. Shorten the texts (truncate=), ask for fewer sites or "
                "pool=, load with quantization='int8' or a smaller dtype, or spread the model with device_map='auto'."
            ) from error
    # Outside the except block: the traceback would keep the failed batch's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(batch) + 1) // 2
    halving(batch[:middle], run)
    halving(batch[middle:], run)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()
