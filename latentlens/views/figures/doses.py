"""dose_response(found): how does the effect grow with strength, and where do a straight line and the text break?"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from latentlens.values.calibration import DoseResponse
from latentlens.views.figures.style import BLUE, CONTROL, ORANGE, PURPLE, VERMILLION, band, finish, level, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def dose_response(found: DoseResponse, *, outcome: str = "outcome", unit: str = "") -> Figure:
    """Paired change of the outcome over strength, with the line through the first strengths, and fluency below it.

    Blue: change to no edit, with its band. Dashed: the line through the filled points, whose failure is marked.
    Orange: what should not move. Lower panel: nats a token lost under the unsteered model; where its mean leaves the
    limits, the strengths are shaded: what is measured there is measured on broken text.

    Args: found: from `ll.dose_response`. outcome: what was measured, in words. unit: of the strengths.
    """
    from plotly.subplots import make_subplots

    has_nll = found.nll_increase is not None
    heights = [0.68, 0.32] if has_nll else [1.0]
    figure = make_subplots(rows=len(heights), shared_xaxes=True, row_heights=heights, vertical_spacing=0.07)
    x = list(found.strengths)
    level(figure, 0.0, row=1, col=1)
    base = found.effect[0].value
    figure.add_scatter(
        x=x, y=[v - base for v in found.predicted], mode="lines", line={"color": CONTROL, "dash": "dash", "width": 2},
        name=f"line through the first {found.n_fit}: slope {found.slope.short}", hoverinfo="skip",
    )  # fmt: skip
    series = [("change", found.change, BLUE, safe(outcome)), ("off", found.off_target, ORANGE, "what should not move")]
    for kind, estimates, colour, name in series:
        if estimates is None:
            continue
        band(figure, x, estimates, colour, 0.18, "", first=False)
        fitted = ["circle" if kind == "off" or i < found.n_fit else "circle-open" for i in range(len(x))]
        figure.add_scatter(
            x=x, y=[e.value for e in estimates], mode="lines+markers", name=name, hoverinfo="text",
            line={"color": colour, "width": 2.5}, marker={"color": colour, "size": 8, "symbol": fitted},
            hovertext=[f"strength {c:g}<br>{name}: {e.short}" for c, e in zip(x, estimates)],
        )  # fmt: skip
    if found.fails_at is not None:
        at = x.index(found.fails_at)
        figure.add_scatter(
            x=[found.fails_at], y=[found.change[at].value], mode="markers", hoverinfo="skip",
            name=f"the line fails at {found.fails_at:g}",
            marker={"symbol": "circle-open", "size": 17, "color": VERMILLION, "line": {"width": 2.5}},
        )  # fmt: skip
    if found.nll_increase is not None:
        for one in _placed(figure, x, found):
            figure.add_trace(one, row=2, col=1)
        least = min(e.low for e in found.nll_increase)
        for limit in found.nll_limits:
            if limit > 0 or least < limit + 0.5:  # a limit far away would flatten the curve
                level(figure, limit, row=2, col=1)
        figure.update_yaxes(title="NLL, nats", row=2, col=1)
    edges = [x[0], *((a + b) / 2 for a, b in pairwise(x)), x[-1]]
    for i, valid in enumerate(found.valid):
        if not valid:
            figure.add_vrect(x0=edges[i], x1=edges[i + 1], fillcolor=CONTROL, opacity=0.16, line_width=0, layer="below")
    figure.update_yaxes(title="change to no edit", row=1, col=1)
    figure.update_xaxes(title=f"strength{f' ({safe(unit)})' if unit else ''}", row=2 if has_nll else 1, col=1)
    shaded = "" if all(found.valid) else " Shaded: the text is broken there."
    said = (
        f"n = {found.effect[0].n} items, paired with no edit; {found.effect[0].level:.0%} intervals, resampled.{shaded}"
    )
    finish(figure, "How does the effect grow with strength?", said)
    return figure.update_layout(height=560 if has_nll else 460)


def _placed(figure: Figure, x: list[float], found: DoseResponse) -> list[object]:
    import plotly.graph_objects as go

    assert found.nll_increase is not None
    below = go.Figure()
    band(below, x, found.nll_increase, PURPLE, 0.18, "", first=False)
    below.add_scatter(
        x=x, y=[e.value for e in found.nll_increase], mode="lines+markers", name="NLL under the unsteered model",
        line={"color": PURPLE, "width": 2}, marker={"color": PURPLE, "size": 6}, hoverinfo="text",
        hovertext=[f"strength {c:g}<br>{e.short} nats" for c, e in zip(x, found.nll_increase)],
    )  # fmt: skip
    return list(below.data)
