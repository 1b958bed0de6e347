"""Where along a text, and how deep: token x layer maps, and tokens coloured by what they hold.

token_layers(acts, direction)       where along the text and the depth is it?
highlight(acts, direction)          which tokens hold it?  (HTML)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentlens.errors import BadInput
from latentlens.values.activations import Activations
from latentlens.values.codes import Codes
from latentlens.values.directions import Direction
from latentlens.values.highlights import Highlights, highlights_of
from latentlens.values.results import ProbeSweep, SiteProbe
from latentlens.values.sites import Site
from latentlens.views.figures.style import finish, heat, safe, words_below

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


_LOG_ODDS = 5.0  # full colour: far from the tokens that it was fitted on, a probe is often sure of anything


def token_layers(acts: Activations, by: Any, *, text: int = 0, last: int = 40) -> Figure:
    """A number for every token and block of one text, as a map.

    Args:
        acts: at several sites, all positions (`where="all"`).
        by: what is read. A Direction: the cosine of each state with it, the same vector at every block. A ProbeSweep:
            the log odds of each block's own probe. "norm": the length of the states.
        text: which input. last: how many tokens at its end are shown.
    Raises: BadInput: another `by`, no such text, or sites that do not fit.
    """
    import plotly.graph_objects as go

    mine = _text(acts, text)
    order = np.argsort(mine.labels["position"], kind="stable")[-last:]
    mine = mine.rows(order)
    sites = [s for s in mine.sites if not isinstance(by, ProbeSweep) or s in by.sites]
    if not sites:
        raise BadInput("the activations hold none of the sites that were probed")
    z = np.stack([_read(mine[site], site, by) for site in sites])
    words, position = [str(w) for w in mine.labels["token"]], mine.labels["position"]
    title, unit, said = _about(by)
    hover = [
        [f"<b>{safe(w)}</b> at {p}, {site}<br>{unit} {v:.3f}" for w, p, v in zip(words, position, row)]
        for site, row in zip(sites, z)
    ]
    names = [str(site) for site in sites]
    signed, largest = not isinstance(by, str), _LOG_ODDS if isinstance(by, ProbeSweep) else None
    cells = heat(z, range(len(words)), names, signed=signed, title=unit, largest=largest, hovertext=hover)
    figure = go.Figure(go.Heatmap(**cells))
    words_below(figure, words)
    finish(figure, title, said)
    left = 24 + 7.5 * max(map(len, names))
    size = {"l": left, "r": 90, "t": 92, "b": 56 if len(words) <= 12 else 116}
    return figure.update_layout(height=230 + 24 * len(sites), margin=size)


def highlight(given: Activations | Codes, by: Any, *, site: Site | str | None = None, name: str = "") -> Highlights:
    """Tokens coloured by how much of something each of them holds.

    Args:
        given: activations at all positions, or SAE codes.
        by: for activations a Direction (the projection on its unit vector) or one probe of a sweep (log odds); for
            codes a latent.
        site: where to read the activations; that of the direction by default.
    Raises: BadInput: something else; SiteNotFound: not captured there.
    """
    if isinstance(given, Codes):
        if isinstance(by, bool) or not hasattr(by, "__index__"):
            raise BadInput(f"by={by!r}: codes are coloured by a latent, e.g. highlight(codes, 17)")
        values = given.dense([int(by)])[:, 0].float().cpu().numpy()
        return highlights_of(given.labels, values, name or f"latent {int(by)}", "activation")
    if not isinstance(by, (Direction, SiteProbe)):
        raise BadInput(f"by={type(by).__name__}: activations are coloured by a Direction or one probe (sweep.best())")
    states = given[by.site if site is None else site]
    if isinstance(by, SiteProbe):
        return highlights_of(given.labels, by.logits(states).numpy(), name or f"probe {by.name}".strip(), "log odds")
    if states.ndim != 2:
        raise BadInput(f"{by.site} has several heads a row: capture a site with rows of shape (d,)")
    label = name or by.name or f"direction at {by.site}"
    return highlights_of(given.labels, by.project(states).numpy(), label, "projection on the unit vector")


def _text(acts: Activations, text: int) -> Activations:
    missing = {"text", "position", "token"} - set(acts.labels)
    if missing:
        raise BadInput(f"this map needs the labels text, position and token; {', '.join(sorted(missing))} are missing")
    keep = acts.labels["text"] == text
    if not keep.any():
        raise BadInput(f"no text {text}: the activations hold {sorted(set(acts.labels['text'].tolist()))[:20]}")
    return acts.rows(keep)


def _read(states: torch.Tensor, site: Site, by: Any) -> np.ndarray:
    if states.ndim != 2:
        raise BadInput(f"{site} has several heads a row: capture sites with rows of shape (d,)")
    if isinstance(by, ProbeSweep):
        return by[site].logits(states).numpy()
    if isinstance(by, Direction):
        return (by.project(states) / states.float().norm(dim=-1).clamp(min=1e-12)).numpy()
    if by == "norm":
        return states.float().norm(dim=-1).numpy()
    raise BadInput(f"by={by!r}: give a Direction, a ProbeSweep or 'norm'")


def _about(by: Any) -> tuple[str, str, str]:
    """Title, name of the number, and subtitle."""
    if isinstance(by, ProbeSweep):
        negative, positive = (safe(c) for c in by.classes)
        return (
            f"Where is “{positive}” read along the text?",
            "log odds",
            f"above zero: {positive}; below: {negative}; full colour from ±5",
        )
    if isinstance(by, Direction):
        chance = 1.96 * by.vector.numel() ** -0.5
        said = f"Direction of {by.site}, the same vector at every block; random directions stay within ±{chance:.2f}."
        return f"Where is “{safe(by.name or str(by.site))}” along the text?", "cosine", said
    return "How long are the states?", "|h|", "A token whose states are far longer than the others hides them."
