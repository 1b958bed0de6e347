"""States at one site as float64 rows, from activations, a tensor or an array, checked once for every estimator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.directions import Direction, as_site
from latentlens.values.sites import Site

# A centred row has a mean below this share of its length.
_CENTRED = 1e-3


@dataclass(frozen=True, eq=False)
class StateRows:
    """Rows of states at one site.

    values: (n, d), or (n, heads, d_head), float64, on the CPU. site: where they come from.
    model: the name of the model, where it is known.
    """

    values: Tensor
    site: Site
    model: str = ""

    def __len__(self) -> int:
        return len(self.values)


def state_rows(
    x: Any, site: Site | str | None = None, *, frame: str = "raw", heads: bool = False, what: str = "rows"
) -> StateRows:
    """Rows at one site.

    Args:
        x: Activations, or a tensor or array (n, d); one vector is one row.
        site: where the rows come from. Activations of one site need none; a tensor always does.
        frame: "raw", or "centred" where each row has lost its mean over d (only a tensor can).
        heads: rows of shape (heads, d_head) are wanted, those of the site `z`; otherwise they are laid side by side.
        what: what the rows are, for messages.

    Raises: BadInput: another shape, no site or several, or a frame that the rows contradict. SiteNotFound: not
        captured. NonFiniteActivations: NaN or infinity.
    """
    if frame not in ("raw", "centred"):
        raise BadInput(f"frame={frame!r}: allowed are raw and centred")
    model = ""
    if isinstance(x, Activations):
        model = str(x.about.get("model", ""))
        if frame != "raw":
            raise BadInput("activations are in the raw frame: leave frame= out, or hand in centred rows as a tensor")
        if site is None:
            if len(x.sites) != 1:
                held = ", ".join(map(str, x.sites)) or "none"
                raise BadInput(f"the activations hold {len(x.sites)} sites ({held}): say which one with site=")
            site = x.sites[0]
        values, site = x[site], next(s for s in x.expand(site))
    else:
        if site is None:
            raise BadInput(
                f"a tensor does not say where it comes from: give site=, for instance 'resid_post[4]' ({what})"
            )
        values, site = torch.as_tensor(x), as_site(site)
    values = values.detach().to("cpu", torch.float64)
    values = values[None] if values.ndim == 1 and not heads else values
    if not heads and values.ndim == 3 and site.point == "z":
        values = values.flatten(1)
    if values.ndim != (3 if heads else 2) or values.shape[-1] == 0:
        wanted = "(n, heads, d_head)" if heads else "(n, d)"
        raise BadInput(f"{what} at {site} have shape {tuple(values.shape)}: give {wanted}")
    bad = ~values.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        raise NonFiniteActivations(
            f"{int(bad.sum())} of {len(values)} {what} at {site} hold NaN or infinity (first: row "
            f"{int(bad.int().argmax())}): drop them after finding out why; float16 overflows above 65504"
        )
    if frame == "centred" and len(values):
        means, sizes = values.mean(-1).abs(), values.norm(dim=-1) / values.shape[-1] ** 0.5
        if bool((means > _CENTRED * sizes.clamp_min(1e-300)).any()):
            raise BadInput(
                f"frame='centred', but {what} at {site} have a mean over d: subtract it, or leave frame= out"
            )
    return StateRows(values, site, model)


def same_site(*parts: StateRows) -> Site:
    """The site that all parts share.

    Raises: BadInput: different sites or widths.
    """
    sites, shapes = {p.site for p in parts}, {tuple(p.values.shape[1:]) for p in parts}
    if len(sites) > 1:
        raise BadInput(f"rows of different sites: {', '.join(sorted(map(str, sites)))}")
    if len(shapes) > 1:
        raise BadInput(f"rows of different widths at {parts[0].site}: {sorted(shapes)}")
    return parts[0].site


def check_direction(direction: Direction, rows: StateRows, *, frame: str = "raw") -> None:
    """Refuse a direction of another width or frame than the rows.

    Raises: BadInput.
    """
    if direction.vector.numel() != rows.values.shape[-1]:
        raise BadInput(f"{direction} has {direction.vector.numel()} entries, the rows at {rows.site} "
                       f"{rows.values.shape[-1]}")  # fmt: skip
    if direction.frame != frame:
        raise BadInput(f"{direction} is in the {direction.frame} frame, the rows in the {frame} one: use to_raw()")


def row_labels(labels: Any, n_rows: int) -> list[Hashable]:
    """One label a row, as plain Python values.

    Raises: BadInput: not one a row, NaN, or labels that are no bool, number or text.
    """
    found = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(found) != n_rows:
        raise BadInput(
            f"{len(found)} labels for {n_rows} rows: give one a row. Where a text has several rows, "
            "np.asarray(labels)[acts.labels['text']] repeats its label"
        )
    for label in set(map(type, found)):
        if not issubclass(label, (bool, int, float, str)):
            raise BadInput(f"labels must be bool, number or text, not {label.__name__}")
    if any(label != label for label in found):
        raise BadInput(f"{sum(label != label for label in found)} of {n_rows} labels are NaN: drop those rows")
    return found


def two_sides(classes: Sequence[Hashable], positive: Hashable | None) -> tuple[list[Hashable], list[Hashable]]:
    """(labels of the positive side, labels of the negative side), from the labels seen.

    positive: one label, against all others; None: of two labels the larger (True, 1, the last in the alphabet).
    Raises: TooFewExamples: one side only. BadInput: no such label, or more than two without `positive`.
    """
    names = sorted(classes, key=lambda c: (isinstance(c, str), c))
    if len(names) < 2:
        raise TooFewExamples(f"rows of {len(names)} class(es) ({names}): a contrast needs rows on both sides")
    if positive is None:
        if len(names) > 2:
            raise BadInput(f"{len(names)} labels ({', '.join(map(repr, names[:6]))}): name one, positive=...")
        return names[1:], names[:1]
    if positive not in classes:
        raise BadInput(f"positive={positive!r} is not among the labels: {', '.join(map(repr, names[:6]))}")
    return [positive], [name for name in names if name != positive]
