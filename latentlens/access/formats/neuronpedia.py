"""Neuronpedia's vectors: the JSON of a feature, of a vector, or of an upload.

    GET  /api/feature/...  {"modelId", "layer": "6-res-jb", "index", "vector": [...], "hookName": "blocks.6.hook_...",
                            "vectorLabel", "vectorDefaultSteerStrength"}
    POST /api/vector/new   {"modelId", "layerNumber": 6, "hookType": "hook_resid_pre", "vector": [...], "vectorLabel",
                            "vectorDefaultSteerStrength"}; the answer holds {"vector": {..., "values": [...]}}

`hookName` is TransformerLens' spelling, so the site is never guessed: "6-res-jb" is the input of block 6 while
"6-gemmascope-res-16k" is the output. Uploads are taken at `hook_resid_pre` only.

Source: github.com/hijohnnylin/neuronpedia (api/vector/new/route.ts, lib/utils/neuron-vector.ts, table Neuron) and
github.com/hijohnnylin/neuronpedia-python (neuronpedia/np_vector.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlens.access.formats.layers import model_name, numbers
from latentlens.access.transformer_lens import hook_name
from latentlens.errors import BadInput
from latentlens.values.directions import Direction, as_site
from latentlens.values.sites import BLOCK_POINTS, Site

_STRENGTH = 10.0  # Neuronpedia's own default


def read_neuronpedia(path: Path, data: Any, point: str | None) -> list[Direction]:
    """The vectors of one record or a list of records.

    Raises: BadInput: no vector, no `hookName` and no `point`. SiteNotFound: a hook that is no site of latentlens.
    """
    records = data if isinstance(data, list) else [data]
    if not records:
        raise BadInput(f"{path} is an empty list")
    return [_direction(path, record, point) for record in records]


def write_neuronpedia(directions: Sequence[Direction], path: Path, model: str | None) -> None:
    """Write a record (a list of records for several directions) that can also be uploaded if it is at `resid_pre`.

    Raises: BadInput: no direction, a centred frame, a site without a block.
    """
    if not directions:
        raise BadInput("no direction to write for Neuronpedia")
    name = model_name(directions, model, "a Neuronpedia vector")
    records = [_record(direction, name) for direction in directions]
    path.write_text(json.dumps(records[0] if len(records) == 1 else records))


def _direction(path: Path, record: Any, point: str | None) -> Direction:
    if isinstance(record, Mapping) and isinstance(record.get("vector"), Mapping):
        record = record["vector"]  # the answer of /api/vector/new and /api/vector/get
    if not isinstance(record, Mapping):
        raise BadInput(f"{path} holds {type(record).__name__}, not a Neuronpedia record")
    values = _first(record, "vector", "values")
    if not values:
        raise BadInput(
            f"{path} has no vector (keys: {', '.join(map(str, record))}): Neuronpedia stores one for uploaded vectors "
            "only; for an SAE latent take the decoder row of its SAE"
        )
    vector = numbers(values, f"{path}: the vector")
    source = {"format": "neuronpedia", "file": path.name}
    for key, spellings in {
        "model": ("modelId", "model_id"),
        "source_id": ("layer", "source"),
        "index": ("index",),
        "strength": ("vectorDefaultSteerStrength", "defaultSteerStrength", "default_steer_strength"),
    }.items():
        found = _first(record, *spellings)
        if found is not None:
            source[key] = found
    label = str(_first(record, "vectorLabel", "label") or "")
    return Direction(vector, _site(path, record, point), label, "raw", source)


def _site(path: Path, record: Mapping[str, Any], point: str | None) -> Site:
    hook = _first(record, "hookName", "hook_name")
    number, kind = record.get("layerNumber"), record.get("hookType")
    if hook is None and number is not None and kind is not None:
        hook = f"blocks.{number}.hook_{str(kind).removeprefix('hook_').replace('-', '_')}"
    if hook is not None:
        return as_site(str(hook))
    block = re.match(r"\d+", str(_first(record, "layer", "source") or ""))
    if point in BLOCK_POINTS and block is not None:
        return Site(point, int(block[0]))
    raise BadInput(f"{path} has no hookName, so its site is unknown: say point='resid_pre' or point='resid_post'")


def _record(direction: Direction, model: str) -> dict[str, Any]:
    site = direction.site
    if site.block is None or direction.frame != "raw":
        raise BadInput(f"a Neuronpedia vector lies in a block, in the raw frame: {direction} does not")
    record: dict[str, Any] = {
        "modelId": model,
        "layer": str(direction.source.get("source_id", site.block)),
        "hookName": hook_name(site),
        "vector": direction.vector.tolist(),
        "vectorLabel": direction.name,
        "vectorDefaultSteerStrength": direction.source.get("strength", _STRENGTH),
        "hasVector": True,
    }
    if "index" in direction.source:
        record["index"] = direction.source["index"]
    if site.point == "resid_pre":
        record |= {"layerNumber": site.block, "hookType": "hook_resid_pre"}
    return record


def _first(record: Mapping[str, Any], *keys: str) -> Any:
    return next((record[key] for key in keys if record.get(key) is not None), None)
