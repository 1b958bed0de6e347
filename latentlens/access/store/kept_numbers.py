"""Numbers and tensors on disk under a digest of what they depend on, so that an experiment measures nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from latentlens.errors import CacheError


class KeptNumbers:
    """`kept.of(["budget", weights, prompts], measure)` measures once and remembers, across runs.

    One small file a value, written whole or not at all; two runs may share the folder.

    Raises: CacheError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.found, self.made = 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cannot keep numbers in {self.folder}: {error.strerror or error}") from error

    def of(self, key: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What is kept under the key (told apart by `str`), or else what `make` returns: anything that JSON holds.

        A file that cannot be read is measured again.
        """
        path = self.folder / f"{_digest(key)}.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            self.found += 1
            return value
        except (OSError, json.JSONDecodeError):
            self.made += 1
        value = make()
        self._write(path, json.dumps(value).encode())
        return value

    def tensor(self, key: Sequence[Any], make: Callable[[], Tensor]) -> Tensor:
        """The same for one tensor, as safetensors."""
        from safetensors import SafetensorError
        from safetensors.torch import load, save

        path = self.folder / f"{_digest(key)}.safetensors"
        try:
            value = load(path.read_bytes())["value"]
            self.found += 1
            return value
        except (OSError, KeyError, SafetensorError):
            self.made += 1
        value = make().contiguous()
        self._write(path, save({"value": value}))
        return value

    def _write(self, path: Path, raw: bytes) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_bytes(raw)
            partial.replace(path)
        except OSError as error:
            raise CacheError(f"cannot keep numbers in {self.folder}: {error.strerror or error}") from error


def _digest(key: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in key]).encode()).hexdigest()[:32]
