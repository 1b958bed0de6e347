"""trait_doses(found): what moves the trait, the vector alone? trait_monitor(panels): is it foretold by projections?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from latentlens.values.monitoring import Monitoring
from latentlens.values.results import Estimate
from latentlens.values.trait_doses import TraitDoses
from latentlens.views.figures.style import BLUE, CONTROL, INK, ORANGE, PURPLE, SERIES, band, bars, cut, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def trait_doses(found: TraitDoses) -> Figure:
    """Score of the trait over strengths, with random directions, other vectors and the prompt; fluency below.

    Blue: the vector, with its interval. Grey band: from the lowest to the highest end of the intervals of all random
    directions of equal norm. Orange, dotted: vectors of other traits. Purple, dashed: asked for in words, without an
    edit. Lower panel: nats a token of the answers under the unsteered model, of the vector and of random directions.

    Args: found: from `ll.trait_doses`.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06)
    x = list(found.strengths)
    if found.random:
        ends = [_envelope([curve[i] for curve in found.random]) for i in range(len(x))]
        name = f"{len(found.random)} random direction{'s' * (len(found.random) > 1)} of equal norm"
        band(figure, x, ends, CONTROL, 0.28, name, first=True)
        for curve in found.random:
            figure.add_scatter(
                x=x, y=[e.value for e in curve], mode="lines", line={"color": CONTROL, "width": 1},
                showlegend=False, hoverinfo="skip",
            )  # fmt: skip
    for i, (name, curve) in enumerate(found.other_vectors.items()):
        figure.add_scatter(
            x=x, y=[e.value for e in curve], mode="lines", line={"color": ORANGE, "width": 1.5, "dash": "dot"},
            name="vectors of other traits", legendgroup="others", showlegend=i == 0, hoverinfo="text",
            hovertext=[f"vector of {safe(name)} at {c:g}<br>{e.short}" for c, e in zip(x, curve)],
        )  # fmt: skip
    if found.prompted is not None:
        ends = [x[0], x[-1]]
        band(figure, ends, [found.prompted] * 2, PURPLE, 0.12, "", first=False)
        figure.add_scatter(
            x=ends, y=[found.prompted.value] * 2, mode="lines", line={"color": PURPLE, "dash": "dash", "width": 2},
            name="asked for in words", hoverinfo="text", hovertext=f"asked for in words<br>{found.prompted.short}",
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=[e.value for e in found.direction], mode="lines+markers", error_y=bars(found.direction, BLUE),
        line={"color": BLUE, "width": 2.5}, marker={"color": BLUE, "size": 8}, name="the vector", hoverinfo="text",
        hovertext=[f"<b>the vector at {c:g}</b><br>{e.short}" for c, e in zip(x, found.direction)],
    )  # fmt: skip
    below = (("random", found.random_nll, CONTROL), ("the vector", found.nll, BLUE))
    for name, curve, colour in below:
        figure.add_scatter(
            x=x, y=[e.value for e in curve], mode="lines+markers", error_y=bars(curve, colour), showlegend=False,
            line={"color": colour, "width": 2}, marker={"color": colour, "size": 5}, hoverinfo="text",
            hovertext=[f"{name} at {c:g}<br>{e.short} nats a token" for c, e in zip(x, curve)], row=2, col=1,
        )  # fmt: skip
    figure.update_xaxes(title=f"strength ({safe(found.unit)})", row=2, col=1)
    figure.update_yaxes(title=f"score of {safe(found.trait)}", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="nats a token", row=2, col=1)
    said = f"n = {found.n} answers a point; {found.direction[0].level:.0%} intervals, questions resampled."
    finish(figure, f"Does the vector move {safe(found.trait)}?", said)
    figure.update_layout(height=600, legend={"y": -0.16})
    return figure


def trait_monitor(panels: Mapping[str, Monitoring], *, score: str = "score of the answer") -> Figure:
    """Projection on the vector against the trait that was written, one panel a place where it was read.

    Colours: kinds of prompt, one marker an answer. Below each panel the correlation over all answers, and inside a kind
    of prompt (what is left once the kinds are known).

    Args: panels: where it was read -> what `persona_monitoring.monitor` found. score: label of the vertical axis.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(panels), shared_yaxes=True, horizontal_spacing=0.05)
    kinds = list(dict.fromkeys(kind for found in panels.values() for kind in found.kind))
    colours = {kind: (*SERIES, INK)[i % (len(SERIES) + 1)] for i, kind in enumerate(kinds)}
    symbols = ("circle", "square", "diamond", "triangle-up", "cross")
    for column, (title, found) in enumerate(panels.items(), start=1):
        for i, kind in enumerate(kinds):
            mine = np.array([k == kind for k in found.kind])
            figure.add_scatter(
                x=found.projection[mine], y=found.score[mine], mode="markers", name=cut(kind or "no system prompt", 40),
                legendgroup=str(i), showlegend=column == 1, row=1, col=column,
                marker={"color": colours[kind], "size": 6, "opacity": 0.55, "symbol": symbols[i // 6 % 5]},
            )  # fmt: skip
        within = "" if found.within is None else f"<br>inside a kind {_two(found.within)}"
        title = f"<b>{safe(title)}</b><br>r = {_two(found.pearson)}{within}"
        figure.update_xaxes(title={"text": title, "font": {"size": 11.5}}, row=1, col=column)
    figure.update_yaxes(title=safe(score), row=1, col=1)
    n = max(len(found.score) for found in panels.values())
    said = f"Projections on the vector (across) of n = {n} answers; 95% intervals, questions resampled."
    finish(figure, "Does the projection foretell the trait?", said)
    return figure.update_layout(height=560, margin={"b": 190}, legend={"y": -0.42})


def _two(of: Estimate) -> str:
    return f"{of.value:.2f} [{of.low:.2f}, {of.high:.2f}]"


def _envelope(of: Sequence[Estimate]) -> Estimate:
    low, high = min(e.low for e in of), max(e.high for e in of)
    return Estimate(sum(e.value for e in of) / len(of), low, high, of[0].n)
