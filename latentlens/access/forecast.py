"""What a capture will take, before it is begun."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

from latentlens.access.batching import batches
from latentlens.access.capture import Plan, forecast_bytes
from latentlens.access.layout import Layout


@dataclass(frozen=True)
class Forecast:
    """bytes: size of the result. peak_bytes: with the largest batch's states. seconds: without the cache.

    tokens: tokens to run, if nothing is cached. rows: rows of the result.
    """

    bytes: int
    peak_bytes: int
    seconds: float
    tokens: int
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.bytes / 2**20:.1f} MiB (peak {self.peak_bytes / 2**20:.1f} MiB), "
            f"{self.tokens} tokens, about {self.seconds:.1f} s without the cache"
        )


def forecast(layout: Layout, plan: Plan, token_budget: int) -> Forecast:
    """Size and time of a plan, from shapes alone (and the measured speed of one matrix product).

    seconds = 2 * weights up to the deepest block * tokens / measured FLOP per second
    """
    weight = next(p for p in layout.decoder.parameters() if p.dtype.is_floating_point)
    size = forecast_bytes(plan, layout)
    lengths = [len(row) for row in plan.rows]
    largest = max(len(b) * max(lengths[i] for i in b) for b in batches(lengths, token_budget))
    # A block's widest intermediate is some eight times its stream (queries, keys, values, gate and up projections).
    working = largest * layout.d_model * weight.element_size() * 8
    tokens = sum(lengths)
    deepest = max((site.block if site.block is not None else layout.n_blocks - 1) for site in plan.sites)
    weights = sum(p.numel() for block in layout.blocks[: deepest + 1] for p in block.parameters())
    seconds = 2 * weights * tokens / _flops(str(layout.device), weight.dtype)
    return Forecast(size, size + working, seconds, tokens, sum(plan.counts))


def available_memory() -> int:
    """Bytes of main memory that can be taken without swapping."""
    import psutil

    return psutil.virtual_memory().available


@cache
def _flops(device: str, dtype: torch.dtype) -> float:
    """Measured floating-point operations per second of a matrix product of this type, best of three."""
    n = 512 if device == "cpu" else 4096
    a = torch.ones(n, n, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
