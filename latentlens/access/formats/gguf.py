"""repeng's control vectors in GGUF, as llama.cpp reads them.

    general.architecture        "controlvector"
    controlvector.model_hint    the model family, "llama"
    controlvector.layer_count   number of vectors
    direction.N                 float32 (d,): added to the output of block N, N >= 1

Both count blocks from 0, but llama.cpp refuses a whole file that has `direction.0`; repeng trains layers 1 to L-1.

Source: repeng/extract.py (github.com/vgel/repeng: export_gguf, import_gguf); llama.cpp common/common.cpp
(common_control_vector_load_one) and src/llama-adapter.cpp (apply_to).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from latentlens.access.formats.layers import directions_at, model_name, one_a_layer, stem
from latentlens.errors import BadInput
from latentlens.values.directions import Direction

_ARCHITECTURE = "controlvector"


def read_gguf(path: Path) -> list[Direction]:
    """The control vectors of a GGUF file, at the outputs of their blocks.

    Half precision and quantised tensors are read as float32.

    Raises: BadInput: no readable GGUF, a GGUF of something else (a model), a layer that is no number.
    """
    gguf = _package()
    try:
        reader = gguf.GGUFReader(str(path))
        about = {key: reader.fields[key].contents() for key in reader.fields}
        tensors = [(t.name, np.array(gguf.dequantize(t.data, t.tensor_type))) for t in reader.tensors]
    except Exception as error:  # a foreign parser on foreign bytes: whatever it stumbles over
        raise BadInput(f"{path} is no readable GGUF file: {type(error).__name__}: {error}") from None
    architecture = about.get("general.architecture")
    if architecture != _ARCHITECTURE:
        raise BadInput(f"{path} is a GGUF of architecture {architecture!r}; a control vector says {_ARCHITECTURE!r}")
    vectors = {}
    for name, values in tensors:
        head, _, layer = name.partition(".")
        if head != "direction":
            continue
        if not layer.isdigit():
            raise BadInput(f"{path}: tensor {name!r} should be direction.N with a block index N")
        vectors[int(layer)] = torch.from_numpy(values.astype(np.float32))
    source: dict[str, Any] = {"format": "gguf", "file": path.name}
    if hint := about.get(f"{_ARCHITECTURE}.model_hint"):
        source["model"] = str(hint)
    return directions_at("resid_post", vectors, stem(path), source)


def write_gguf(directions: Sequence[Direction], path: Path, model: str | None) -> None:
    """Write block outputs as a control vector, the vectors at their own length (repeng's are of length 1).

    Raises: BadInput: not one `resid_post` direction a block, block 0 (llama.cpp would refuse the file).
    """
    gguf = _package()
    layers = one_a_layer(directions, ["resid_post"], "a GGUF control vector")
    if 0 in layers:
        raise BadInput("llama.cpp refuses a control vector file that has layer 0: leave resid_post[0] out")
    hint = model_name(directions, model, "a GGUF control vector")
    writer = gguf.GGUFWriter(str(path), _ARCHITECTURE)
    try:
        writer.add_string(f"{_ARCHITECTURE}.model_hint", hint)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(layers))
        for layer, direction in layers.items():
            writer.add_tensor(f"direction.{layer}", direction.vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise BadInput("GGUF files need the gguf package: pip install gguf (or latentlens[gguf])") from None
    return gguf
