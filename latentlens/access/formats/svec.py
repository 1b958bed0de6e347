"""AISteer360's `.svec`: JSON with one (K, d) matrix a layer.

    {"model_type": "llama", "directions": {"14": [[...]]}, "explained_variances": {"14": .3}, ...}

K = 1 is a direction (CAA, CAST). K > 1 is something else, which the file does not say: positions (ActAdd), a plane
(angular steering) or heads (ITI); those are refused. Nor does it say the side of the block: the estimators default to
the OUTPUT of block N and CAA adds there, while CAST adds the same vector to the INPUT of block N. `resid_post` is
assumed; `point="resid_pre"` says otherwise.

Source: aisteer360/algorithms/state_control/_common/steering_vector.py (save, load) and caa/control.py,
cast/control.py, core/internals/capture.py (github.com/IBM/AISteer360).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlens.access.formats.layers import directions_at, model_name, numbers, one_a_layer, stem
from latentlens.errors import BadInput
from latentlens.values.directions import Direction

POINTS = ("resid_post", "resid_pre")


def read_svec(path: Path, data: Any, point: str) -> list[Direction]:
    """The directions of an `.svec`, one a layer.

    Raises: BadInput: no `directions`, several rows a layer, per-head vectors, layers that are no numbers.
    """
    if point not in POINTS:
        raise BadInput(f"point={point!r}: the layers of an .svec are {' or '.join(POINTS)}")
    if not isinstance(data, dict) or not isinstance(data.get("directions"), dict):
        raise BadInput(f"{path} has no object 'directions': it is no .svec of AISteer360")
    vectors = {}
    for layer, rows in data["directions"].items():
        if not layer.isdigit():
            raise BadInput(f"{path}: layer {layer!r} is no block index")
        matrix = numbers(rows, f"{path}: layer {layer}")
        matrix = matrix[None] if matrix.ndim == 1 else matrix  # as AISteer360 reads its older files
        if matrix.ndim != 2 or len(matrix) != 1 or data.get("head_dim") is not None:
            raise BadInput(
                f"{path}: layer {layer} is {tuple(matrix.shape)}, not one direction: several rows are positions "
                "(ActAdd), a plane (angular steering) or heads (ITI), and the file does not say which"
            )
        vectors[int(layer)] = matrix[0]
    source = {"format": "svec", "file": path.name}
    if data.get("model_type"):
        source["model"] = str(data["model_type"])
    found = directions_at(point, vectors, stem(path), source)
    variances = data.get("explained_variances") or {}
    return [_with_variance(d, variances.get(str(d.site.block))) for d in found]


def write_svec(directions: Sequence[Direction], path: Path, model: str | None) -> None:
    """Write one direction a block as `.svec`.

    Raises: BadInput: not one direction a block, or not all on the same side of their blocks.
    """
    points = [p for p in POINTS if all(d.site.point == p for d in directions)] or list(POINTS[:1])
    layers = one_a_layer(directions, points, "an .svec")
    data: dict[str, Any] = {
        "model_type": model_name(directions, model, "an .svec"),
        "directions": {str(layer): [d.vector.tolist()] for layer, d in layers.items()},
    }
    variances = {str(layer): d.source["explained_variance"] for layer, d in layers.items()
                 if "explained_variance" in d.source}  # fmt: skip
    if variances:
        data["explained_variances"] = variances
    path.write_text(json.dumps(data))


def _with_variance(direction: Direction, variance: Any) -> Direction:
    if variance is None:
        return direction
    source = {**direction.source, "explained_variance": float(variance)}
    return Direction(direction.vector, direction.site, direction.name, direction.frame, source)
