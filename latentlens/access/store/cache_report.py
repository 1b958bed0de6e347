"""What the cache tells about itself: counts, and whether every stored byte is what was written."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from latentlens.access.store.cache_index import Index, ShardRow
from latentlens.access.store.cache_keys import plain, row_id
from latentlens.access.store.shards import Shard, path_of
from latentlens.errors import CacheCorrupt, CacheVersion
from latentlens.values.markup import Shown, table

_STALE_SECONDS = 3600.0  # a commit in progress owns files that no row names yet, but not for an hour


@dataclass(frozen=True)
class CacheStats(Shown):
    """What a cache holds.

    entries: stored selections; sequences: distinct rows of token ids in their contexts; bytes: of the shards.
    hits, misses: of one ActivationCache object since it was made. oldest_use, newest_use: seconds since 1970.
    models: bytes per model.
    """

    folder: str
    entries: int
    sequences: int
    shards: int
    bytes: int
    hits: int
    misses: int
    oldest_use: float | None
    newest_use: float | None
    models: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(f"{name:<10} {value}" for name, value in self._lines())

    def _html_head(self) -> str:
        return "Activation cache"

    def _html_parts(self) -> tuple[Any, ...]:
        return (table([{"what": name, "found": value} for name, value in self._lines()], None),)

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "folder", self.folder
        yield "entries", f"{self.entries} of {self.sequences} sequences"
        yield "size", f"{size(self.bytes)} in {self.shards} shards"
        yield "hits", f"{self.hits}, misses {self.misses}"
        if self.oldest_use is not None and self.newest_use is not None:
            yield "last used", f"{_when(self.oldest_use)} to {_when(self.newest_use)}"
        for model, held in sorted(self.models.items()):
            yield "model", f"{model}: {size(held)}"


@dataclass(frozen=True)
class VerifyReport(Shown):
    """What an audit found.

    damaged: (shard, reason) of every shard whose bytes are not those written; missing: shards named by the
    index without a file; stale: leftovers of killed processes; foreign: files that are none of the cache's
    (never opened); disagreements: index entries that differ from what the shards say.
    """

    folder: str
    shards: int
    bytes: int
    damaged: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    stale: tuple[str, ...]
    foreign: tuple[str, ...]
    disagreements: int
    repaired: bool

    @property
    def sound(self) -> bool:
        """Whether all that the index promises is there, byte for byte."""
        return not (self.damaged or self.missing or self.disagreements)

    def __str__(self) -> str:
        verdict = "sound" if self.sound else "DAMAGED"
        lines = [f"{self.shards} shards, {size(self.bytes)} verified in {self.folder}: {verdict}"]
        lines += [f"  damaged: {name}: {reason}" for name, reason in self.damaged]
        lines += [f"  missing: {name}" for name in self.missing]
        lines += [f"  left by a killed process: {name}" for name in self.stale]
        lines += [f"  not the cache's, never opened: {name}" for name in self.foreign]
        if self.disagreements:
            lines.append(f"  index entries that the shards contradict: {self.disagreements}")
        if self.repaired:
            lines.append("  repaired: what was lost will be computed again")
        return "\n".join(lines)


def collect_stats(index: Index, hits: int, misses: int) -> CacheStats:
    """Count what an index holds."""

    def ask(db: sqlite3.Connection) -> tuple[int, int, dict[str, str]]:
        entries, sequences = db.execute("SELECT count(*), count(DISTINCT row) FROM entries").fetchone()
        return entries, sequences, dict(db.execute("SELECT digest, model FROM contexts"))

    entries, sequences, names = index.read(ask, nothing=(0, 0, {}))
    shards = index.shard_rows()
    models: dict[str, int] = {}
    for shard in shards:
        model = str(names.get(shard.context, "unknown"))
        models[model] = models.get(model, 0) + shard.bytes
    uses = [shard.last_used for shard in shards]
    return CacheStats(
        str(index.folder),
        entries,
        sequences,
        len(shards),
        sum(shard.bytes for shard in shards),
        hits,
        misses,
        min(uses, default=None),
        max(uses, default=None),
        models,
    )


def audit(index: Index, *, repair: bool) -> VerifyReport:
    """Read every byte from disk and compare; with `repair`, take out what is damaged and correct the index."""
    damaged: list[tuple[str, str]] = []
    missing: list[str] = []
    verified, disagreements = 0, 0
    rows = index.shard_rows()
    for row in rows:
        shard = None
        try:
            shard = Shard(path_of(index.shards, row.name))
            for number in range(len(shard.blocks)):
                shard.verify(number)
            verified += shard.size
        except FileNotFoundError:
            missing.append(row.name)
        except CacheCorrupt as error:
            damaged.append((row.name, str(error)))
        except CacheVersion as error:
            warnings.warn(str(error), stacklevel=3)
        else:
            disagreements += _disagreements(index, row, shard, repair)
        if repair and row.name in {*missing, *(name for name, _ in damaged)}:
            index.quarantine(row.name, shard.signature if shard else None)
    disagreements += _dangling(index, repair)
    stale = strays(index) if index.shards.exists() else []
    if repair:
        index.unlink_unreferenced(stale)
    return VerifyReport(
        str(index.folder),
        len(rows),
        verified,
        tuple(damaged),
        tuple(missing),
        tuple(path.name for path in stale),
        tuple(str(path.relative_to(index.shards)) for path in _foreign(index.shards)),
        disagreements,
        repair,
    )


def strays(index: Index) -> list[Path]:
    """Files of the cache that no row names and no commit in progress can still want."""
    known = {row.name for row in index.shard_rows()}
    old = time.time() - _STALE_SECONDS
    found = []
    for path in [*index.shards.glob("??/*.safetensors"), *index.shards.glob("**/.*.tmp")]:
        try:
            if path.name.removesuffix(".safetensors") not in known and path.stat().st_mtime < old:
                found.append(path)
        except FileNotFoundError:
            continue
    return sorted(found)


def _foreign(shards: Path) -> list[Path]:
    return sorted(p for p in shards.rglob("*") if p.is_file() and p.suffix not in (".safetensors", ".tmp"))


def _disagreements(index: Index, row: ShardRow, shard: Shard, repair: bool) -> int:
    """Count index entries of one shard that its header contradicts; with `repair`, delete them."""
    truth = {
        (row_id(shard.context, sequence), plain(site), pool, stored): (tensor, base)
        for tensor, site, pool, sequence, stored, base in shard.entries()
    }

    def compare(db: sqlite3.Connection) -> int:
        wrong = [
            entry
            for entry in db.execute(
                "SELECT row, site, pool, stored, tensor, base FROM entries WHERE shard = ?", (row.id,)
            )
            if truth.get(entry[:4]) != entry[4:]
        ]
        if repair:
            for entry in wrong:
                db.execute("DELETE FROM entries WHERE row = ? AND site = ? AND pool = ? AND stored = ?", entry[:4])
        return len(wrong)

    return index.write(compare) if repair else index.read(compare, nothing=0)


def _dangling(index: Index, repair: bool) -> int:
    """Count entries of no shard; with `repair`, delete them."""
    where = "FROM entries WHERE shard NOT IN (SELECT id FROM shards)"

    def compare(db: sqlite3.Connection) -> int:
        found = db.execute(f"SELECT count(*) {where}").fetchone()[0]
        if repair:
            db.execute(f"DELETE {where}")
        return found

    if repair and index.path.exists():
        return index.write(compare)
    return index.read(compare, nothing=0)


def size(n_bytes: float) -> str:
    """Bytes for people: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return ""


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
