"""The one activation cache: what has been computed once is read from here by everything else.

Rows are kept per sequence, context and site, so a probe, a persona vector and a trajectory that need the
same rows cost one forward pass between them. The cache knows keys and tensors, no models.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor

from latentlens.access.store.cache_index import Index, ShardRow
from latentlens.access.store.cache_keys import Hit as Hit
from latentlens.access.store.cache_keys import RowKey as RowKey
from latentlens.access.store.cache_keys import Selection as Selection
from latentlens.access.store.cache_keys import plain
from latentlens.access.store.cache_report import CacheStats as CacheStats
from latentlens.access.store.cache_report import VerifyReport as VerifyReport
from latentlens.access.store.cache_report import audit, collect_stats, strays
from latentlens.access.store.shard_rows import confirm, mean_of, ranges, rows_of, to_tensor
from latentlens.access.store.shards import SIGNED, Shard, draft, explained, path_of, require_room, write
from latentlens.errors import BadInput, CacheCorrupt, CacheError, CacheReadOnly, UnsafeFile

_OPEN_SHARDS = 256  # maps kept open; each holds a file descriptor
_TOUCH_SECONDS = 60.0
_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}


class ActivationCache:
    """Activations on disk, keyed by content; safe for many threads and processes at once.

    A raw entry serves every subset of its positions, and their mean; never the other way round. Bytes are
    verified when first read; damaged shards are set aside, and their rows count as missing. A commit is
    there entirely or not at all, whenever the process is killed.

    Args:
        folder: by default the environment variable LATENTLENS_CACHE, else the user's cache folder. It is
            created by the first `put`.
        max_gib: ceiling; after a `put` the least recently used shards go, but never the one just written.
        readonly: never write anything, not even when rows were last used.

    Raises: UnsafeFile: `folder` is a pickle or another file that the cache never opens. CacheError: `folder`
        is some other file.

        cache = ActivationCache("activations", max_gib=20)
        cache.put({"model": "gpt2"}, [(RowKey(context, sequence, "resid_post[5]"), Selection.all(7), values)])
        [hit] = cache.lookup([(RowKey(context, sequence, "resid_post[5]"), Selection.last(7))])
        cache.read_stacked([hit])     # (1, d_model)
    """

    def __init__(
        self, folder: str | Path | None = None, *, max_gib: float | None = None, readonly: bool = False
    ) -> None:
        if folder is None:
            folder = os.environ.get("LATENTLENS_CACHE") or Path(
                platformdirs.user_cache_dir("latentlens"), "activations"
            )
        self.folder = Path(folder).expanduser().absolute()
        if self.folder.is_file():
            if self.folder.suffix in _PICKLES:
                raise UnsafeFile(
                    f"{folder} may execute code when loaded; the cache reads only its own folder of safetensors"
                )
            raise CacheError(f"{folder} is a file; the activation cache is a folder")
        self.max_gib, self.readonly = max_gib, readonly
        self.hits = 0
        self.misses = 0
        self._index = Index(self.folder, readonly=readonly)
        self._shards = self.folder / "shards"
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._lost: set[str] = set()  # found damaged where they cannot be removed
        self._touched: dict[str, float] = {}
        self._lock = threading.Lock()
        self._step: Callable[[str], None] = lambda point: None  # tests interrupt commits here

    def __repr__(self) -> str:
        return f"ActivationCache({str(self.folder)!r}, max_gib={self.max_gib}, readonly={self.readonly})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.max_gib, self.readonly)

    # -- reading ------------------------------------------------------------------------------------

    def lookup(self, requests: Sequence[tuple[RowKey, Selection]]) -> list[Hit | None]:
        """Ask the index, without touching activations, what it holds. Counts hits and misses.

        Returns: for each request where it is held, or None.
        Raises: CacheVersion: written by a newer latentlens. CacheError: the index cannot be opened.
        """
        hits = self._index.find(requests, self._lost)
        held = sum(hit is not None for hit in hits)
        with self._lock:
            self.hits += held
            self.misses += len(hits) - held
        return hits

    def has(self, key: RowKey, selection: Selection) -> bool:
        """Whether a selection is held; counts neither as a hit nor as a miss."""
        return self._index.find([(key, selection)], self._lost)[0] is not None

    def read(self, hits: Sequence[Hit]) -> list[Tensor | None]:
        """Read rows, verified. The tensors own their memory.

        Returns: for each hit (n_positions, width), or (1, width) float32 for a mean; None where the bytes
            were damaged or gone. Those are reported by a warning and from then on missing: compute them again.
        """
        out: list[Tensor | None] = [None] * len(hits)
        for shard, number, members, rows in self._gather(hits):
            source, dtype, at = shard.bits(number), shard.blocks[number].dtype, 0
            for i in members:
                hit = hits[i]
                value = to_tensor(
                    source[rows[at] : rows[at] + hit.count] if hit.picks is None else source[rows[at : at + hit.count]],
                    dtype,
                )
                out[i] = mean_of(value) if hit.reduce else value
                at += hit.count
        return out

    def read_stacked(self, hits: Sequence[Hit]) -> Tensor:
        """Read the rows of all hits into one tensor, in the order of the hits: the fast way.

        Args: hits: at least one, all of one width and dtype.
        Raises: CacheCorrupt: bytes were damaged or gone; those rows are missing from now on, so look up again
            and compute what is lacking. BadInput: widths or dtypes differ.
        """
        if not hits:
            raise BadInput("read_stacked needs at least one hit")
        groups = list(self._gather(hits))
        if sum(len(members) for _, _, members, _ in groups) < len(hits):
            raise CacheCorrupt("some rows were damaged and have been taken out of the cache: look up and compute them")
        n_rows = [hit.selection.n_rows for hit in hits]
        stops = np.cumsum(n_rows)
        kinds = {
            (shard.blocks[number].shape[1], torch.float32 if hits[members[0]].reduce else shard.blocks[number].dtype)
            for shard, number, members, _ in groups
        }
        if len(kinds) > 1:
            raise BadInput(f"cannot stack rows of different width or dtype: {sorted(kinds, key=str)}")
        [(width, dtype)] = kinds
        out = torch.empty((int(stops[-1]), width), dtype=dtype)
        for shard, number, members, rows in groups:
            source = shard.bits(number)
            if hits[members[0]].reduce:
                at = 0
                for i in members:
                    count = hits[i].count
                    out[stops[i] - 1] = mean_of(to_tensor(source[rows[at : at + count]], shard.blocks[number].dtype))[0]
                    at += count
                continue
            target = out.view(SIGNED[dtype.itemsize]).numpy().view(source.dtype)
            first, last = members[0], members[-1]
            if last - first + 1 == len(members):
                part = target[stops[first] - n_rows[first] : stops[last]]
                if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
                    part[:] = source[rows[0] : rows[-1] + 1]
                else:  # "clip" lets numpy write in place; the rows were bounded by _gather
                    np.take(source, rows, axis=0, out=part, mode="clip")
            else:
                counts = np.array([n_rows[i] for i in members])
                target[ranges(stops[members] - counts, counts)] = source[rows]
        return out

    # -- writing ------------------------------------------------------------------------------------

    def put(self, context: dict[str, Any], rows: Sequence[tuple[RowKey, Selection, Tensor]]) -> None:
        """Store rows of any sites and sequences of one context in one atomic commit. What is held is skipped.

        Args:
            context: readable description (JSON) whose digest is the `context` of every key; its "model" and
                "weights" are what `forget` and `stats` go by.
            rows: tensors (n_positions, width), or (1, width) float32 for a mean.

        Raises: BadInput: tensors that do not fit, or several contexts. CacheReadOnly. CacheError: no room, with
            the bytes needed and free; nothing was stored and the cache is as before.
        """
        self._refuse_readonly()
        contexts = {key.context for key, _, _ in rows}
        if len(contexts) > 1:
            raise BadInput(f"rows of {len(contexts)} contexts in one put: put each context by itself")
        fresh = list({(key, s.pool, s.positions): (key, s, value) for key, s, value in reversed(rows)}.values())[::-1]
        held = self._index.find([(key, selection) for key, selection, _ in fresh], self._lost)
        fresh = [
            row for row, hit in zip(fresh, held, strict=True) if hit is None or hit.stored != row[1].text or hit.reduce
        ]
        if not fresh:
            return
        try:
            shard = draft(contexts.pop(), context, fresh)
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, BadInput) else BadInput(f"the context must be JSON: {error}") from error
        self._prepare()
        self._step("drafted")
        try:
            while not self._index.insert(write(shard, self._shards, self._step), self._step):
                pass  # a collector took the file for a leftover of its namesake
        except CacheError:
            self._withdraw(shard.name)
            raise
        self._lost.discard(shard.name)
        if self.max_gib is not None:
            self._shrink(self.max_gib, keep=shard.name)

    def ensure_writable(self) -> None:
        """Find out now, before a model is loaded, whether `put` can write.

        Raises: CacheReadOnly.
        """
        self._refuse_readonly()
        self._prepare()
        probe = self._shards / f".{os.getpid()}-{secrets.token_hex(8)}.tmp"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise explained(error, self.folder, 0) from error

    def require_room(self, needed: int) -> None:
        """Find out now whether the disk can hold a capture of `needed` bytes.

        Raises: CacheError, with the bytes needed and free.
        """
        require_room(self.folder, needed)

    # -- housekeeping -------------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """Count what is held, and the hits and misses of this object."""
        return collect_stats(self._index, self.hits, self.misses)

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Compare every stored byte with its digest, and the index with the shards.

        Args: repair: set damaged shards aside, correct the index, delete what killed processes left.
        """
        if repair:
            self._refuse_readonly()
        with self._lock:
            self._open.clear()
        return audit(self._index, repair=repair)

    def forget(self, *, model: str | None = None, context: str | None = None) -> int:
        """Remove all rows of a model (its class or weights digest) or of one context.

        Returns: the number of entries removed.
        """
        if (model is None) == (context is None):
            raise BadInput("forget(model=...) or forget(context=...): give one of the two")
        chosen = self._index.read(
            lambda db: {
                digest
                for digest, name, weights in db.execute("SELECT digest, model, weights FROM contexts")
                if (digest == plain(context) if context is not None else model in (name, weights))
            },
            nothing=set(),
        )
        return self._remove([shard for shard in self._index.shard_rows() if shard.context in chosen])

    def clear(self) -> int:
        """Remove everything, quarantine included. Returns the number of entries removed."""
        removed = self._remove(self._index.shard_rows())
        for path in self.folder.glob("quarantine/*.bad"):
            path.unlink(missing_ok=True)
        return removed

    def evict(self, max_gib: float | None = None) -> int:
        """Remove leftovers of killed processes, then the least recently used shards above a ceiling.

        Args: max_gib: the ceiling; by default the cache's own.
        Returns: bytes freed.
        """
        self._refuse_readonly()
        if not self._shards.exists():
            return 0
        freed = self._index.unlink_unreferenced(strays(self._index))
        ceiling = self.max_gib if max_gib is None else max_gib
        return freed + (0 if ceiling is None else self._shrink(ceiling, keep=None))

    def close(self) -> None:
        """Release open maps. The cache can be used again afterwards."""
        with self._lock:
            self._open.clear()

    # -- what the above share -----------------------------------------------------------------------

    def _gather(self, hits: Sequence[Hit]) -> Iterator[tuple[Shard, int, list[int], np.ndarray]]:
        """Group hits by tensor; yield each tensor with its hits and their rows, verified. Damage is left out."""
        groups: dict[tuple[str, int, bool], list[int]] = {}
        for i, hit in enumerate(hits):
            groups.setdefault((hit.shard, hit.tensor, hit.reduce), []).append(i)  # pooled rows go one by one
        for (name, number, _), members in groups.items():
            shard = None
            try:
                shard = self._shard(name)
                confirmed = confirm(shard, number, hits, members)
                if len(confirmed) < len(members):
                    self._disown([hits[i] for i in set(members) - set(confirmed)])
                if not confirmed:
                    continue
                rows = rows_of([hits[i] for i in confirmed])
                shard.verify(number, rows)
            except (CacheCorrupt, FileNotFoundError) as error:
                self._lose(name, shard, error, len(members))
                continue
            yield shard, number, confirmed, rows
        self._touch({hit.shard for hit in hits})

    def _shard(self, name: str) -> Shard:
        """Open a shard, or find it open and unchanged."""
        with self._lock:
            shard = self._open.get(name)
            if shard is not None and shard.unchanged():
                self._open.move_to_end(name)
                return shard
        shard = Shard(path_of(self._shards, name))
        with self._lock:
            self._open[name] = shard
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def _lose(self, name: str, shard: Shard | None, error: Exception, count: int) -> None:
        """Take a damaged or vanished shard out of the cache, and say so."""
        with self._lock:
            self._open.pop(name, None)
            self._lost.add(name)
            self.hits -= count
            self.misses += count
        gone = isinstance(error, FileNotFoundError)
        what = f"{error.filename} is gone" if isinstance(error, FileNotFoundError) else str(error)
        kept = "its rows count as missing" if self.readonly or gone else "it was moved to quarantine"
        try:
            self._index.quarantine(name, shard.signature if shard else None)
        except CacheError:
            kept = "its rows count as missing"
        else:
            self._lost.discard(name)
        warnings.warn(f"activation cache: {what}; {kept} and will be computed again", stacklevel=4)

    def _disown(self, hits: Sequence[Hit]) -> None:
        """Forget index entries that the shard itself does not confirm."""
        with self._lock:
            self.hits -= len(hits)
            self.misses += len(hits)
        warnings.warn(
            f"activation cache: the index named rows for {hits[0].key.site} that their shard does not hold; "
            "they count as missing. verify(repair=True) corrects the index.",
            stacklevel=4,
        )
        if not self.readonly:
            self._index.drop_entries(hits)

    def _touch(self, names: set[str]) -> None:
        """Note the use of shards, each at most once a minute, so that reads stay cheap."""
        if self.readonly:
            return
        now = time.time()
        with self._lock:
            due = [name for name in names if now - self._touched.get(name, 0.0) >= _TOUCH_SECONDS]
            self._touched.update(dict.fromkeys(due, now))
        if due and os.access(self.folder, os.W_OK):
            self._index.touch(due, now)

    def _shrink(self, max_gib: float, keep: str | None) -> int:
        shards = self._index.shard_rows()
        excess = sum(shard.bytes for shard in shards) - max_gib * 2**30
        chosen = []
        for shard in shards:
            if excess > 0 and shard.name != keep:
                chosen.append(shard)
                excess -= shard.bytes
        self._remove(chosen)
        return sum(shard.bytes for shard in chosen)

    def _remove(self, shards: Sequence[ShardRow]) -> int:
        self._refuse_readonly()
        with self._lock:
            for shard in shards:
                self._open.pop(shard.name, None)
        return self._index.remove(shards) if shards else 0

    def _withdraw(self, name: str) -> None:
        """After a failed commit leave no file behind; if even that fails, `evict` collects it later."""
        try:
            self._index.unlink_unreferenced([path_of(self._shards, name)])
        except CacheError:
            return

    def _prepare(self) -> None:
        try:
            self._shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, self.folder, 0) from error
        self._index.create()

    def _refuse_readonly(self) -> None:
        if self.readonly:
            raise CacheReadOnly(
                f"the cache in {self.folder} was opened read-only: open it without readonly=True to write"
            )


def _reopen(folder: Path, max_gib: float | None, readonly: bool) -> ActivationCache:
    return ActivationCache(folder, max_gib=max_gib, readonly=readonly)
