"""bitsandbytes on this machine: does it compute, and which 4-bit layers does its fast path refuse? The one file that
imports it; loading goes through transformers.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from latentlens.errors import BadInput

#: On CPUs with AVX512-BF16 bitsandbytes repacks a weight (out, in) when it is first used: `in` in blocks of its own
#: size, `out` in blocks of 32. Another shape is a bare RuntimeError or AssertionError there.
_ROWS = 32
_FAST_PATH = "support_avx512bf16_for_cpu"


def faults() -> dict[str, str]:
    """Run one layer of every kind on the accelerator, or on the CPU without one.

    Returns: "int8" and "nf4", each with what went wrong; empty where nothing did.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)  # that a faster kernel is not there is no fault
    try:
        for kind in ("int8", "nf4"):
            try:
                states = torch.ones(1, 64, device=device)
                with torch.no_grad():
                    finite = bool(_layer(kind).to(device).eval()(states).isfinite().all())
                found[kind] = "" if finite else "a layer gave values that are not finite"
            except Exception as error:  # whatever a broken build raises is the finding
                found[kind] = f"{type(error).__name__}: {error}"
    finally:
        log.setLevel(level)
    return found


def _layer(kind: str) -> Any:
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    if kind == "int8":
        return Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    return Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")


def keep_unpacked(model: nn.Module) -> None:
    """Let the 4-bit layers of a model that was loaded here, and that cannot be packed, compute without packing.

    The values are those of the dequantised weights; only the fast path is left out, layer by layer.
    """
    for _, layer in _unpackable(model):
        setattr(layer, _FAST_PATH, False)


def pack(model: nn.Module) -> None:
    """Pack the other 4-bit layers of a CPU now, as their first use would: a model is then one thing from the start.

    Its key must not depend on whether something was computed already. Does nothing on an accelerator.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    for _, layer in _fast(model):
        state = getattr(layer.weight, "quant_state", None)
        if state is not None and not getattr(state, "packing_format_for_cpu", False):
            packed, layer.weight.quant_state = _convert_weight_packed_for_cpu(layer.weight.data, state)
            layer.weight.data = packed


def refuse_unpackable(model: nn.Module) -> None:
    """Refuse a model that came as an object and would fail in its first forward pass.

    Raises: BadInput: it has 4-bit layers on a CPU whose shape the fast path of bitsandbytes does not take.
    """
    for name, layer in _unpackable(model):
        raise BadInput(
            f"{name} is a 4-bit layer of {layer.in_features} inputs and {layer.out_features} outputs on a CPU, where "
            f"bitsandbytes takes multiples of {layer.weight.quant_state.blocksize} and {_ROWS}. Let latentlens load "
            'the model (ll.load(folder, quantization="nf4") computes such layers without packing), put it on a GPU, '
            f"or set {_FAST_PATH} = False on these layers."
        )


@contextlib.contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """4-bit layers that were packed for a CPU compute with their dequantised weights meanwhile.

    Through packed ones no gradient flows, and asking for a state dict unpacks them for good. Afterwards they are what
    they were, bit for bit. Does nothing on an accelerator.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    found: list[tuple[Any, Any, Any]] = []
    for _, layer in [*_fast(model)]:
        found.append((layer, layer.weight.data, layer.weight.quant_state))
        setattr(layer, _FAST_PATH, False)
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            state = copy.deepcopy(layer.weight.quant_state)  # is changed in place
            plain, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(layer.weight.data, state)
            layer.weight.data = plain
    try:
        yield
    finally:
        for layer, data, state in found:
            layer.weight.data, layer.weight.quant_state = data, state
            setattr(layer, _FAST_PATH, True)


def _unpackable(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Those of `_fast` whose shape the fast path does not take."""
    for name, layer in _fast(model):
        state = getattr(layer.weight, "quant_state", None)
        if state is None or getattr(state, "packing_format_for_cpu", False):
            continue
        if layer.in_features % state.blocksize or layer.out_features % _ROWS:
            yield name, layer


def _fast(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """4-bit layers on a CPU that take the fast path, with their names."""
    from bitsandbytes.nn.modules import Linear4bit

    layers: list[tuple[str, Any]] = [(name, one) for name, one in model.named_modules() if isinstance(one, Linear4bit)]
    for name, layer in layers:
        if layer.weight.device.type == "cpu" and getattr(layer, _FAST_PATH, False):
            yield name, layer
