"""What all figures share: colours, bands, bars, labels that stay text, and the frame.

Backgrounds are transparent and inks are mid-grey, so a figure reads on a light and on a dark page.
Colours are those of Okabe and Ito, told apart with any colour vision; grey is kept for controls. Their purple is grey
to a deuteranope, so ours is darker (`tests/test_colours.py` looks at all of them through simulated eyes).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from latentlens.values.results import Estimate
from latentlens.values.visible import visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#A23C82"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)
CONTROL = "#8A9099"
INK = "#7C828B"
GRID = "rgba(128,134,142,0.22)"
#: Scales of heat maps are opaque, so that a cell looks the same on any page: one hue by lightness, two for signs.
SEQUENTIAL = ((0.0, "#23303f"), (0.25, "#2b5570"), (0.5, "#4d87a0"), (0.75, "#a3bfae"), (1.0, "#fbe9a9"))
DIVERGING = ((0.0, "#0072B2"), (0.25, "#6aaad0"), (0.5, "#eceef0"), (0.75, "#eaa070"), (1.0, "#D55E00"))
#: Early to late, for points on any background.
TIME = ((0.0, BLUE), (0.5, "#8ba0a6"), (1.0, ORANGE))


def band(
    figure: Figure, x: Sequence[float], of: Sequence[Estimate], colour: str, alpha: float, name: str, first: bool
) -> None:
    """Interval as a filled band; a single place gets a short bar of the same ink.

    Args:
        figure: what the band is added to.
        x: places, in order.
        of: the estimate at every place.
        colour: `#rrggbb`.
        alpha: opacity of the fill.
        name: in the legend; empty for none.
        first: show it in the legend (once, where one band is drawn in several pieces).
    """
    x = list(x)
    low, high = [e.low for e in of], [e.high for e in of]
    if len(x) == 1:
        x, low, high = [x[0] - 0.12, x[0] + 0.12], low * 2, high * 2
    figure.add_scatter(
        x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=faint(colour, alpha),
        line={"width": 0}, mode="lines", hoverinfo="skip", name=name, legendgroup=name or None, showlegend=first,
    )  # fmt: skip


def faint(colour: str, alpha: float) -> str:
    """`#rrggbb` with an opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def bars(of: Sequence[Estimate], colour: str) -> dict[str, Any]:
    """Intervals as error bars, for a trace's `error_y`."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value for e in of],
        "arrayminus": [e.value - e.low for e in of],
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def safe(text: str) -> str:
    """Plotly reads a small HTML in its labels; a label must not become markup, nor run on for ever."""
    text = visible(text)
    return escape(text if len(text) <= 60 else text[:59] + "…", quote=False)


def finish(figure: Figure, title: str, subtitle: str) -> Figure:
    """Title, subtitle, axes, legend and font of every figure. Both texts are read as HTML by plotly: `safe` first."""
    axis = {"gridcolor": GRID, "linecolor": INK, "zeroline": False, "ticks": "outside", "tickcolor": GRID,
            "ticklen": 4, "title": {"standoff": 10, "font": {"size": 13}}}  # fmt: skip
    figure.update_xaxes(**axis, showgrid=False, showline=True)
    figure.update_yaxes(**axis, showline=False)
    figure.update_layout(
        template="none", height=460, margin={"l": 64, "r": 52, "t": 92, "b": 104}, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        title={"text": f"<b>{title}</b>", "x": 0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top",
               "font": {"size": 17},
               "subtitle": {"text": subtitle, "font": {"size": 12, "color": INK}}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GRID, "activecolor": INK},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"},
    )  # fmt: skip
    return figure


def heat(
    z: Any, x: Sequence[Any], y: Sequence[Any], *, signed: bool, title: str, largest: float | None = None, **more: Any
) -> dict[str, Any]:
    """Keywords of a heat map: opaque cells, a slim colour bar, zero in the middle of a signed scale.

    Args:
        z: (len(y), len(x)), NaN for empty cells.
        x: labels of columns. y: labels of rows.
        signed: two hues around zero instead of one.
        title: of the colour bar.
        largest: where the scale ends; by default the largest |z|.
        more: further keywords of plotly's Heatmap.
    """
    import numpy as np

    finite = np.abs(np.asarray(z, dtype=float))
    top = largest or (float(np.nanmax(finite)) if np.isfinite(finite).any() else 1.0) or 1.0
    bar = {
        "title": {"text": title, "side": "top", "font": {"size": 12}},
        "thickness": 10,
        "outlinewidth": 0,
        "len": 0.9,
    }
    return {
        "z": z, "x": list(x), "y": list(y), "zmin": -top if signed else 0.0, "zmax": top, "xgap": 1, "ygap": 1,
        "colorscale": [list(stop) for stop in (DIVERGING if signed else SEQUENTIAL)], "colorbar": bar,
        "hoverongaps": False, "hoverinfo": "text", **more,
    }  # fmt: skip


def cut(text: str, length: int) -> str:
    """A token as a label of at most so many characters: line ends marked, hidden characters written out, then safe."""
    shown = visible(text.replace("\n", "⏎"))
    return safe(shown if len(shown) <= length else f"{shown[: length - 1]}…") or "∅"


def level(figure: Figure, y: float, dash: str = "dot", **place: Any) -> None:
    """A thin horizontal line. Args: place: row and col of a panel."""
    figure.add_hline(y=y, line={"color": INK, "width": 1, "dash": dash}, **place)


def words_below(figure: Figure, words: Sequence[str]) -> None:
    """Tokens as the labels of columns 0, 1, ...: hidden characters written out, long ones cut, slanted when many."""
    figure.update_xaxes(
        tickvals=list(range(len(words))), ticktext=[cut(word, 14) for word in words],
        tickangle=0 if len(words) <= 12 else -60, tickfont={"size": 12, "family": "ui-monospace, Menlo, monospace"},
    )  # fmt: skip
