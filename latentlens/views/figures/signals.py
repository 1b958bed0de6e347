"""signal_quality(report): do trajectory signals tell right from wrong texts, or do they count tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentlens.values.results import Estimate
from latentlens.values.trajectory import SignalQuality, SignalReport
from latentlens.views.figures.style import BLUE, CONTROL, INK, ORANGE, bars, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def signal_quality(report: SignalReport) -> Figure:
    """AUROC of every signal, beside what could explain it.

    Blue: the AUROC in the expected direction. Orange: over pairs of equal length only. Grey: the same signal on random
    walks, on walks of resampled steps, on shuffled segments; means and spreads. The line across: length alone. What a
    grey point reaches, the signal does not owe to reasoning.

    Args: report: from `signal_quality.evaluate`.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    places = list(range(len(report.signals)))
    series: list[tuple[str, float, str, str, list[Estimate | None]]] = [
        ("the signal", -0.24, BLUE, "circle", [s.auroc for s in report.signals]),
        ("pairs of equal length", -0.12, ORANGE, "diamond", [s.within for s in report.signals]),
        ("random walks", 0.04, CONTROL, "square-open", [s.walk for s in report.signals]),
        ("resampled steps", 0.14, CONTROL, "triangle-up-open", [s.resampled for s in report.signals]),
        ("segments shuffled", 0.24, CONTROL, "x-thin-open", [s.reordered for s in report.signals]),
    ]
    for name, aside, colour, symbol, estimates in series:
        shown = [(x + aside, s, e) for x, s, e in zip(places, report.signals, estimates) if e is not None]
        if not shown:
            continue
        figure.add_scatter(
            x=[x for x, _, _ in shown], y=[e.value for _, _, e in shown], mode="markers", name=name, hoverinfo="text",
            error_y=bars([e for _, _, e in shown], colour), hovertext=[_text(s, name, e) for _, s, e in shown],
            marker={"color": colour, "size": 10 if colour != CONTROL else 8, "symbol": symbol},
        )  # fmt: skip
    ends = [-0.5, len(places) - 0.5]
    figure.add_scatter(
        x=ends, y=[report.length.value] * 2, mode="lines", name=f"length alone {report.length.short}",
        line={"color": INK, "dash": "dash", "width": 1.6}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dot"})
    names = [f"{'+' if s.sign > 0 else '−'} {safe(s.name)}" for s in report.signals]
    figure.update_xaxes(tickvals=places, ticktext=names, range=ends)
    figure.update_yaxes(
        title="AUROC", range=_range([e for *_, estimates in series for e in estimates if e is not None])
    )
    return finish(
        figure,
        "Movement, or length?",
        f"{report.n_right} of {report.n} texts right, {report.n_groups} groups; bars: 95% intervals, of the grey ones "
        "the spread of draws.",
    )


def _text(signal: SignalQuality, name: str, e: Estimate) -> str:
    return f"<b>{safe(signal.name)}</b>, {name}<br>{e.short}" + (
        f"<br>{signal.dropped} dropped" if signal.dropped else ""
    )


def _range(estimates: Sequence[Estimate]) -> list[float]:
    """From the lowest end to the highest, chance included; NaN ends are passed over."""
    ends = [v for e in estimates for v in (e.low, e.high) if v == v]
    return [max(0.0, min([0.4, *ends]) - 0.03), min(1.0, max([0.6, *ends]) + 0.03)]
