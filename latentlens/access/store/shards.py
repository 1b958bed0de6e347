"""The file format: one commit is one safetensors file whose name is the digest of its header.

    <sha256 of the header>.safetensors
        8 bytes     length of the header
        header      JSON. `__metadata__` says which sequence and selection every row belongs to and holds
                    one sha256 per 64 KiB of every tensor
        tensors     one (rows, width) block per site, contiguous, so one site is read without the others

The name vouches for the header and the header for the bytes. So a file alone rebuilds its part of the
index, a random read hashes only the chunks that it touches, and nothing but the bytes that were written is
ever returned. Any safetensors reader opens these files; nothing in them can execute.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.store.cache_keys import RowKey, Selection, count_rows
from latentlens.errors import BadInput, CacheCorrupt, CacheError, CacheReadOnly, CacheVersion

SCHEMA = 1
CHUNK = 1 << 16  # small enough that one last-token row out of a long text costs little hashing
MAX_HEADER = 100_000_000  # what the safetensors library accepts
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Rows are moved as unsigned integers, which keeps every bit (NaN payloads, fp8) and needs no arithmetic.
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# -- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """A shard in memory, named and digested, ready to be written."""

    name: str
    header: bytes
    payload: list[memoryview]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(block.nbytes for block in self.payload)


def draft(context: str, description: dict[str, Any], rows: Sequence[tuple[RowKey, Selection, Tensor]]) -> Draft:
    """Lay rows out by site, digest them and name the result by its content.

    Raises: BadInput: a tensor that does not fit its selection. CacheError: too many rows for one header.
    """
    groups: dict[tuple[str, str, torch.dtype, int], list[tuple[str, str, Tensor]]] = {}
    for key, selection, value in rows:
        value = _checked(key, selection, value)
        group = (key.site, selection.pool, value.dtype, value.shape[1])
        groups.setdefault(group, []).append((key.sequence, selection.text, value))

    tables: dict[tuple[tuple[str, str], ...], int] = {}  # sites captured together share one list of rows
    tensors: dict[str, Any] = {}
    about: list[dict[str, Any]] = []
    payload: list[memoryview] = []
    offset = 0
    # Wide elements first keeps every block aligned without holes, as the format demands.
    for (site, pool, dtype, width), members in sorted(groups.items(), key=lambda item: -item[0][2].itemsize):
        # numpy copies each row once; torch.cat of hundreds of half-precision pieces took ten times as long
        block = np.concatenate([value.view(SIGNED[dtype.itemsize]).numpy() for _, _, value in members])
        data = memoryview(block.data).cast("B")
        table = tables.setdefault(tuple((sequence, text) for sequence, text, _ in members), len(tables))
        shape = [len(block), width]
        tensors[str(len(about))] = {
            "dtype": NAMES[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + data.nbytes],
        }
        about.append({"site": site, "pool": pool, "table": table, "chunks": digests(data).hex()})
        payload.append(data)
        offset += data.nbytes

    metadata = {
        "schema": SCHEMA,
        "context": context,
        "description": description,
        "tables": list(tables),
        "tensors": about,
    }
    text = json.dumps({"__metadata__": {"latentlens": json.dumps(metadata)}, **tensors}).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CacheError(
            f"{len(rows)} rows make a header of {len(text)} bytes; at most {MAX_HEADER}: put fewer at once"
        )
    header = len(text).to_bytes(8, "little") + text
    return Draft(hashlib.sha256(header).hexdigest(), header, payload)


def write(shard: Draft, shards: Path, step: Callable[[str], None]) -> Path:
    """Write a shard durably: temporary file, fsync, rename, fsync of the folder. All or nothing.

    Raises: CacheError: no room, with the bytes needed and free. CacheReadOnly: the folder cannot be written.
    """
    final = path_of(shards, shard.name)
    temporary = final.parent / f".{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        made = not final.parent.exists()
        final.parent.mkdir(parents=True, exist_ok=True)
        require_room(shards, shard.size)
        with open(temporary, "xb") as file:
            file.write(shard.header)
            for block in shard.payload:
                file.write(block[: block.nbytes // 2])
                file.flush()
                step("writing")
                file.write(block[block.nbytes // 2 :])
            step("written")
            file.flush()
            os.fsync(file.fileno())
        step("synced")
        os.replace(temporary, final)
        step("renamed")
        sync_folder(final.parent)
        if made:
            sync_folder(shards)
        step("folder synced")
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        raise explained(error, shards, shard.size) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return final


def require_room(folder: Path, needed: int) -> None:
    """Raise CacheError when the disk of a folder cannot hold `needed` more bytes."""
    free = free_bytes(folder)
    if needed > free:
        raise CacheError(errno.ENOSPC, f"no room for activations: {needed} bytes needed, {free} bytes free at {folder}")


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that a folder, existing or not, lies on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def explained(error: OSError, folder: Path, needed: int) -> CacheError:
    """Turn an error of the operating system into the cache's own, with what to do about it."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CacheReadOnly(error.errno, f"the cache folder {folder} cannot be written ({error.strerror})")
    return CacheError(
        error.errno,
        f"activations were not stored ({error.strerror}): {needed} bytes needed, {free_bytes(folder)} bytes free "
        f"at {folder}. Free some space, lower max_gib or choose another folder.",
    )


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder durable; systems that cannot open folders do it by themselves."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def path_of(shards: Path, name: str) -> Path:
    """Where a shard lies. Names are digests: no text of a user's ever becomes a path."""
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise CacheCorrupt(f"{name[:80]!r} is not the name of a shard")
    return shards / name[:2] / f"{name}.safetensors"


def digests(data: memoryview) -> bytes:
    """sha256 of every chunk, one after the other."""
    return b"".join(hashlib.sha256(data[at : at + CHUNK]).digest() for at in range(0, data.nbytes, CHUNK))


def _checked(key: RowKey, selection: Selection, value: Tensor) -> Tensor:
    value = value.detach()
    if value.dim() == 1 and selection.n_rows == 1:
        value = value.unsqueeze(0)
    fits = value.dim() == 2 and value.shape[0] == selection.n_rows and value.shape[1] > 0
    if not fits or value.dtype not in NAMES or (selection.pool and value.dtype != torch.float32):
        allowed = "float32" if selection.pool else f"one of {', '.join(str(dtype)[6:] for dtype in NAMES)}"
        raise BadInput(
            f"{key.site}: a tensor of shape {tuple(value.shape)} and {value.dtype} for {selection.n_rows} rows "
            f"(pool {selection.pool!r}); it must be (rows, width) of {allowed}"
        )
    return value.cpu()


# -- reading --------------------------------------------------------------------------------------


@dataclass
class Block:
    """One tensor of a shard: rows of one site, memory-mapped; chunks are verified when first touched."""

    site: str
    pool: str
    dtype: torch.dtype
    shape: tuple[int, int]
    offset: int
    chunks: bytes
    bases: dict[tuple[str, str], int]
    verified: np.ndarray = field(repr=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.shape[1] * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.shape[0] * self.row_bytes


class Shard:
    """An open shard: header checked against the name, tensors mapped but not yet read.

    Raises: FileNotFoundError. CacheCorrupt: not the bytes that were written. CacheVersion: newer schema.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name.removesuffix(".safetensors")
        with open(path, "rb") as file:
            self.signature = signature(os.fstat(file.fileno()))
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise CacheCorrupt(f"{path}: no shard, or cut off inside its header ({size} bytes)")
            text = file.read(length)
            digest = hashlib.sha256(length.to_bytes(8, "little") + text).hexdigest()
            if digest != self.name:
                raise CacheCorrupt(f"{path}: the header has digest {digest[:16]}..., not the one in the file's name")
            try:
                header = json.loads(text)
                about = json.loads(header["__metadata__"]["latentlens"])
                if about["schema"] > SCHEMA:
                    raise CacheVersion(
                        f"{path} has schema {about['schema']}, this latentlens reads up to {SCHEMA}: "
                        "upgrade latentlens or choose another cache folder"
                    )
                self.context: str = about["context"]
                self.description: dict[str, Any] = about["description"]
                self.blocks = _blocks(header, about, 8 + length)
                expected = max(block.offset + block.nbytes for block in self.blocks)
            except (LookupError, ValueError, TypeError) as error:
                raise CacheCorrupt(f"{path}: a safetensors file, but no shard of the cache ({error!r})") from error
            if size != expected:
                raise CacheCorrupt(f"{path}: {size} bytes instead of {expected}")
            self.size = size
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def unchanged(self) -> bool:
        """Whether the file is still the one that was opened: reading a map of a file cut short would crash."""
        try:
            return signature(os.stat(self.path)) == self.signature
        except OSError:
            return False

    def entries(self) -> Iterator[tuple[int, str, str, str, str, int]]:
        """What the index should say: (tensor, site, pool, sequence, stored selection, first row)."""
        for number, block in enumerate(self.blocks):
            for (sequence, stored), base in block.bases.items():
                yield number, block.site, block.pool, sequence, stored, base

    def bits(self, number: int) -> np.ndarray:
        """The rows of one tensor as a read-only map of unsigned integers, unverified."""
        block = self.blocks[number]
        flat = np.frombuffer(
            self.map, BITS[block.dtype.itemsize], count=block.shape[0] * block.shape[1], offset=block.offset
        )
        return flat.reshape(block.shape)

    def verify(self, number: int, rows: np.ndarray | range | None = None) -> None:
        """Compare the chunks that hold these rows (all by default) with their digests, each once per process.

        Raises: CacheCorrupt: bytes differ from what was written.
        """
        block = self.blocks[number]
        if isinstance(rows, range):
            low, high = rows.start * block.row_bytes // CHUNK, (rows.stop * block.row_bytes - 1) // CHUNK
            todo = low + np.flatnonzero(~block.verified[low : high + 1])
        elif rows is not None:
            touched = np.zeros(len(block.verified), bool)
            low = rows * block.row_bytes // CHUNK
            high = ((rows + 1) * block.row_bytes - 1) // CHUNK
            for further in range(block.row_bytes // CHUNK + 2):
                touched[np.minimum(low + further, high)] = True
            todo = np.flatnonzero(touched & ~block.verified)
        else:
            todo = np.flatnonzero(~block.verified)
        view = memoryview(self.map)
        end = block.offset + block.nbytes
        for chunk in todo.tolist():
            at = block.offset + chunk * CHUNK
            digest = hashlib.sha256(view[at : min(at + CHUNK, end)]).digest()
            if digest != block.chunks[32 * chunk : 32 * chunk + 32]:
                raise CacheCorrupt(f"{self.path}: bytes of {block.site} differ from what was written (chunk {chunk})")
            block.verified[chunk] = True


def signature(stat: os.stat_result) -> tuple[int, ...]:
    """What tells one file from another put in its place."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _blocks(header: dict[str, Any], about: dict[str, Any], start: int) -> list[Block]:
    found = []
    bases: dict[tuple[int, str], dict[tuple[str, str], int]] = {}
    tables = [tuple((sequence, stored) for sequence, stored in table) for table in about["tables"]]
    for number, one in enumerate(about["tensors"]):
        tensor = header[str(number)]
        table = tables[one["table"]]
        if (one["table"], one["pool"]) not in bases:
            base, places = 0, {}
            for row in table:
                places[row] = base
                base += count_rows(one["pool"], row[1])
            bases[one["table"], one["pool"]] = places
        chunks = bytes.fromhex(one["chunks"])
        first, last = tensor["data_offsets"]
        if not 0 <= first < last or len(chunks) != 32 * -(-(last - first) // CHUNK):
            raise ValueError("tensor sizes do not fit")
        found.append(
            Block(
                site=one["site"],
                pool=one["pool"],
                dtype=DTYPES[tensor["dtype"]],
                shape=tuple(tensor["shape"]),
                offset=start + first,
                chunks=chunks,
                bases=bases[one["table"], one["pool"]],
                verified=np.zeros(len(chunks) // 32, bool),
            )
        )
        if found[-1].nbytes != last - first:
            raise ValueError("tensor sizes do not fit")
    return found
