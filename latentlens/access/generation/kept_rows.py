"""Finished rows of sweeps, in memory and in a folder: what a kill does not lose, and what is read once.

kept = KeptRows("runs/mine")       # opened once for many sweeps: only what was appended since is read again
sweep(lm, prompts, plans, folder=kept)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlens.access.generation.recorder import Readings
from latentlens.errors import CacheError
from latentlens.values.rollouts import Rollout

_FILE = "rows.jsonl"


class KeptRows:
    """Finished rows by key: a line of JSON each, appended and synced batch by batch.

    Readings lie in one safetensors file per batch, written and synced before the lines that name it. A line that a
    kill has cut short is dropped when the folder is opened again.

    Args: folder: None keeps rows in memory only.
    Raises: CacheError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else None
        self._rows: dict[str, dict[str, Any]] = {}
        self._at = self._inode = 0  # how far the file has been read, and which file that was
        self._refreshed(opening=True)

    @classmethod
    def of(cls, folder: str | Path | KeptRows | None) -> KeptRows:
        """A folder opened, or one that is open already with what was appended since."""
        if not isinstance(folder, KeptRows):
            return cls(folder)
        folder._refreshed()
        return folder

    def _refreshed(self, *, opening: bool = False) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / _FILE
            file.touch()
            now = file.stat()
            if now.st_ino != self._inode or now.st_size < self._at:  # another file than the one that was read
                self._rows, self._at, self._inode = {}, 0, now.st_ino
            if now.st_size > self._at:
                self._read(file)
            if opening and self._at < file.stat().st_size:
                os.truncate(file, self._at)
        except OSError as error:
            raise CacheError(f"cannot keep the sweep in {self.folder}: {error.strerror or error}") from error

    def _read(self, file: Path) -> None:
        """Whole lines from where reading stopped; a damaged one is passed over."""
        with file.open("rb") as opened:
            opened.seek(self._at)
            for raw in opened:
                if not raw.endswith(b"\n"):
                    break
                self._at += len(raw)
                try:
                    line = json.loads(raw)
                    key = line.pop("key")
                except (ValueError, KeyError, AttributeError):
                    continue
                self._rows[key] = _compact(line)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: str) -> dict[str, Any]:
        row = dict(self._rows[key])
        row["generated"] = row["generated"].tolist()
        stored = row.pop("readings_in", None)
        return {**row, **self._load(stored, key)} if stored else row

    def describe(self, about: Mapping[str, Any]) -> None:
        """Leave a manifest beside the rows."""
        if self.folder is not None:
            (self.folder / "sweep.json").write_text(json.dumps(about, indent=2, default=str) + "\n")

    def add(self, batch: Mapping[str, tuple[Rollout, Readings | None, list[float] | None]]) -> None:
        """Keep a finished batch; once this returns, a kill does not lose it."""
        lines, tensors = [], {}
        for key, (rollout, read, moved) in batch.items():
            row: dict[str, Any] = {
                "prompt": rollout.prompt,
                "text": rollout.text,
                "generated": list(rollout.generated),
                "n_tokens": len(rollout.generated),
                "finish": rollout.finish,
                **({} if moved is None else {"kl": moved}),
            }
            arrays = _arrays(read) if read is not None else {}
            self._rows[key] = _compact({**row, **arrays})
            if self.folder is not None:
                tensors |= {f"{key}|{name}": torch.from_numpy(value) for name, value in arrays.items()}
                lines.append({"key": key, **row})
        if self.folder is not None:
            self._write(lines, tensors)

    def _write(self, lines: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        assert self.folder is not None
        if tensors:
            digest = hashlib.sha256("".join(sorted(tensors)).encode()).hexdigest()[:16]
            name, partial = f"readings-{digest}.safetensors", self.folder / f"readings-{digest}.partial"
            save_file(tensors, partial)
            _sync(partial)
            partial.replace(self.folder / name)
            lines = [{**line, "readings_in": name} for line in lines]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with (self.folder / _FILE).open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            end = file.tell()
        if end - len(data) == self._at:  # nobody else wrote in between: our own lines need no reading
            self._at = end

    def _load(self, name: str, key: str) -> dict[str, Any]:
        from safetensors import safe_open

        assert self.folder is not None
        with safe_open(str(self.folder / name), framework="np") as file:
            mine = [one for one in file.keys() if one.startswith(f"{key}|")]  # noqa: SIM118 - not a mapping
            return {one.partition("|")[2]: file.get_tensor(one) for one in mine}

    def __repr__(self) -> str:
        return f"KeptRows({len(self)} rows{'' if self.folder is None else f' in {self.folder}'})"


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    """Token ids in four bytes each: a folder may hold a hundred thousand answers."""
    return {**row, "generated": np.array(row["generated"], dtype=np.int32)}


def _arrays(read: Readings) -> dict[str, np.ndarray]:
    found = {"positions": np.array(read.positions, dtype=np.int64)}
    for moment, sites in read.values.items():
        found |= {f"{moment} {site}": value.float().numpy() for site, value in sites.items()}
    return found


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
