"""The index of the activation cache: one SQLite file that says which shard holds which rows.

The index only speeds things up. Every shard carries what it says about it, so a lost or damaged index is
built again from the shards, and what it answers is checked against the shard's own header on reading.

Every operation opens its own connection, does one short transaction and closes: nothing is shared between
threads or survives a fork, and a replaced index file is noticed at once. The rollback journal (not WAL)
keeps this working on network disks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from latentlens.access.store.cache_keys import Entry, Hit, RowKey, Selection, plain, row_id, serve
from latentlens.access.store.shards import Shard, free_bytes, path_of, signature
from latentlens.errors import CacheCorrupt, CacheError, CacheReadOnly, CacheVersion

SCHEMA = 1
PATIENCE = 60.0  # seconds to wait for another process's transaction
Result = TypeVar("Result")

_TABLES = """
CREATE TABLE contexts (digest TEXT PRIMARY KEY, model TEXT NOT NULL, weights TEXT NOT NULL, description TEXT NOT NULL);
CREATE TABLE shards (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, context TEXT NOT NULL,
    bytes INTEGER NOT NULL, last_used REAL NOT NULL);
CREATE TABLE entries (
    row BLOB NOT NULL, site TEXT NOT NULL, pool TEXT NOT NULL, stored TEXT NOT NULL,
    shard INTEGER NOT NULL, tensor INTEGER NOT NULL, base INTEGER NOT NULL,
    PRIMARY KEY (row, site, pool, stored)) WITHOUT ROWID;
"""


class ShardRow(NamedTuple):
    """A shard as the index lists it."""

    id: int
    name: str
    context: str
    bytes: int
    last_used: float


class Index:
    """The index of one cache folder.

    Args:
        folder: the cache folder; `index.sqlite` and `shards/` lie in it.
        readonly: never write, not even to build a missing index.
    """

    def __init__(self, folder: Path, *, readonly: bool) -> None:
        self.folder, self.path, self.shards = folder, folder / "index.sqlite", folder / "shards"
        self.readonly = readonly

    # -- questions ----------------------------------------------------------------------------------

    def find(self, requests: Sequence[tuple[RowKey, Selection]], lost: set[str]) -> list[Hit | None]:
        """Find what serves each request; entries in shards named in `lost` do not count."""
        ids: dict[tuple[str, str], bytes] = {}
        sites: dict[str, str] = {}
        for key, _ in requests:
            if (key.context, key.sequence) not in ids:
                ids[key.context, key.sequence] = row_id(key.context, key.sequence)
            if key.site not in sites:
                sites[key.site] = plain(key.site)
        wanted, names = list(ids.values()), list(sites.values())
        of_sites = f" AND site IN ({_marks(names)})" if len(names) <= 100 else ""

        def ask(db: sqlite3.Connection) -> list[Hit | None]:
            shards = {i: str(name) for i, name in db.execute("SELECT id, name FROM shards") if name not in lost}
            found: dict[tuple[bytes, str], list[Entry]] = {}
            for at in range(0, len(wanted), 500):
                some = wanted[at : at + 500]
                for row, site, pool, stored, shard, tensor, base in db.execute(
                    f"SELECT row, site, pool, stored, shard, tensor, base FROM entries "
                    f"WHERE row IN ({_marks(some)}){of_sites}",
                    some + (names if of_sites else []),
                ):
                    if not (type(stored) is str and type(tensor) is int and type(base) is int):
                        raise sqlite3.DatabaseError("an entry of wrong type")
                    if shard in shards:
                        found.setdefault((row, site), []).append(Entry(pool, stored, shards[shard], tensor, base))
            hits: list[Hit | None] = []
            for key, selection in requests:
                entries = found.get((ids[key.context, key.sequence], sites[key.site]))
                hits.append(serve(key, selection, entries) if entries else None)
            return hits

        return self.read(ask, nothing=[None] * len(requests)) if requests else []

    def shard_rows(self) -> list[ShardRow]:
        """All shards, least recently used first."""
        return self.read(_shard_rows, nothing=[])

    def create(self) -> None:
        """Make the index if there is none."""
        if not self.path.exists():
            self.write(lambda db: None)

    # -- changes ------------------------------------------------------------------------------------

    def insert(self, path: Path, step: Callable[[str], None]) -> bool:
        """Make a shard's rows part of the cache, in one transaction; rows already held stay as they are.

        Returns: False when the file has vanished meanwhile, so that it must be written again.
        """

        def change(db: sqlite3.Connection) -> bool:
            if not path.exists():  # collectors unlink under this same lock
                return False
            shard = Shard(path)
            if not _insert(db, shard, time.time()):
                redundant.append(path)
                db.execute("DELETE FROM shards WHERE name = ?", (shard.name,))
            step("inserted")
            return True

        redundant: list[Path] = []  # every row was stored by another process meanwhile
        inserted = self.write(change)
        step("committed")
        self.unlink_unreferenced(redundant)
        return inserted

    def touch(self, names: Iterable[str], now: float) -> None:
        """Note that shards were used. Best effort: it never waits and never fails."""

        def change(db: sqlite3.Connection) -> None:
            for name in names:
                db.execute("UPDATE shards SET last_used = ? WHERE name = ? AND last_used < ?", (now, name, now))

        with contextlib.suppress(CacheError):
            self.write(change, patience=0.0)

    def remove(self, shards: Sequence[ShardRow]) -> int:
        """Remove shards: first from the index, then their files. Returns the number of entries removed."""
        removed = self.write(lambda db: sum(self._delete(db, shard) for shard in shards))
        self.unlink_unreferenced([path_of(self.shards, shard.name) for shard in shards])
        return removed

    def drop_entries(self, hits: Iterable[Hit]) -> None:
        """Forget entries that the shards do not confirm."""

        def change(db: sqlite3.Connection) -> None:
            for hit in hits:
                db.execute(
                    "DELETE FROM entries WHERE row = ? AND site = ? AND pool = ? AND stored = ?",
                    (row_id(hit.key.context, hit.key.sequence), plain(hit.key.site), hit.pool, hit.stored),
                )

        self.write(change)

    def quarantine(self, name: str, suspect: tuple[int, ...] | None) -> None:
        """Take a damaged shard out of the cache, keeping its file aside under `quarantine/`.

        Args:
            name: the shard.
            suspect: signature of the damaged file, None if it could not be opened: a good file that another
                process has put in its place since stays.
        """
        path = path_of(self.shards, name)

        def change(db: sqlite3.Connection) -> None:
            with contextlib.suppress(OSError):
                if signature(path.stat()) != suspect and Shard(path).name == name:
                    return
            for row in [row for row in _shard_rows(db) if row.name == name]:
                self._delete(db, row)
            aside(path, self.folder)

        self.write(change)

    def unlink_unreferenced(self, paths: Iterable[Path]) -> int:
        """Delete files that no shard row names; under the write lock, so that no commit can lose its file."""

        def change(db: sqlite3.Connection) -> int:
            freed = 0
            for path in paths:
                name = path.name.removesuffix(".safetensors")
                if db.execute("SELECT 1 FROM shards WHERE name = ?", (name,)).fetchone() is None:
                    with contextlib.suppress(FileNotFoundError):
                        size = path.stat().st_size
                        path.unlink()
                        freed += size
            return freed

        paths = list(paths)
        return self.write(change) if paths else 0

    def _delete(self, db: sqlite3.Connection, shard: ShardRow) -> int:
        """Delete a shard and its entries: by key from its header, or, if that is lost, by a scan."""
        try:
            header = Shard(path_of(self.shards, shard.name))
        except (OSError, CacheVersion):
            removed = db.execute("DELETE FROM entries WHERE shard = ?", (shard.id,)).rowcount
        else:
            removed = db.executemany(
                "DELETE FROM entries WHERE row = ? AND site = ? AND pool = ? AND stored = ? AND shard = ?",
                (
                    (row_id(header.context, sequence), plain(site), pool, stored, shard.id)
                    for _, site, pool, sequence, stored, _ in header.entries()
                ),
            ).rowcount
        db.execute("DELETE FROM shards WHERE id = ?", (shard.id,))
        return removed

    # -- transactions -------------------------------------------------------------------------------

    def read(self, ask: Callable[[sqlite3.Connection], Result], *, nothing: Result) -> Result:
        """Run a question in one snapshot; `nothing` is the answer of a cache that does not exist yet."""
        if not self.path.exists() and not self._has_shards():
            return nothing
        return self._transaction(ask, write=False, patience=PATIENCE)

    def write(self, change: Callable[[sqlite3.Connection], Result], *, patience: float = PATIENCE) -> Result:
        """Run a change in one transaction: all of it or nothing."""
        if self.readonly:
            raise CacheReadOnly(f"the cache in {self.folder} was opened read-only")
        return self._transaction(change, write=True, patience=patience)

    def _transaction(self, action: Callable[[sqlite3.Connection], Result], *, write: bool, patience: float) -> Result:
        failed: Exception | None = None
        for _ in range(3):
            inode = self.path.stat().st_ino if self.path.exists() else None
            try:
                if inode is not None:
                    with self._open(write, patience) as db:
                        if self._is_current(db):
                            return action(db)
                self._build(patience)
            except sqlite3.ProgrammingError:
                raise  # a mistake in this file, not in the user's
            except (sqlite3.Error, UnicodeDecodeError) as error:  # damage can reach SQLite's own messages
                self._explain(error)
                failed = error
                if self.path.exists() and self.path.stat().st_ino == inode:  # else another process was faster
                    self._set_aside(error)
        raise CacheCorrupt(f"the index {self.path} could not be built again ({failed}); delete it and retry")

    @contextlib.contextmanager
    def _open(self, write: bool, patience: float) -> Iterator[sqlite3.Connection]:
        # mode=ro only where nothing can be written: it cannot undo the unfinished commit of a killed process.
        mode = "rwc" if write else "rw" if self._writable() else "ro"
        db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}", timeout=patience, isolation_level=None, uri=True
        )
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # undoes what was not committed

    def _is_current(self, db: sqlite3.Connection) -> bool:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise CacheVersion(
                f"the cache index {self.path} has schema {version}, this latentlens reads up to {SCHEMA}: "
                "upgrade latentlens or choose another cache folder"
            )
        return version == SCHEMA

    def _build(self, patience: float) -> None:
        """Create the index, from the shards if there are any. Processes that come at once take turns."""
        if not self._writable():
            raise CacheCorrupt(
                f"the index {self.path} is missing or empty and the folder cannot be written: "
                "open the cache once where it can be, and the index is built again from the shards"
            )
        with self._open(True, patience) as db:
            if self._is_current(db):
                return
            for statement in filter(str.strip, _TABLES.split(";")):
                db.execute(statement)
            found = sorted(self.shards.glob("??/*.safetensors"))
            kept = 0
            for path in found:
                try:
                    shard = Shard(path)
                except CacheVersion as error:
                    warnings.warn(str(error), stacklevel=2)
                except CacheCorrupt as error:
                    warnings.warn(f"{error}; moved to quarantine", stacklevel=2)
                    aside(path, self.folder)
                except OSError as error:
                    warnings.warn(f"{path} cannot be read ({error})", stacklevel=2)
                else:
                    kept += _insert(db, shard, path.stat().st_mtime)
            if found:
                warnings.warn(f"the index {self.path} was built again from {kept} shards", stacklevel=2)
            db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _explain(self, error: Exception) -> None:
        """Raise what is not damage: a lock held too long, no permission, a full disk."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise CacheError(f"another process has held the cache index {self.path} for {PATIENCE:.0f} s") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
            hint = "" if self.readonly else "; if a process was killed there, open it once where it can be written"
            raise CacheReadOnly(f"the cache index {self.path} cannot be opened ({error}){hint}") from error
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_TOOBIG):
            raise CacheError(
                f"the cache index {self.path} could not be written ({error}); {free_bytes(self.folder)} bytes free"
            ) from error

    def _set_aside(self, error: Exception) -> None:
        if not self._writable():
            raise CacheCorrupt(
                f"the index {self.path} is damaged ({error}) and the folder cannot be written: open the cache "
                "once where it can be, and the index is built again from the shards"
            ) from error
        warnings.warn(f"the index {self.path} is damaged ({error}); building it again from the shards", stacklevel=2)
        aside(self.path, self.folder)

    def _has_shards(self) -> bool:
        return next(self.shards.glob("??/*.safetensors"), None) is not None

    def _writable(self) -> bool:
        if self.readonly or not os.access(self.folder, os.W_OK):
            return False
        return not self.path.exists() or os.access(self.path, os.W_OK)


def aside(path: Path, folder: Path) -> None:
    """Move a damaged file to the quarantine, where nothing reads it."""
    with contextlib.suppress(FileNotFoundError):
        (folder / "quarantine").mkdir(exist_ok=True)
        os.replace(path, folder / "quarantine" / f"{path.name}.{time.time_ns()}.bad")


def _insert(db: sqlite3.Connection, shard: Shard, used: float) -> bool:
    """Insert a shard's rows; False when all of them are held by other shards."""
    about = shard.description
    known = db.execute("SELECT 1 FROM shards WHERE name = ?", (shard.name,)).fetchone() is not None
    db.execute(
        "INSERT OR IGNORE INTO contexts VALUES (?, ?, ?, ?)",
        (plain(shard.context), model_of(about), str(about.get("weights", "")), json.dumps(about)),
    )
    db.execute(
        "INSERT INTO shards (name, context, bytes, last_used) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET last_used = excluded.last_used",
        (shard.name, plain(shard.context), shard.size, used),
    )
    number = db.execute("SELECT id FROM shards WHERE name = ?", (shard.name,)).fetchone()[0]
    rows: dict[str, bytes] = {}

    def entries() -> Iterator[tuple[Any, ...]]:
        for tensor, site, pool, sequence, stored, base in shard.entries():
            if sequence not in rows:
                rows[sequence] = row_id(shard.context, sequence)
            yield rows[sequence], plain(site), pool, stored, number, tensor, base

    cursor = db.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", entries())
    return known or cursor.rowcount > 0


def _shard_rows(db: sqlite3.Connection) -> list[ShardRow]:
    rows = db.execute("SELECT id, name, context, bytes, last_used FROM shards ORDER BY last_used, id")
    found = [ShardRow(*row) for row in rows]
    if not all(type(s.name) is str and type(s.bytes) is int and type(s.last_used) is float for s in found):
        raise sqlite3.DatabaseError("a shard of wrong type")
    return found


def model_of(description: dict[str, Any]) -> str:
    """Name of the model in a context's description."""
    return str(description.get("model", "unknown"))


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
