"""latentlens' own file: safetensors with every direction's description in the JSON header."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from latentlens.errors import BadInput, CacheVersion, UnsafeFile
from latentlens.values.directions import Direction, as_site

_SCHEMA = 1


def read_tensors(path: Path) -> list[Direction]:
    """What `write_tensors` or `Direction.save` wrote, in the order written.

    Raises: UnsafeFile: no safetensors. BadInput: no directions in it. CacheVersion: written by a newer version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if "direction" in header:
                return [Direction.load(path)]
            if "directions" not in header:
                raise BadInput(f"{path} has no directions in its header: they were not written by latentlens")
            about = json.loads(header["directions"])
            if about["schema"] > _SCHEMA:
                raise CacheVersion(f"{path} has schema {about['schema']}, this version reads up to {_SCHEMA}")
            return [
                Direction(file.get_tensor(str(i)), as_site(d["site"]), d["name"], d["frame"], d["source"])
                for i, d in enumerate(about["items"])
            ]
    except SafetensorError as error:
        raise UnsafeFile(f"{path} is no safetensors file: {error}") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInput(f"{path} has a header that cannot be read: {error!r}") from None


def write_tensors(directions: Sequence[Direction], path: Path) -> None:
    """Write any directions: several at one site, centred ones, every width.

    Raises: BadInput: no direction.
    """
    from safetensors.torch import save_file

    if not directions:
        raise BadInput("no direction to write")
    items = [{"site": str(d.site), "name": d.name, "frame": d.frame, "source": dict(d.source)} for d in directions]
    about = json.dumps({"schema": _SCHEMA, "items": items})
    save_file({str(i): d.vector for i, d in enumerate(directions)}, path, {"directions": about})
