"""Plans in files: one `.safetensors` with the tensors, and the rest as JSON in its header. No pickle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput, CacheVersion, UnsafeFile
from latentlens.values.directions import Direction
from latentlens.values.interventions import Described, Plan, as_plan
from latentlens.values.schedules import Schedule
from latentlens.values.sites import Site
from latentlens.values.where import Where

_SCHEMA = 1
_PLAIN: dict[str, type] = {kind.__name__: kind for kind in (Site, Where, Schedule)}


def save_plan(plan: Any, path: str | Path) -> Path:
    """Write a plan (an intervention or a list) to `path` with the suffix `.safetensors`, and return that path.

    SAEs are named by their fingerprint, not copied: give them to `load_plan` again.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    about = {"schema": _SCHEMA, "plan": [_encode(item, tensors) for item in as_plan(plan)]}
    path = Path(path).with_suffix(".safetensors")
    save_file(tensors or {"empty": torch.zeros(0)}, path, {"plan": json.dumps(about)})
    return path


def load_plan(path: str | Path, *, saes: Sequence[Any] = ()) -> Plan:
    """Read what `save_plan` wrote: equal interventions, with the same fingerprints.

    Args: saes: the SAEs that the plan edits, in any order.
    Raises: UnsafeFile: no plan of ours. CacheVersion: written by a newer version. BadInput: an SAE is missing.
    """
    from safetensors import SafetensorError, safe_open

    import latentlens.values.adaptive
    import latentlens.values.gates
    import latentlens.values.latent_patches
    import latentlens.values.latents
    import latentlens.values.operations
    import latentlens.values.replacements
    import latentlens.values.rotations  # noqa: F401 - they name the operations that a file may hold

    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["plan"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UnsafeFile(f"{path} is not a plan saved by latentlens: {error}") from None
    if about["schema"] > _SCHEMA:
        raise CacheVersion(f"{path} has plan schema {about['schema']}, this version reads up to {_SCHEMA}")
    return as_plan([_decode(item, tensors, {sae.fingerprint: sae for sae in saes}) for item in about["plan"]])


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Tensor):
        same = (name for name, one in tensors.items() if one.shape == value.shape and torch.equal(one, value))
        name = next(same, f"tensor{len(tensors)}")  # a direction that several interventions share is written once
        tensors.setdefault(name, value.detach().cpu().contiguous().clone())
        return {"is": "tensor", "name": name}
    if isinstance(value, Direction):
        own = {f.name: _encode(getattr(value, f.name), tensors) for f in fields(value) if f.name != "source"}
        return {"is": "Direction", "of": {**own, "source": dict(value.source)}}
    if isinstance(value, (Described, *_PLAIN.values())):
        own = {f.name: _encode(getattr(value, f.name), tensors) for f in fields(value)}  # type: ignore[arg-type]
        return {"is": type(value).__name__, "of": own}
    if isinstance(value, Mapping):
        return {"is": "mapping", "of": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_encode(v, tensors) for v in value]
    if isinstance(value, frozenset):
        return {"is": "set", "of": sorted(value)}
    return {"is": "sae", "fingerprint": value.fingerprint, "what": repr(value)}


def _decode(value: Any, tensors: Mapping[str, Tensor], saes: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, tensors, saes) for v in value)
    if not isinstance(value, dict):
        return value
    match value["is"]:
        case "tensor":
            return tensors[value["name"]]
        case "mapping":
            return {_decode(k, tensors, saes): _decode(v, tensors, saes) for k, v in value["of"]}
        case "set":
            return frozenset(value["of"])
        case "sae":
            if value["fingerprint"] not in saes:
                raise BadInput(f"the plan edits {value['what']}: give it as load_plan(..., saes=[sae])")
            return saes[value["fingerprint"]]
        case "Direction":
            own = {k: v if k == "source" else _decode(v, tensors, saes) for k, v in value["of"].items()}
            return Direction(**own)
    kind = _PLAIN.get(value["is"]) or Described.kinds.get(value["is"])
    if kind is None:
        raise UnsafeFile(f"the plan holds a {value['is']}, which this version does not know")
    takes = inspect.signature(kind).parameters  # a gate takes its site from what it holds
    return kind(**{name: _decode(v, tensors, saes) for name, v in value["of"].items() if name in takes})
