"""What judges and writers have said, kept on disk by content: SQLite, no pickle, nothing lost to a kill.

    judge = cached(EndpointJudge(...), "runs/verdicts")     # asks only what it has not asked before

A verdict is keyed by the judge's fingerprint and the texts of the case; the texts themselves are not stored. Finished
pieces are committed one by one, so a run that was killed, or whose budget ended, goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from latentlens.access.progress import Progress
from latentlens.errors import BadInput, CacheCorrupt, CacheError, CacheReadOnly, CacheVersion
from latentlens.values.judging import Case, Judge, Score, Writer

SCHEMA = 1
PATIENCE = 60.0  # seconds to wait for another process's transaction
PIECE = 32  # cases between two commits, unless the judge says otherwise
_TABLE = "CREATE TABLE verdicts (key TEXT PRIMARY KEY, body TEXT NOT NULL, digest TEXT NOT NULL, judge TEXT NOT NULL)"
Result = TypeVar("Result")


class VerdictCache:
    """A folder with verdicts and texts by key. Every call is one short transaction of its own.

    Raises: CacheReadOnly, CacheError: the folder cannot be used. CacheVersion: written by a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "verdicts.sqlite"
        self.hits = self.misses = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cannot keep verdicts in {folder}: {error.strerror or error}") from error
        self._run(lambda db: None)

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """What is known of some keys. An entry that does not match its digest counts as missing."""

        def ask(db: sqlite3.Connection) -> dict[str, Any]:
            found = {}
            for at in range(0, len(keys), 500):
                some = keys[at : at + 500]
                marks = ",".join("?" * len(some))
                for key, body, digest in db.execute(
                    f"SELECT key, body, digest FROM verdicts WHERE key IN ({marks})", some
                ):
                    if _digest(f"{key}|{body}") == digest:
                        found[key] = json.loads(body)
                    else:
                        warnings.warn(f"a verdict in {self.path} is damaged and will be asked again", stacklevel=2)
            return found

        return self._run(ask)

    def put(self, found: Mapping[str, Any], judge: str) -> None:
        """Keep finished entries (JSON values); once this returns, a kill does not lose them."""
        lines = [(key, body, _digest(f"{key}|{body}"), judge) for key, body in _bodies(found)]
        self._run(lambda db: db.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", lines), write=True)

    def __len__(self) -> int:
        return int(self._run(lambda db: db.execute("SELECT count(*) FROM verdicts").fetchone()[0]))

    def __repr__(self) -> str:
        return f"VerdictCache({len(self)} verdicts; {self.hits} found, {self.misses} asked)"

    def _run(self, action: Callable[[sqlite3.Connection], Result], *, write: bool = False) -> Result:
        for _ in range(2):
            try:
                with self._open(write) as db:
                    return action(db)
            except sqlite3.DatabaseError as error:
                self._explain(error)
        raise CacheCorrupt(f"{self.path} could not be made again; delete it and retry")

    @contextlib.contextmanager
    def _open(self, write: bool) -> Iterator[sqlite3.Connection]:
        mode = "rwc" if os.access(self.path if self.path.exists() else self.path.parent, os.W_OK) else "ro"
        db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}", timeout=PATIENCE, isolation_level=None, uri=True
        )
        try:
            db.execute("PRAGMA synchronous = FULL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise CacheVersion(
                    f"{self.path} has schema {version}, this latentlens reads up to {SCHEMA}: upgrade it"
                )
            db.execute("BEGIN IMMEDIATE" if write or not version else "BEGIN")
            if not db.execute("PRAGMA user_version").fetchone()[0]:
                db.execute(_TABLE)
                db.execute(f"PRAGMA user_version = {SCHEMA}")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # undoes what was not committed

    def _explain(self, error: sqlite3.DatabaseError) -> None:
        """Raise what is not damage; put a damaged file aside."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise CacheError(f"another process has held {self.path} for {PATIENCE:.0f} s") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
            raise CacheReadOnly(f"{self.path} cannot be written ({error})") from error
        if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CacheError(f"{self.path}: {error}") from error
        aside = self.path.with_name(f"{self.path.name}.{time.time_ns()}.bad")
        with contextlib.suppress(FileNotFoundError):
            self.path.replace(aside)
        warnings.warn(f"{self.path} is damaged ({error}); moved to {aside.name}, starting a new one", stacklevel=4)


class CachedJudge:
    """A judge that asks only what it was never asked before. Cases that occur twice are asked once."""

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        self.judge, self.cache = judge, cache
        self.name, self.fingerprint = judge.name, judge.fingerprint

    def scores(self, cases: Sequence[Case]) -> list[Score]:
        """As the judge itself; verdicts that may pass (`Score.passing`) are not kept."""
        keys = [_digest(f"score|{self.fingerprint}|{case.digest}") for case in cases]
        found = _ask(self.cache, self.name, keys, cases, self._score, getattr(self.judge, "piece", PIECE))
        return [found[key] if isinstance(found[key], Score) else Score(*found[key]) for key in keys]

    def _score(self, cases: Sequence[Case]) -> list[tuple[Any, Any]]:
        said = self.judge.scores(cases)
        return [(s, None if s.passing else [s.value, s.mass, s.reason]) for s in said]

    def __repr__(self) -> str:
        return f"CachedJudge({self.judge!r}, {self.cache!r})"


class CachedWriter:
    """A writer that writes only what it never wrote before. A chat that occurs twice is answered once."""

    def __init__(self, writer: Writer, cache: VerdictCache) -> None:
        self.writer, self.cache = writer, cache
        self.name, self.fingerprint = writer.name, writer.fingerprint

    def complete(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """As the writer itself."""
        plain = [json.dumps([dict(message) for message in chat]) for chat in chats]
        keys = [_digest(f"text|{self.fingerprint}|{chat}") for chat in plain]
        found = _ask(self.cache, self.name, keys, chats, self._write, getattr(self.writer, "piece", PIECE))
        return [found[key] for key in keys]

    def _write(self, chats: Sequence[Any]) -> list[tuple[Any, Any]]:
        return [(text, text) for text in self.writer.complete(chats)]

    def __repr__(self) -> str:
        return f"CachedWriter({self.writer!r}, {self.cache!r})"


@overload
def cached(judge: Judge, folder: str | Path | VerdictCache) -> Judge: ...
@overload
def cached(judge: Writer, folder: str | Path | VerdictCache) -> Writer: ...
def cached(judge: Judge | Writer, folder: str | Path | VerdictCache) -> Judge | Writer:
    """A judge or writer with a memory on disk.

    A rule is returned as it is: it answers faster than a disk, and may call code that no fingerprint covers.

    Args: judge: any `Judge` or `Writer`. folder: where verdicts are kept; several judges may share it.
    Raises: BadInput: neither a judge nor a writer. CacheError, CacheVersion.
    """
    if getattr(judge, "is_rule", False):
        return judge
    cache = folder if isinstance(folder, VerdictCache) else VerdictCache(folder)
    if isinstance(judge, Judge):
        return CachedJudge(judge, cache)
    if isinstance(judge, Writer):
        return CachedWriter(judge, cache)
    raise BadInput(f"{type(judge).__name__} is neither a judge (name, fingerprint, scores) nor a writer (complete)")


def _ask(
    cache: VerdictCache,
    name: str,
    keys: Sequence[str],
    items: Sequence[Any],
    ask: Callable[[Sequence[Any]], list[tuple[Any, Any]]],
    piece: int,
) -> dict[str, Any]:
    """What is known of every key; the rest is asked piece by piece, and each piece is kept before the next."""
    found = cache.get(keys)
    missing = list({key: item for key, item in zip(keys, items, strict=True) if key not in found}.items())
    cache.hits += len(keys) - len(missing)
    cache.misses += len(missing)
    with Progress(f"ask {name}", len(missing), "case") as bar:
        for at in range(0, len(missing), piece):
            part = missing[at : at + piece]
            said = ask([item for _, item in part])
            if len(said) != len(part):
                raise BadInput(f"{name} answered {len(said)} of {len(part)} cases")
            cache.put({key: body for (key, _), (_, body) in zip(part, said) if body is not None}, name)
            found |= {key: value for (key, _), (value, _) in zip(part, said)}
            bar.update(len(part))
    return found


def _bodies(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        yield key, json.dumps(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
