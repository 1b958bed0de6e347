"""From a name to a model: the one file that knows `transformers`' loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from latentlens.access.identity import files_digest
from latentlens.access.quantisation import keep_unpacked, pack, refuse_unpackable
from latentlens.errors import BadInput, CompiledModel, UnsafeFile

Quantization = Literal["int8", "nf4"] | None

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, its name, and where its weights came from."""

    model: nn.Module
    tokenizer: Any
    name: str
    source: Callable[[], str | None] | None
    quantization: Quantization
    trust_remote_code: bool = False


def load_model(
    model: Any,
    *,
    revision: str | None,
    dtype: Any,
    quantization: Quantization,
    device_map: Any,
    tokenizer: Any,
    attn: str | None,
    trust_remote_code: bool,
) -> Loaded:
    """Resolve whatever `ll.load` was given. Only safetensors weights are opened.

    Raises: BadInput: unknown dtype, quantization or name, or a model that needs remote code.
        UnsafeFile: the weights are pickled. CompiledModel.
    """
    if quantization not in (None, "int8", "nf4"):
        raise BadInput(f"quantization={quantization!r}: allowed are None, 'int8' and 'nf4'")
    if isinstance(model, nn.Module):
        return _given(model, tokenizer, trust_remote_code, dtype=dtype, quantization=quantization, attn=attn)
    if not isinstance(model, (str, Path)):
        raise BadInput(
            f"cannot load {type(model).__name__}: give a hub id, a local folder, a model object, or nothing at all"
        )
    folder = Path(model).expanduser()
    name = folder.name if folder.is_dir() else str(model)
    where = str(folder) if folder.is_dir() else str(model)
    if not folder.is_dir() and (str(model).startswith((".", "/", "~")) or str(model).count("/") > 1):
        raise BadInput(f"there is no folder {model}")
    if folder.is_dir():
        _refuse_pickles(folder)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    loaded = _from_pretrained(where, options, _dtype(dtype), quantization, device_map, attn)
    commit = getattr(loaded.config, "_commit_hash", None)
    source: Callable[[], str | None] | None
    if folder.is_dir():
        source = _files_source(folder)
    else:
        source = (lambda: f"hub:{model}@{commit}") if commit else None
    return Loaded(loaded, _tokenizer(tokenizer or where, options), name, source, quantization, trust_remote_code)


def new_cache(model: nn.Module) -> Callable[[], Any] | None:
    """A maker of empty key-value caches, or None for models that keep another kind of state."""
    from transformers import DynamicCache

    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr]
    if not getattr(model, "_supports_cache_class", True) or getattr(model, "_is_stateful", False):
        return None
    return lambda: DynamicCache(config=config)


def _files_source(folder: Path) -> Callable[[], str | None]:
    """Digest of the weight files, or None once they are no longer the ones that were loaded."""

    def state() -> list[tuple[str, int, int]]:
        return sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.glob("*.safetensors"))

    loaded = state()
    return lambda: f"files:{files_digest(folder)}" if state() == loaded else None


def _given(model: nn.Module, tokenizer: Any, trust_remote_code: bool, **unused: Any) -> Loaded:
    """A model object, used as it is."""
    for option, value in unused.items():
        if value is not None:
            raise BadInput(f"{option}= applies when latentlens loads the model; this one is loaded already")
    if hasattr(model, "_orig_mod"):
        raise CompiledModel("give the model before torch.compile (model._orig_mod): compiled code ignores hooks")
    if not hasattr(model, "config"):
        raise BadInput(f"{type(model).__name__} has no config: latentlens reads Hugging Face causal LMs")
    if model.training:
        model.eval()  # dropout would make activations random and the cache meaningless
    if isinstance(tokenizer, (str, Path)):
        tokenizer = _tokenizer(tokenizer, {"trust_remote_code": trust_remote_code})
    quantization: Quantization = None
    if getattr(model, "is_loaded_in_8bit", False):
        quantization = "int8"
    elif getattr(model, "is_loaded_in_4bit", False):
        quantization = "nf4"
        refuse_unpackable(model)
    return Loaded(model, tokenizer, type(model).__name__, None, quantization)


def _from_pretrained(
    where: str, options: dict[str, Any], dtype: Any, quantization: Quantization, device_map: Any, attn: str | None
) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

    if device_map is None and torch.cuda.is_available():
        device_map = {"": torch.cuda.current_device()}
    kwargs = {**options, "dtype": dtype, "device_map": device_map, "use_safetensors": True}
    if attn is not None:
        kwargs["attn_implementation"] = attn
    if quantization == "int8":
        kwargs["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif quantization == "nf4":
        compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_use_double_quant=True,  # without it, saving after a CPU forward wrote wrong scales
        )
    try:
        try:
            model = AutoModelForCausalLM.from_pretrained(where, **kwargs)
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            model = AutoModelForImageTextToText.from_pretrained(where, **kwargs)
    except (OSError, ValueError) as error:
        raise _explained(where, options, error) from error
    if quantization == "nf4":
        keep_unpacked(model)
        pack(model)
    return model.eval()


def _tokenizer(given: Any, options: dict[str, Any]) -> Any:
    if not isinstance(given, (str, Path)):
        return given
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(given), **options)
    except (OSError, ValueError) as error:
        raise BadInput(f"no tokenizer found at {given}: pass tokenizer= (a folder, a hub id or an object)") from error


def _explained(where: str, options: dict[str, Any], error: Exception) -> BadInput:
    text = str(error)
    if "trust_remote_code" in text and not options["trust_remote_code"]:
        return BadInput(
            f"{where} runs Python code that comes with the model. If you trust its authors, "
            "load it with trust_remote_code=True."
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return BadInput(f"cannot load {where}: {first} Give a hub id that this machine can reach, or a local folder.")


def _refuse_pickles(folder: Path) -> None:
    """Weights must be safetensors: `.bin` and `.pt` files can execute code when read."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} holds no config.json: it is not a saved Hugging Face model")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickled:
            raise UnsafeFile(
                f"{folder} has pickled weights only ({', '.join(pickled[:3])}), which can execute code when loaded. "
                "Convert them to safetensors where you trust them (model.save_pretrained does)."
            )
        raise BadInput(f"{folder} holds no .safetensors weights")


def _dtype(dtype: Any) -> Any:
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in _DTYPES:
        return _DTYPES[dtype.removeprefix("torch.")]
    raise BadInput(f"dtype={dtype!r}: allowed are {', '.join(_DTYPES)} or a torch.dtype")
