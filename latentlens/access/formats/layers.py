"""Files that hold one vector a layer: from layer numbers to sites and back, with the checks they share.

    file                      layer N means                                    site
    repeng GGUF               output of block N (N >= 1 in llama.cpp)          resid_post[N]
    steering-vectors          output of block N                                resid_post[N]
    AISteer360 .svec          output of block N (not stored, see `svec`)       resid_post[N]
    persona .pt               hidden_states[N]: output of block N - 1          resid_post[N-1]
    Neuronpedia JSON          what `hookName` says                             any

repeng, AISteer360 and persona vectors are estimated on `hidden_states`, whose last entry is behind the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.sites import Site


def directions_at(point: str, vectors: Mapping[int, Tensor], name: str, source: Mapping[str, Any]) -> list[Direction]:
    """One direction a layer, ascending; layers whose vector is zero are left out (it points nowhere).

    Args: vectors: block index -> (d,). Raises: BadInput: no layer, different widths, a negative layer, only zeros.
    """
    if not vectors:
        raise BadInput(f"{name}: the file holds no vector")
    if min(vectors) < 0:
        raise BadInput(f"{name}: layer {min(vectors)} is no block index")
    same_width(vectors.values(), name)
    kept = {layer: vectors[layer] for layer in sorted(vectors) if vectors[layer].any()}
    if not kept:
        raise BadInput(f"{name}: all {len(vectors)} vectors are zero")
    return [Direction(v, Site(point, layer), name, "raw", {**source, "layer": layer}) for layer, v in kept.items()]


def one_a_layer(directions: Sequence[Direction], points: Sequence[str], what: str) -> dict[int, Direction]:
    """Block index -> direction, for a file that can say no more than that.

    Raises: BadInput: no direction, another point, a centred frame, two directions at one block, different widths.
    """
    if not directions:
        raise BadInput(f"no direction to write as {what}")
    found: dict[int, Direction] = {}
    for direction in directions:
        site = direction.site
        if site.point not in points or site.block is None:
            raise BadInput(f"{what} holds vectors at {' or '.join(points)}, not {site}: {_hint(site, points)}")
        if direction.frame != "raw":
            raise BadInput(f"{what} cannot say that {direction} is {direction.frame}: convert it to raw first")
        if site.block in found:
            raise BadInput(f"{what} holds one vector a layer, but {found[site.block]} and {direction} share one")
        found[site.block] = direction
    same_width((d.vector for d in directions), what)
    return dict(sorted(found.items()))


def same_width(vectors: Iterable[Tensor], what: str) -> int:
    """The width that all vectors share.

    Raises: BadInput: they differ, or one is no vector.
    """
    shapes = {tuple(v.shape) for v in vectors}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise BadInput(f"{what}: vectors of shapes {sorted(shapes)}; all must be (d,) with one d")
    return next(iter(shapes))[0]


def model_name(directions: Sequence[Direction], given: str | None, what: str) -> str:
    """The model that a file must name: the one given, or the one that all directions come from.

    Raises: BadInput: neither.
    """
    if given:
        return given
    known = {str(d.source["model"]) for d in directions if "model" in d.source}
    if len(known) != 1:
        raise BadInput(f"{what} names the model, and the directions say {sorted(known) or 'nothing'}: give model=")
    return known.pop()


def numbers(values: Any, what: str) -> Tensor:
    """A float32 tensor of a JSON list of numbers.

    Raises: BadInput: anything else, ragged lists, NaN and infinity.
    """
    try:
        tensor = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadInput(f"{what} is no list of numbers: {error}") from None
    if not torch.isfinite(tensor).all():
        raise BadInput(f"{what} has NaN or infinite entries (float32)")
    return tensor


def stem(path: Path) -> str:
    """File name without its suffix: what directions read from it are called."""
    return path.name.removesuffix(path.suffix)


def _hint(site: Site, points: Sequence[str]) -> str:
    if site.point == "resid_pre" and "resid_post" in points and site.block:
        return f"the input of block {site.block} is the output of block {site.block - 1}, resid_post[{site.block - 1}]"
    return "there is no equal site"
