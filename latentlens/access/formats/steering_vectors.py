"""The SteeringVector object of the steering-vectors package, without importing it.

    SteeringVector(layer_activations={block: (d,) tensor}, layer_type="decoder_block")

It is added to the output of a module of block N: the block itself, its attention or its MLP. The package (0.12) has
no file format of its own; pass through directions: `ll.write_directions(from_steering_vector(v), "v.safetensors")`.

Source: github.com/steering-vectors/steering-vectors (steering_vector.py, layer_matching.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from latentlens.access.formats.layers import directions_at, one_a_layer
from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_POINTS = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}


def from_steering_vector(vector: Any, *, lm: LensModel | None = None, name: str = "") -> list[Direction]:
    """Directions of a SteeringVector, one a layer.

    Args:
        vector: anything with `layer_activations` and `layer_type`.
        lm: the model; needed for "self_attn" and "mlp", because the output of those modules is what the block adds
            in most families, but not where a norm follows them (Gemma2, OLMo2).
    Raises: BadInput: no such object, another layer type, a module whose output is no site of this model.
    """
    layers, kind = getattr(vector, "layer_activations", None), getattr(vector, "layer_type", "decoder_block")
    if not isinstance(layers, dict) or not layers:
        raise BadInput(f"{type(vector).__name__} has no layer_activations: it is no SteeringVector")
    if kind not in _POINTS:
        raise BadInput(f"layer_type={kind!r}: outputs of norms are no site; read are {', '.join(_POINTS)}")
    point = _POINTS[kind]
    if point != "resid_post":
        _check_module(lm, point, kind, [int(layer) for layer in layers])
    tensors = {
        int(layer): torch.as_tensor(v).detach().to("cpu", torch.float32).reshape(-1) for layer, v in layers.items()
    }
    return directions_at(point, tensors, name or "steering vector", {"format": "steering-vectors", "layer_type": kind})


def to_steering_vector(directions: Sequence[Direction], cls: Callable[..., Any], *, lm: LensModel | None = None) -> Any:
    """A SteeringVector of directions at one point of their blocks.

    >>> from steering_vectors import SteeringVector            # doctest: +SKIP
    >>> with to_steering_vector(directions, SteeringVector).apply(model): ...            # doctest: +SKIP

    Args:
        cls: the class `steering_vectors.SteeringVector`.
        lm: as in `from_steering_vector`.
    Raises: BadInput: points that differ or that the package cannot hook, two directions at one block.
    """
    points = {d.site.point for d in directions}
    kind = next((k for k, p in _POINTS.items() if points == {p}), "decoder_block")
    layers = one_a_layer(directions, [_POINTS[kind]], f"a SteeringVector of layer_type {kind!r}")
    if kind != "decoder_block":
        _check_module(lm, _POINTS[kind], kind, list(layers))
    return cls(layer_activations={layer: d.vector.clone() for layer, d in layers.items()}, layer_type=kind)


def _check_module(lm: LensModel | None, point: str, kind: str, layers: list[int]) -> None:
    if lm is None:
        raise BadInput(f"layer_type={kind!r} names a module, and only a model tells what follows it: give lm=")
    for layer in layers:
        tap = lm.layout.tap(Site(point, layer))
        if "norm" in tap.name.rpartition(".")[2].lower() or tap.side != "out":
            raise BadInput(
                f"in {lm.name} what block {layer} adds is read at {tap.name}, not at the output of {kind}: a vector of "
                "one is no vector of the other"
            )
