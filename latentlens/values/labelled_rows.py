"""Labels and groups of rows of activations, read and checked once for every probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

NonFinite = Literal["raise", "skip", "flag"]


class Usable(NamedTuple):
    """What a policy on NaN and infinity leaves: which rows, (n,) bool, and which sites are given up, with the number of
    their rows that are not finite.
    """

    rows: NDArray[np.bool_]
    broken: dict[Site, int]

    @property
    def told(self) -> dict[str, Any]:
        """The same for a manifest."""
        return {"rows left out": int((~self.rows).sum()), "sites given up": {str(s): n for s, n in self.broken.items()}}

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return bool(self.rows.all()) and not self.broken


def usable(acts: Activations, sites: Sequence[Site], policy: NonFinite) -> Usable:
    """Rows and sites to work with where some values are NaN or infinite.

        raise   all of them: whoever reads them next refuses (`finite_rows`)
        skip    rows that are finite at every site, so that all sites keep the same rows
        flag    every row, at the sites where all rows are finite

    Raises: BadInput: another policy. NonFiniteActivations: the policy leaves no row, or no site.
    """
    if policy not in get_args(NonFinite):
        raise BadInput(f"nonfinite={policy!r}: allowed are {', '.join(get_args(NonFinite))}")
    every = np.ones(len(acts), dtype=bool)
    if policy == "raise":
        return Usable(every, {})
    finite = {site: acts[site].detach().isfinite().flatten(1).all(1).cpu().numpy() for site in sites}
    if policy == "skip":
        kept = np.logical_and.reduce([every, *finite.values()])
        if len(kept) and not kept.any():
            raise NonFiniteActivations(f"all {len(kept)} rows hold NaN or infinity at one of {len(sites)} sites")
        return Usable(kept, {})
    broken = {site: int((~rows).sum()) for site, rows in finite.items() if not rows.all()}
    if sites and len(broken) == len(sites):
        raise NonFiniteActivations(f"every one of {len(sites)} sites has rows with NaN or infinity: nonfinite='skip'")
    return Usable(every, broken)


def taken(values: Any, rows: NDArray[np.bool_]) -> Any:
    """The chosen ones of a list or array with one value a row; None stays None.

    Raises: BadInput: not one a row.
    """
    if values is None:
        return None
    listed = list(values)
    if len(listed) != len(rows):
        raise BadInput(f"{len(listed)} values for {len(rows)} rows of activations: give one a row")
    return [value for value, keep in zip(listed, rows.tolist(), strict=True) if keep]


def finite_sets(others: Mapping[str, tuple[Activations, Any]] | None, policy: NonFinite) -> Any:
    """Other data without the rows that hold NaN or infinity, where such rows are skipped."""
    if others is None or policy != "skip":
        return others
    kept = {name: usable(acts, acts.sites, policy).rows for name, (acts, _) in others.items()}
    return {name: (acts.rows(kept[name]), taken(list(labels), kept[name])) for name, (acts, labels) in others.items()}


def tokens_of(tokens: Activations | None, rows: NDArray[np.bool_]) -> Activations | None:
    """Tokens of the chosen texts, numbered anew; tokens that hold NaN or infinity are left out with the others."""
    if tokens is None or rows.all():
        return tokens
    of = np.asarray(tokens.labels["text"]).astype(int)
    kept = tokens.rows(rows[of] & usable(tokens, tokens.sites, "skip").rows)
    number = np.cumsum(rows) - 1
    return replace(kept, labels={**kept.labels, "text": number[np.asarray(kept.labels["text"]).astype(int)]})


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
