"""Labels and groups of rows of activations, read and checked once for every probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.sites import Site


def classes_of(labels: Any, n_rows: int) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """One class number a row, and the names of the classes in sorted order.

    Raises: BadInput: not one label a row, NaN, or of another kind. TooFewExamples: one class.
    """
    found = np.asarray(labels.tolist() if hasattr(labels, "tolist") else list(labels))
    if found.shape != (n_rows,):
        raise BadInput(
            f"labels of shape {found.shape} for {n_rows} rows of activations: give one label a row. Where a text "
            "has several rows, np.asarray(labels)[acts.labels['text']] repeats its label"
        )
    if found.dtype.kind not in "biufU":
        raise BadInput(f"labels must be bool, int or str, not {found.dtype}")
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise BadInput(f"{int(np.isnan(found).sum())} of {n_rows} labels are NaN: drop those rows (acts.rows(mask))")
    kinds, numbers = np.unique(found, return_inverse=True)
    if len(kinds) == 1:
        raise TooFewExamples(f"all {n_rows} labels are {kinds[0].item()!r}: a probe needs two classes")
    return numbers.ravel(), tuple(str(k.item()) for k in kinds)


def binary_labels(labels: Any, n_rows: int) -> tuple[NDArray[np.bool_], tuple[str, str]]:
    """True for the larger of two labels, and (name of label 0, name of label 1).

    Raises: BadInput: more than two labels, and as `classes_of`.
    """
    numbers, names = classes_of(labels, n_rows)
    if len(names) != 2:
        shown = ", ".join(repr(name) for name in names[:5])
        raise BadInput(f"{len(names)} distinct labels ({shown}...): this probe is binary. Compare: labels == one")
    return numbers == 1, (names[0], names[1])


def group_codes(what: str, values: Any, n_rows: int) -> NDArray[np.intp]:
    """Equal values get equal codes, counted from 0; None makes every row its own group.

    Raises: BadInput: not one a row.
    """
    if values is None:
        return np.arange(n_rows)
    found = list(values)
    if len(found) != n_rows:
        raise BadInput(f"{len(found)} {what} for {n_rows} rows of activations: give one a row")
    # A dictionary, because groups may be tuples or of mixed kinds.
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(v, len(numbers)) for v in found], dtype=np.intp)


def finite_rows(acts: Activations, site: Site) -> Tensor:
    """Values at one site, (n_rows, d), float32 (float64 stays), on the CPU.

    Raises: BadInput: rows that are no vectors. NonFiniteActivations: NaN or infinity.
    """
    values = acts[site]
    if values.ndim != 2:
        raise BadInput(f"{site} has rows of shape {tuple(values.shape[1:])}: a linear probe reads rows of shape (d,)")
    x = values.detach().to("cpu")
    x = x if x.dtype == torch.float64 else x.float()
    bad = ~x.isfinite().all(dim=1)
    if bool(bad.any()):
        raise NonFiniteActivations(
            f"{int(bad.sum())} of {len(x)} rows at {site} hold NaN or infinity (first: row {int(bad.int().argmax())}). "
            "Drop them with acts.rows(mask) after finding out why: float16 overflows above 65504"
        )
    return x
