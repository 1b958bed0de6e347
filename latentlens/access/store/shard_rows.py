"""From hits to rows of a shard: which rows they are, whether the shard agrees, and what they become."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentlens.access.store.cache_keys import Hit
from latentlens.access.store.shards import Shard


def confirm(shard: Shard, number: int, hits: Sequence[Hit], members: Sequence[int]) -> list[int]:
    """Keep the members whose key, selection and first row the shard's own header confirms.

    The index has no checksums, so what it says is never taken on trust.
    """
    if not 0 <= number < len(shard.blocks):
        return []
    block = shard.blocks[number]
    bases, site, context, pool = block.bases, block.site, shard.context, block.pool
    confirmed = []
    for i in members:
        key, hit = hits[i].key, hits[i]
        if (
            bases.get((key.sequence, hit.stored)) == hit.base
            and key.site == site
            and key.context == context
            and hit.pool == pool
        ):
            confirmed.append(i)
    return confirmed


def rows_of(hits: Sequence[Hit]) -> np.ndarray:
    """Rows of the stored tensor that hits need, one after the other."""
    if all(hit.picks is None for hit in hits):
        return ranges(np.array([hit.base + hit.start for hit in hits]), np.array([hit.count for hit in hits]))
    runs = [range(hit.start, hit.start + hit.count) if hit.picks is None else hit.picks for hit in hits]
    return np.concatenate([hit.base + np.array(run) for hit, run in zip(hits, runs, strict=True)])


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenated runs.

    >>> ranges(np.array([3, 9]), np.array([2, 1])).tolist()
    [3, 4, 9]
    """
    if counts.max() == 1:
        return starts
    stops = np.cumsum(counts)
    return np.repeat(starts - (stops - counts), counts) + np.arange(stops[-1])


def to_tensor(bits: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Copy mapped rows, moved as unsigned integers, to a tensor of their own dtype."""
    copy = np.array(bits, order="C")
    signed = copy if copy.dtype == np.uint8 else copy.view(f"i{copy.dtype.itemsize}")
    return torch.from_numpy(signed).view(dtype)


def mean_of(rows: Tensor) -> Tensor:
    """Float32 mean of rows, as one row."""
    return rows.float().mean(0, keepdim=True)
