"""What all figures share: colours, bands, bars, labels that stay text, and the frame.

Backgrounds are transparent and inks are mid-grey, so a figure reads on a light and on a dark page.
Colours are those of Okabe and Ito, told apart with any colour vision; grey is kept for controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from latentlens.values.results import Estimate
from latentlens.values.visible import visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)
CONTROL = "#8A9099"
INK = "#7C828B"
GRID = "rgba(128,134,142,0.22)"


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
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=f"rgba({red},{green},{blue},{alpha})",
        line={"width": 0}, mode="lines", hoverinfo="skip", name=name, legendgroup=name or None, showlegend=first,
    )  # fmt: skip


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
