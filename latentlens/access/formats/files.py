"""Read and write directions in any format: the format follows from the suffix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.access.formats.gguf import read_gguf, write_gguf
from latentlens.access.formats.neuronpedia import read_neuronpedia, write_neuronpedia
from latentlens.access.formats.svec import read_svec, write_svec
from latentlens.access.formats.tensors import read_tensors, write_tensors
from latentlens.errors import BadInput, UnsafeFile
from latentlens.values.directions import Direction

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

FORMATS = {".safetensors": "safetensors", ".gguf": "gguf", ".svec": "svec", ".json": "neuronpedia"}
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
_AFTER_NORM = "the last block's vector was probably measured behind the final norm (hidden_states[-1])"


def read_directions(
    path: str | Path, format: str | None = None, *, lm: LensModel | None = None, point: str | None = None
) -> list[Direction]:
    """Directions of a file, at the sites that its format means.

        safetensors    latentlens' own: any sites, frames and names
        gguf           repeng's control vectors; layer N is the output of block N
        svec           AISteer360; layer N is the output of block N unless `point` says otherwise
        neuronpedia    JSON of a feature or vector, or a list of them; the site is its hookName

    Zero vectors are left out. Pickles (persona `.pt`) are never opened here: see `ll.convert_persona_pt`.

    Args:
        path: the file.
        format: one of the above; by default what the suffix says (.json is Neuronpedia's).
        lm: the model they are meant for: checks width and blocks, and notes in `source["caution"]` of GGUF and svec
            vectors of the last block that those tools measure it behind the final norm but add it in front.
        point: "resid_pre" or "resid_post", where the file does not say: svec, and Neuronpedia without hookName.

    Raises: UnsafeFile: a pickle. BadInput: unknown format, unreadable content, another width or block than `lm` has.
    """
    path = Path(path)
    kind = _format(path, format)
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    if point is not None and kind in ("safetensors", "gguf"):
        raise BadInput(f"point={point!r}: a {kind} file says itself where its vectors are")
    if kind == "safetensors":
        found = read_tensors(path)
    elif kind == "gguf":
        found = read_gguf(path)
    elif kind == "svec":
        found = read_svec(path, _json(path), point or "resid_post")
    else:
        found = read_neuronpedia(path, _json(path), point)
    return found if lm is None else [_fits(path, kind, direction, lm) for direction in found]


def write_directions(
    directions: Direction | Sequence[Direction],
    path: str | Path,
    format: str | None = None,
    *,
    model: str | None = None,
) -> Path:
    """Write directions so that another tool reads them. The formats are those of `read_directions`.

    The vectors are written as they are, at their own length. What a format cannot say is an error, not a guess: only
    safetensors and Neuronpedia hold several vectors at one block, only safetensors a centred frame.

    Args:
        directions: one or several.
        path: where to; its suffix names the format if `format` does not.
        model: what the file says of its model: the family ("llama") in GGUF and svec, the model id ("gpt2-small") on
            Neuronpedia. By default the `source["model"]` that the directions share.

    Returns: the path.
    Raises: BadInput: unknown format, sites that the format has no words for, two directions for one layer, no model.
    """
    path = Path(path)
    kind = _format(path, format)
    chosen = [directions] if isinstance(directions, Direction) else list(directions)
    if not all(isinstance(d, Direction) for d in chosen):
        raise BadInput("give ll.Direction objects, one or several")
    if kind == "safetensors":
        write_tensors(chosen, path)
    elif kind == "gguf":
        write_gguf(chosen, path, model)
    elif kind == "svec":
        write_svec(chosen, path, model)
    else:
        write_neuronpedia(chosen, path, model)
    return path


def _format(path: Path, given: str | None) -> str:
    if given is not None and given not in FORMATS.values():
        raise BadInput(f"format={given!r}: known are {', '.join(FORMATS.values())}")
    if path.suffix.lower() in _PICKLES:
        raise UnsafeFile(
            f"{path} is a kind of file that can execute code when it is opened; latentlens does not. For a persona "
            "vector (.pt holding one tensor) there is ll.convert_persona_pt"
        )
    found = given or FORMATS.get(path.suffix.lower())
    if found is None:
        raise BadInput(f"{path.name}: no format has the suffix {path.suffix!r}; known are {', '.join(FORMATS)}")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is no JSON: {error}") from None


def _fits(path: Path, kind: str, direction: Direction, lm: LensModel) -> Direction:
    layout, site = lm.layout, direction.site
    if site.block is not None and site.block >= layout.n_blocks:
        raise BadInput(f"{path} has a vector at {site}; {lm.name} has {layout.n_blocks} blocks")
    if direction.vector.numel() != layout.width(site):
        raise BadInput(
            f"{path} has vectors of width {direction.vector.numel()}; {site} of {lm.name} has {layout.width(site)}"
        )
    if kind in ("gguf", "svec") and site.point == "resid_post" and site.block == layout.n_blocks - 1:
        return replace(direction, source={**direction.source, "caution": _AFTER_NORM})
    return direction
