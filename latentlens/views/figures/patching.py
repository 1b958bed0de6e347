"""patching_map(found): where is the effect carried?   carriers(found): by which parts, and more than by chance?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.values.mediation import IndirectEffect, Mediation
from latentlens.values.results import Estimate
from latentlens.values.sites import BLOCK_POINTS
from latentlens.views.figures.style import BLUE, CONTROL, GRID, INK, bars, finish, heat, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STREAM = {"resid_pre", "resid_post"}
_WRITTEN_CELLS = 260  # up to so many cells, numbers stand in them


def patching_map(found: Mediation) -> Figure:
    """Share of the total effect that each place carries: positions or heads down, blocks across.

    Blue below zero, orange above; a number stands in a cell whose interval leaves zero out. With one kind of site, the
    same map for the controls stands beside it on the same scale: the states of an unrelated prompt, and random vectors
    of equal norm. With several kinds (attention, MLP, ...) there is one map for each, and controls show on hover.

    Args: found: from `lm.indirect_effect` or `mediation.effects`, every mediator one part at one site with a block.
    Raises: BadInput: mediators that are several parts, or without a block.
    """
    from plotly.subplots import make_subplots

    effects = [e for e in found if len(e.mediators) == 1 and e.mediators[0].site.block is not None]
    if not effects or len(effects) < len(found):
        raise BadInput("a patching map has one part at one block in every cell: use carriers(found) for the others")
    points = sorted({e.mediators[0].site.point for e in effects}, key=BLOCK_POINTS.index)
    stream = set(points) <= _STREAM
    panels: list[tuple[str, list[IndirectEffect], str]] = (
        [("", effects, "pooled")]
        if stream or len(points) == 1
        else [(p, [e for e in effects if e.mediators[0].site.point == p], "pooled") for p in points]
    )
    if len(panels) == 1:
        panels[0] = ("the other prompt's state", effects, "pooled")
        for name, title in (("unrelated", "an unrelated prompt's"), ("random", "random, equal norm")):
            if all(getattr(e, name) is not None for e in effects):
                panels.append((title, effects, name))
    rows = list(dict.fromkeys(_row(e, effects) for e in effects))
    largest = max((abs(e.pooled.value) for e in effects if math.isfinite(e.pooled.value)), default=1.0) or 1.0
    figure = make_subplots(
        1, len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[title for title, _, _ in panels]
    )
    for k, (_, members, name) in enumerate(panels):
        columns = sorted({e.mediators[0].site for e in members}, key=lambda site: site.depth)
        z = np.full((len(rows), len(columns)), np.nan)
        words = [["" for _ in columns] for _ in rows]
        hover = [["" for _ in columns] for _ in rows]
        for e in members:
            i, j = rows.index(_row(e, effects)), columns.index(e.mediators[0].site)
            value: Estimate = getattr(e, name)
            z[i, j], hover[i][j] = value.value, _hover(e)
            if not value.covers(0.0) and abs(value.value) >= 0.005 and len(effects) <= _WRITTEN_CELLS:
                words[i][j] = f"{value.value:.2f}".replace("0.", ".")
        labels = [_column(site, stream) for site in columns]
        keywords = heat(
            z, list(range(len(columns))), rows, signed=True, title="share",
            largest=max(0.1, largest), text=words, texttemplate="%{text}", textfont={"size": 10, "color": "#111"},
            hovertext=hover, showscale=k == len(panels) - 1,
        )  # fmt: skip
        figure.add_heatmap(**keywords, row=1, col=k + 1)
        step = max(1, round(len(labels) / 16))
        ticks = {"tickvals": list(range(0, len(labels), step)), "ticktext": labels[::step]}
        figure.update_xaxes(title="block", **ticks, row=1, col=k + 1)
    figure.update_yaxes(autorange="reversed", tickvals=rows, ticktext=[safe(row) for row in rows], automargin=True)
    finish(figure, "Where is the effect carried?", _subtitle(found))
    figure.update_annotations(font={"size": 12, "color": INK}, yshift=2)
    figure.update_layout(height=max(320, 170 + 26 * len(rows)), margin={"t": 108, "b": 56})
    figure.update_yaxes(showgrid=False)
    return figure


def carriers(found: Mediation, k: int = 20) -> Figure:
    """Share of the total effect of the mediators that carry most, each beside its controls.

    Args: found: as for `patching_map`; any mediators. k: how many, by size.
    """
    import plotly.graph_objects as go

    chosen = found.strongest(k)[::-1]
    names = [safe(e.name) for e in chosen]
    figure = go.Figure()
    controls = (("unrelated", "states of an unrelated prompt", "square-open", -0.18),
                ("random", "random change of equal norm", "diamond-open", 0.18))  # fmt: skip
    for name, title, symbol, aside in controls:
        held = [(i, value) for i, e in enumerate(chosen) if (value := getattr(e, name)) is not None]
        if held:
            figure.add_scatter(
                **_points([i + aside for i, _ in held], [v for _, v in held], CONTROL, symbol, 6), name=title,
                hovertext=[_hover(chosen[i]) for i, _ in held],
            )  # fmt: skip
    figure.add_scatter(
        **_points(list(range(len(chosen))), [e.pooled for e in chosen], BLUE, "circle", 9), name="swapped in",
        hovertext=[_hover(e) for e in chosen],
    )  # fmt: skip
    widest = max(
        abs(end) for e in chosen for end in (e.pooled.low, e.pooled.high, e.pooled.value) if math.isfinite(end)
    )
    for x in (0.0, 1.0) if widest > 0.6 else (0.0,):
        figure.add_vline(x=x, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="share of the total effect", zeroline=False)
    figure.update_yaxes(tickvals=list(range(len(chosen))), ticktext=names, automargin=True, gridcolor=GRID)
    many = f"The {len(chosen)} largest of {len(found)}. " if len(chosen) < len(found) else ""
    finish(figure, "Which parts carry the effect?", many + _subtitle(found))
    figure.update_layout(height=max(320, 190 + 24 * len(chosen)))
    return figure


def _points(y: list[float], of: list[Estimate], colour: str, symbol: str, size: int) -> dict[str, Any]:
    return {
        "x": [e.value for e in of], "y": y, "error_x": bars(of, colour), "mode": "markers", "hoverinfo": "text",
        "marker": {"color": colour, "symbol": symbol, "size": size},
    }  # fmt: skip


def _row(e: IndirectEffect, all_of: list[IndirectEffect]) -> str:
    """What distinguishes the rows of the map: the position, the part, or both."""
    one = e.mediators[0]
    positions = {other.mediators[0].at for other in all_of}
    parts = [one.part] if one.part else []
    return " at ".join([*parts, *([one.at] if len(positions) > 1 or not parts else [])])


def _column(site: Any, stream: bool) -> str:
    return "in" if stream and site.point == "resid_pre" else str(site.block)


def _hover(e: IndirectEffect) -> str:
    lines = [f"<b>{safe(e.name)}</b>", f"share {e.pooled.short}", f"effect {e.effect.short}"]
    more = (("mean of shares", e.normalised), ("direct effect", e.direct), ("unrelated prompt", e.unrelated),
            ("random, equal norm", e.random))  # fmt: skip
    lines += [f"{name} {value.short}" for name, value in more if value is not None]
    return "<br>".join([*lines, f"n = {e.pooled.n}"])


def _subtitle(found: Mediation) -> str:
    edited, other = ("corrupt", "clean") if found.mode == "denoising" else ("clean", "corrupt")
    dropped = f", {found.dropped} without an effect" if found.dropped else ""
    return (
        f"{found.mode.capitalize()} by {found.method}: the {edited} prompt with parts as in the {other} one. "
        f"n = {found.n} pairs{dropped}; total effect {found.total.short}."
    )
