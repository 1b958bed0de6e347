"""What a model is, as a key: two models with one key give the same activations for the same tokens."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SCHEMA = 1  # raise it when the same key would no longer mean the same values


class Identity:
    """Content key of a model, recomputed when its weights are changed in place or swapped.

    Args:
        model: the model.
        source: gives the digest of the files, or the hub commit, that it was loaded from; asked once, at first
            need, and taken as the key as long as nothing has touched the weights since. Without it the weights
            themselves are hashed.
        quantization: "int8", "nf4" or None.
    """

    def __init__(self, model: nn.Module, source: Callable[[], str | None] | None, quantization: str | None) -> None:
        self.model = model
        self.quantization = quantization
        self._source = source
        self._known: tuple[Any, str] | None = None
        self._source_stamp = self._stamp() if source else None
        self._lock = threading.Lock()

    def context(self, *, hash_weights: bool = True) -> dict[str, Any]:
        """Everything that changes the activations of given token ids, readable; interventions are part of a row's key.

        Args: hash_weights: without a cache nobody needs the digest of a 70B model; it is then given only if it is
            known already, and "not hashed" otherwise.
        """
        config = self.model.config
        return {
            "schema": SCHEMA,
            "model": type(self.model).__name__,
            "weights": self.weights() if hash_weights else self.known_weights(),
            "config": _digest(_clean_config(config)),
            "quantization": self.quantization or "",
            "dtype": _dtype_name(self.model),
            "attention": str(getattr(config, "_attn_implementation", "")),
            "adapters": _adapters(self.model),
            "training": self.model.training,
            "versions": {"transformers": _major_minor("transformers"), "torch": _major_minor("torch")}
            | ({"bitsandbytes": _major_minor("bitsandbytes")} if self.quantization else {}),
        }

    def weights(self) -> str:
        """Digest of the weights in force."""
        with self._lock:
            stamp = self._stamp()
            if self._known is None or self._known[0] != stamp:
                untouched = self._source is not None and stamp == self._source_stamp
                digest = self._source() if untouched and self._source else None
                self._known = (stamp, digest or weights_digest(self.model))
            return self._known[1]

    def known_weights(self) -> str:
        """Digest of the weights in force if it has been computed, else "not hashed"."""
        with self._lock:
            return self._known[1] if self._known is not None and self._known[0] == self._stamp() else "not hashed"

    def _stamp(self) -> tuple[Any, ...]:
        """Changes whenever a weight does: storage, in-place counter, and a few values of every tensor.

        The values catch edits through `.data`, which leave the counter alone (merging an adapter does).
        """
        marks, samples = [], []
        for name, tensor in _tensors(self.model):
            marks.append((name, tensor.data_ptr() if tensor.device.type != "meta" else 0, tensor._version))
            if tensor.device.type != "meta" and tensor.numel():
                flat = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // 8)][:9]
                samples.append(flat.to("cpu", torch.float32) if flat.dtype.is_floating_point else flat.cpu().float())
        digest = hashlib.sha256(torch.cat(samples).numpy().tobytes()).hexdigest() if samples else ""
        return (tuple(marks), digest)


def context_digest(context: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of a context."""
    return _digest(context)


def weights_digest(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters and buffers, hashed in parallel."""

    def one(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        head = f"{name}|{tuple(tensor.shape)}|{tensor.dtype}".encode()
        if tensor.device.type == "meta":  # offloaded: its bytes cannot be read here, so the key is never shared
            return uuid.uuid4().hex
        raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        return hashlib.sha256(head + raw.numpy().tobytes()).hexdigest()

    with ThreadPoolExecutor(max_workers=4) as pool:
        parts = list(pool.map(one, sorted(_tensors(model), key=lambda item: item[0])))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def files_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's weight files, hashed in parallel.

    Raises: FileNotFoundError: the folder holds no weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .safetensors weights")

    def one(file: Path) -> str:
        with file.open("rb") as handle:
            return f"{file.name}:{hashlib.file_digest(handle, 'sha256').hexdigest()}"

    with ThreadPoolExecutor(max_workers=4) as pool:
        return hashlib.sha256("|".join(pool.map(one, files)).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions for a manifest."""
    names = ("latentlens", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "safetensors")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    # Non-persistent buffers (rotary frequencies) change activations too, so buffers are all taken.
    return [*model.named_parameters(), *model.named_buffers()]


def _clean_config(config: Any) -> dict[str, Any]:
    """The configuration without the path it was loaded from, which says nothing about the values."""
    values = config.to_dict()
    for key in ("_name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype"):
        values.pop(key, None)
    return values


def _dtype_name(model: nn.Module) -> str:
    names = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return "+".join(names)


def _adapters(model: nn.Module) -> list[str]:
    """State of PEFT layers: which adapters are active, and whether they are switched off, which changes no weight."""
    layers = (m for m in model.modules() if hasattr(m, "_disable_adapters"))
    return sorted({f"{getattr(m, 'active_adapters', '')} off={m._disable_adapters}" for m in layers})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _major_minor(package: str) -> str:
    return ".".join(version(package).split(".")[:2])
