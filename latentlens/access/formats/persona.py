"""Persona vectors: a pickled `.pt` with one tensor, converted once, on request only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from latentlens.access.formats.layers import directions_at, stem
from latentlens.errors import BadInput, UnsafeFile
from latentlens.values.directions import Direction

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


def convert_persona_pt(
    path: str | Path,
    *,
    lm: LensModel | None = None,
    last: Literal["final_norm", "resid_post", "drop"] = "final_norm",
) -> list[Direction]:
    """Read a persona vector file, `{trait}_response_avg_diff.pt`: one tensor (L + 1, d) over `hidden_states`.

        row 0            the embeddings, input of block 0                  resid_pre[0]
        row k, 0 < k < L output of block k - 1                             resid_post[k-1]
        row L            output of block L - 1 AFTER the final norm        see `last`

    The persona code steers with row k at the output of block k - 1, also for k = L, where the vector was measured
    behind the norm but is added in front of it. Rows that are zero are left out: the embedding of the last prompt
    token, for one, is the same on both sides. The vectors keep their length (they are not unit vectors).

    `torch.load(weights_only=True)` opens the file: no code in it can run. Save the result with `ll.write_directions`
    and forget the pickle.

    Args:
        path: the `.pt` file.
        lm: checks that the rows are its blocks plus one and that the width is its own.
        last: where row L goes: "final_norm" (what it was measured on), "resid_post" (where the persona code adds it)
            or "drop".

    Returns: one Direction a row, in the order of the rows.
    Raises: UnsafeFile: anything but one plain tensor. BadInput: no such file, another shape, another model.
    Source: github.com/safety-research/persona_vectors (generate_vec.py stacks hidden_states[0..L]; eval_persona.py
        steers with layer_idx = layer - 1); read in the copies dxnlp/persona_vectors. arXiv 2507.21509.
    """
    path = Path(path)
    if last not in ("final_norm", "resid_post", "drop"):
        raise BadInput(f"last={last!r}: allowed are 'final_norm', 'resid_post' and 'drop'")
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    rows = _one_tensor(path)
    if rows.ndim != 2 or rows.shape[0] < 2 or not rows.is_floating_point():
        raise BadInput(f"{path} holds {rows.dtype} {tuple(rows.shape)}: a persona vector is (blocks + 1, d), floating")
    n_blocks = rows.shape[0] - 1
    if lm is not None and (n_blocks, rows.shape[1]) != (lm.layout.n_blocks, lm.layout.d_model):
        raise BadInput(
            f"{path} has {n_blocks} + 1 rows of width {rows.shape[1]}; {lm.name} has {lm.layout.n_blocks} blocks and "
            f"d={lm.layout.d_model}"
        )
    name, source = stem(path), {"format": "persona", "file": path.name, "method": "persona vector"}
    found: list[Direction] = []
    if rows[0].any():
        found += directions_at("resid_pre", {0: rows[0]}, name, {**source, "row": 0})
    for k in range(1, n_blocks + 1):
        if not rows[k].any() or (k == n_blocks and last == "drop"):
            continue
        about = {**source, "row": k}
        if k == n_blocks:
            about["measured at"] = "final_norm"
        if k == n_blocks and last == "final_norm":
            found.append(Direction(rows[k], "final_norm", name, "raw", about))  # pyright: ignore[reportArgumentType]
        else:
            found += directions_at("resid_post", {k - 1: rows[k]}, name, about)
    if not found:
        raise BadInput(f"{path}: all rows are zero")
    return found


def _one_tensor(path: Path) -> Tensor:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the restricted loader refuses, and what is no torch file at all
        raise UnsafeFile(f"{path} is not one tensor saved by torch, and nothing else is opened: {error}") from None
    if type(loaded) is not Tensor or loaded.layout != torch.strided or loaded.device.type != "cpu":
        raise UnsafeFile(f"{path} holds {type(loaded).__name__}, not one plain tensor; nothing else is converted")
    return loaded.detach().to(torch.float32) if loaded.is_floating_point() else loaded
