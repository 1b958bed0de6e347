"""What is asked of the activation cache, and what it answers: keys, selections, hits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

from latentlens.errors import BadInput

POOLS = ("", "mean")


@dataclass(frozen=True, slots=True)
class RowKey:
    """One sequence in one context at one site.

    context: digest of everything that changes values: weights, quantisation, dtype, interventions.
    sequence: digest of the token ids of the row.
    site: canonical name of the site, e.g. "resid_post[5]".
    """

    context: str
    sequence: str
    site: str


@dataclass(frozen=True)
class Selection:
    """Which positions of a sequence, raw or pooled.

    pool: "" for one row per position, "mean" for their float32 mean.
    positions: increasing, counted in the unpadded row.
    n_tokens: length of the row; all positions make the entry that serves every other.

    Raises: BadInput: unknown pool; positions empty, not increasing or outside the row.

    >>> Selection("", (0, 1, 2, 7), 8).text
    '0-2,7/8'
    """

    pool: str
    positions: tuple[int, ...]
    n_tokens: int

    def __post_init__(self) -> None:
        p = self.positions
        if self.pool not in POOLS:
            raise BadInput(f"pool {self.pool!r}: the cache stores '' (raw rows) and 'mean'")
        if not p or p[0] < 0 or p[-1] >= self.n_tokens:
            raise BadInput(f"positions {_short(p)} of a row of {self.n_tokens} tokens: select at least one, all inside")
        run = p[-1] - p[0] + 1 == len(p)  # the common case needs one comparison, made in C
        if not (p == tuple(range(p[0], p[-1] + 1)) if run else all(a < b for a, b in pairwise(p))):
            raise BadInput(f"positions {_short(p)} must increase, each once")

    @classmethod
    def all(cls, n_tokens: int) -> Selection:
        """Every position, raw."""
        return cls("", tuple(range(n_tokens)), n_tokens)

    @classmethod
    def last(cls, n_tokens: int) -> Selection:
        """The last position, raw."""
        return cls("", (n_tokens - 1,), n_tokens)

    @cached_property
    def text(self) -> str:
        """Canonical spelling of the positions and the length, as it is stored."""
        p, n = self.positions, len(self.positions)
        ends = [n - 1] if p[-1] - p[0] == n - 1 else [i for i in range(n) if i == n - 1 or p[i + 1] != p[i] + 1]
        parts, start = [], 0
        for end in ends:
            parts.append(f"{p[start]}-{p[end]}" if end > start else f"{p[end]}")
            start = end + 1
        return f"{','.join(parts)}/{self.n_tokens}"

    @property
    def n_rows(self) -> int:
        """Rows that this selection yields."""
        return 1 if self.pool else len(self.positions)


class Hit(NamedTuple):
    """Where the cache holds what was asked for.

    The rows are `start` to `start + count` of the stored entry, or `picks` of it; `reduce` asks for their
    mean because only raw rows are stored.
    """

    key: RowKey
    selection: Selection
    shard: str
    tensor: int
    pool: str
    stored: str
    base: int
    start: int
    count: int
    picks: tuple[int, ...] | None
    reduce: bool


class Entry(NamedTuple):
    """One stored selection as the index knows it: `base` is its first row in tensor `tensor` of `shard`."""

    pool: str
    stored: str
    shard: str
    tensor: int
    base: int


def serve(key: RowKey, selection: Selection, entries: Sequence[Entry]) -> Hit | None:
    """Find what serves a selection: the same one, else any raw superset. Never the other way round."""
    text, pool = selection.text, selection.pool
    for e in entries:
        if e.stored == text and e.pool == pool:
            return Hit(key, selection, e.shard, e.tensor, pool, text, e.base, 0, selection.n_rows, None, False)
    for e in entries:
        if e.pool:
            continue
        try:
            place, n_tokens = _places(e.stored)
            picks = tuple([place[p] for p in selection.positions])
        except (KeyError, ValueError):  # no superset, or a damaged index
            continue
        if n_tokens != selection.n_tokens:
            continue
        run = picks[-1] - picks[0] + 1 == len(picks)  # increasing, so this makes them neighbours
        return Hit(
            *(key, selection, e.shard, e.tensor, "", e.stored, e.base),
            *(picks[0], len(picks), None if run else picks, bool(pool)),
        )
    return None


def count_rows(pool: str, stored: str) -> int:
    """Rows that a stored selection occupies."""
    return 1 if pool else len(_places(stored)[0])


@lru_cache(maxsize=4096)
def _places(stored: str) -> tuple[dict[int, int], int]:
    """Position -> row of a stored selection, and the length of the sequence."""
    spans, n_tokens = stored.split("/")
    positions: list[int] = []
    for span in spans.split(","):
        first, _, last = span.partition("-")
        positions.extend(range(int(first), int(last or first) + 1))
    return {p: i for i, p in enumerate(positions)}, int(n_tokens)


def row_id(context: str, sequence: str) -> bytes:
    """Fixed-size name of a sequence in a context, whatever characters the two digests are made of."""
    text = f"{len(context)}:{context}{sequence}"  # the length keeps ("ab", "c") and ("a", "bc") apart
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def plain(text: str) -> str:
    r"""Spell any string in printable ASCII, distinct strings distinctly; usual site names stay as they are.

    >>> plain("resid_post[5]"), plain("a" + chr(0))
    ('resid_post[5]', 'a\\u0000')
    """
    return json.dumps(text)[1:-1]


def _short(positions: Sequence[int]) -> str:
    shown = ", ".join(map(str, positions[:6]))
    return f"({shown}{', ...' if len(positions) > 6 else ''})"
