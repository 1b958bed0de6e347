"""Sampling that depends on nothing but the row: the same prompt, seed and sample index give the same tokens.

Gumbel-max sampling: next = argmax_i (logit_i / temperature + g_i) draws exactly from the softmax when the g_i
are independent standard Gumbel variables. Here g_i is a hash of (row key, step, token id), so it does not
depend on what else is in the batch, on the device, or on how often a generator was called before. Two
runs that differ only in an intervention share their noise, so they are PAIRED, and a tie of logits broken by
rounding flips a token with probability of about 1e-6.

Source: Gumbel-max, Maddison et al. (arXiv 1411.0030); the hash is SplitMix64 (Steele et al., 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def row_key(ids: Sequence[int], seed: int, sample: int) -> int:
    """64-bit key of one row, signed: a digest of its prompt tokens, the seed and the sample index."""
    text = f"{seed}|{sample}|" + ",".join(map(str, ids))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def gumbel(keys: Tensor, steps: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise, a pure function of (key, step, token id).

    Args: keys, steps: (rows,) int64. Returns: (rows, vocab) float32 on the device of `keys`.
    """
    token = torch.arange(vocab, dtype=torch.int64, device=keys.device)
    row = _mix(keys + steps * _signed(_GOLDEN))
    bits = _mix(row[:, None] + (token + 1) * _signed(_GOLDEN))
    # 23 bits and a half: exact in float32, and inside (0, 1) with both ends excluded.
    uniform = (_shift(bits, 41).float() + 0.5) * 2.0**-23
    return uniform.log_().neg_().log_().neg_()


def choose(logits: Tensor, temperature: float, keys: Tensor, steps: Tensor) -> Tensor:
    """Next token ids (rows,) from logits (rows, vocab); temperature 0 takes the maximum."""
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1)
    return (logits / temperature + gumbel(keys, steps, logits.shape[-1])).argmax(-1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)).mul_(_signed(_MIX1))
    z = z.bitwise_xor_(_shift(z, 27)).mul_(_signed(_MIX2))
    return z.bitwise_xor_(_shift(z, 31))


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The 64-bit pattern as torch's signed integer; products wrap around as the hash wants."""
    return value - (1 << 64) if value >= 1 << 63 else value
