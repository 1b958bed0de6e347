"""Steering resistance: what conditions, doses, strengths and tuning do to the rates, and latents around corrections.

resistance_conditions(rates)     how often does the model start over, and does it help, by condition?
ablation_dose(doses)             how many detectors carry it?
raised_latents(found)            do raised detectors break off an answer in which nothing is wrong?
boost_curve(points)              at which strength does it start over?
correction_traces(traces)        what do latents do before and after a correction?
judge_agreement(frame)           do judges see the same?
induced_correction(found)        can it be taught?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentlens.values.esr import EsrRates
from latentlens.values.esr_parts import AlignedTraces, BoostPoint, Dose, Induced, Raised
from latentlens.values.results import Estimate
from latentlens.views.figures.style import BLUE, CONTROL, GREEN, INK, ORANGE, SERIES, band, bars, finish, safe

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

_RATES = (("multi", BLUE, "circle", "more than one attempt"), ("resisted", ORANGE, "diamond", "and the last is better"))


def resistance_conditions(
    rates: Sequence[EsrRates], title: str = "Does the model start over, and does it help?"
) -> Figure:
    """Multi-attempt and ESR rate of each condition with intervals; random controls in grey.

    Args: rates: in the order to draw, from above. title: of the figure.
    """
    import plotly.graph_objects as go

    figure, names = go.Figure(), [safe(r.condition) for r in rates]
    for shift, (field, colour, symbol, label) in zip((0.16, -0.16), _RATES, strict=True):
        found: list[Estimate] = [getattr(r, field) for r in rates]
        inks = [CONTROL if _is_control(r.condition) else colour for r in rates]
        figure.add_scatter(
            x=[e.value for e in found], y=[-i + shift for i in range(len(rates))], mode="markers", name=label,
            marker={"color": inks, "size": 9, "symbol": symbol}, error_x=bars(found, INK), hoverinfo="text",
            hovertext=[f"<b>{name}</b><br>{label}: {e.short}<br>n={e.n}" for name, e in zip(names, found)],
        )  # fmt: skip
    top = max((getattr(r, field).high for r in rates for field, *_ in _RATES), default=1.0)
    ends = [-0.02 * max(top, 0.05), min(1.02, 1.08 * top)]
    figure.update_xaxes(title="share of answers", tickformat=".0%", range=ends)
    figure.update_yaxes(tickvals=[-i for i in range(len(rates))], ticktext=names, range=[-len(rates) + 0.4, 0.6])
    below = "bars: widest of Wilson's interval and bootstraps over latents and prompts.<br>Grey: random latents."
    made = finish(figure, title, f"{_counts(rates)}; {below}")
    made.update_yaxes(showgrid=False, title=None)
    made.update_layout(height=170 + 34 * len(rates), margin={"l": 12 + 7 * max(map(len, names), default=0)})
    return made


def ablation_dose(doses: Sequence[Dose], controls: Sequence[EsrRates] = ()) -> Figure:
    """Rates against the number of detectors ablated, strongest first; random sets of full size in grey.

    Args: doses: from 0 up. controls: conditions with as many random latents ablated as detectors in the last dose.
    """
    import plotly.graph_objects as go

    figure, ks = go.Figure(), [d.k for d in doses]
    for field, colour, symbol, label in _RATES:
        found: list[Estimate] = [getattr(d.rates, field) for d in doses]
        figure.add_scatter(
            x=ks, y=[e.value for e in found], mode="lines+markers", name=label, error_y=bars(found, colour),
            line={"color": colour, "width": 2.5}, marker={"color": colour, "size": 8, "symbol": symbol},
            hoverinfo="text", hovertext=[f"{k} ablated<br>{label}: {e.short}" for k, e in zip(ks, found)],
        )  # fmt: skip
    wide = 0.02 * (max(ks) or 1)
    for i, control in enumerate(controls):
        e = control.multi
        figure.add_scatter(
            x=[max(ks) + wide * (i - (len(controls) - 1) / 2)], y=[e.value], mode="markers", hoverinfo="text",
            error_y=bars([e], CONTROL), marker={"color": CONTROL, "size": 7, "symbol": "square-open"},
            name=f"random latents ({len(controls)} sets)", showlegend=i == 0,
            hovertext=f"{safe(control.condition)}<br>{e.short}",
        )  # fmt: skip
    figure.update_xaxes(title="detectors ablated, strongest first", dtick=1 if max(ks) <= 12 else None)
    figure.update_yaxes(title="share of answers", tickformat=".0%", rangemode="tozero")
    return finish(figure, "How many detectors carry it?", f"The same {doses[0].rates.n} trials at every dose; "
                  "intervals as in the table.")  # fmt: skip


def raised_latents(found: Sequence[Raised]) -> Figure:
    """Share of on-topic answers that are broken off with a restart, against how far latents are raised.

    Dotted: nothing raised after a sentence of another answer, what a real detour does.

    Args: found: what `ablation.raised` returned.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    start = next((r.at_once.value for r in found if r.name == "nothing"), 0.0)
    names = list(dict.fromkeys(r.name for r in found if r.k))
    for i, name in enumerate(names):
        mine = sorted((r for r in found if r.name == name), key=lambda r: r.level)
        control = _is_control(name)
        colour = CONTROL if control else SERIES[i % len(SERIES)]
        shown = [Estimate(start, start, start, 0), *(r.at_once for r in mine)]
        figure.add_scatter(
            x=[0.0, *(r.level for r in mine)], y=[e.value for e in shown], error_y=bars(shown, colour),
            mode="lines+markers", name=safe(name), line={"color": colour, "dash": "dash" if control else "solid"},
            marker={"color": colour, "size": 8}, hoverinfo="text",
            hovertext=["nothing raised", *(f"{safe(name)} at {r.level:g}<br>{r.at_once.short}" for r in mine)],
        )  # fmt: skip
    real = [r for r in found if not r.k and "another" in r.name]
    if real:
        figure.add_hline(y=real[0].at_once.value, line={"color": INK, "dash": "dot", "width": 1.4})
        figure.add_annotation(x=1, xref="paper", xanchor="right", y=real[0].at_once.value, yshift=9, showarrow=False,
                              text="a real detour, nothing raised", font={"size": 11, "color": INK})  # fmt: skip
    figure.update_xaxes(title="raised to so many times their own typical value off topic")
    figure.update_yaxes(title="answers broken off at once", tickformat=".0%", rangemode="tozero")
    n = found[0].at_once.n if found else 0
    below = f"{n} answers, each after a first sentence that is on topic; raised at its last token only."
    return finish(figure, "Do raised detectors break off an answer in which nothing is wrong?", below)


def boost_curve(points: Sequence[BoostPoint]) -> Figure:
    """Rates (left axis) and score of the first attempt (right axis) against strength around the thresholds.

    Args: points: what `boosts.curve` returned.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    x = [p.z for p in points]
    for field, colour, symbol, label in _RATES:
        found: list[Estimate] = [getattr(p.rates, field) for p in points]
        band(figure, x, found, colour, 0.15, "", first=False)
        figure.add_scatter(
            x=x, y=[e.value for e in found], mode="lines+markers", name=label, line={"color": colour, "width": 2.5},
            marker={"color": colour, "size": 8, "symbol": symbol}, hoverinfo="text",
            hovertext=[f"{p.strength:.2f}, {p.z:+.1f} sd<br>{label}: {e.short}" for p, e in zip(points, found)],
        )  # fmt: skip
    first = [p.rates.first for p in points]
    figure.add_scatter(
        x=x, y=[e.value for e in first], mode="lines+markers", name="score of the first attempt (right)", yaxis="y2",
        line={"color": GREEN, "dash": "dot"}, marker={"color": GREEN, "size": 6}, hoverinfo="text",
        hovertext=[f"first score {e.value:.1f}" for e in first],
    )  # fmt: skip
    figure.update_xaxes(title="strength, in standard deviations from the mean threshold")
    figure.update_yaxes(title="share of answers", tickformat=".0%", rangemode="tozero")
    made = finish(figure, "At which strength does it start over?", f"{points[0].rates.n if points else 0} answers a "
                  "strength, all latents at the same strength; bands: intervals as in the table.")  # fmt: skip
    axis: dict[str, Any] = {"overlaying": "y", "side": "right", "range": [0, 105], "dtick": 25, "showgrid": False}
    made.update_layout(yaxis2={**axis, "title": {"text": "score", "font": {"size": 13}}}, margin={"r": 70})
    return made


def correction_traces(traces: AlignedTraces) -> Figure:
    """Mean activation token by token, aligned on the first token of the correction; thin lines: unsteered answers.

    Args: traces: what `corrections.around` returned. Sets named matched, uniform or random are drawn in grey.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_vline(x=0, line={"color": INK, "width": 1.2, "dash": "dot"})
    figure.add_annotation(x=0, y=1, yref="paper", yanchor="bottom", showarrow=False, text="correction begins",
                          font={"size": 11, "color": INK})  # fmt: skip
    for i, (name, found) in enumerate(traces.series.items()):
        colour = CONTROL if _is_control(name) else SERIES[i % len(SERIES)]
        kept = [(o, e) for o, e in zip(traces.offsets, found, strict=True) if not math.isnan(e.low)]
        if not kept:
            continue
        x, some = [o for o, _ in kept], [e for _, e in kept]
        band(figure, x, some, colour, 0.16, "", first=False)
        figure.add_scatter(
            x=x, y=[e.value for e in some], mode="lines", name=safe(name), line={"color": colour, "width": 2.2},
            hoverinfo="text", hovertext=[f"{safe(name)} at {o:+d}<br>{e.short}<br>{e.n} answers" for o, e in kept],
        )  # fmt: skip
        figure.add_hline(y=traces.reference[name], line={"color": colour, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="tokens from the first token of the correction")
    figure.update_yaxes(title="mean activation", rangemode="tozero")
    return finish(figure, "What do latents do before and after a correction?", f"{traces.n} answers that corrected "
                  "themselves and became better, read again without steering; bands: latents resampled; dotted lines: "
                  "mean in unsteered answers.")  # fmt: skip


def judge_agreement(frame: pd.DataFrame) -> Figure:
    """Agreement of each pair of judges by measure, with intervals.

    Args: frame: what `methods.esr.agreement` returned.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    names = [safe(f"{a} / {b}") for a, b in zip(frame["judge"], frame["other"])]
    measures = ("multi, same", "multi, kappa", "first, Spearman", "direction, same")
    for i, measure in enumerate(measures):
        found = [(k, e) for k, e in enumerate(frame[measure]) if isinstance(e, Estimate)]
        if not found:
            continue
        colour = SERIES[i % len(SERIES)]
        figure.add_scatter(
            x=[e.value for _, e in found], y=[-k + 0.19 * (1.5 - i) for k, _ in found], mode="markers", name=measure,
            marker={"color": colour, "size": 8}, error_x=bars([e for _, e in found], colour), hoverinfo="text",
            hovertext=[f"<b>{names[k]}</b><br>{measure}: {e.short}<br>n={e.n}" for k, e in found],
        )  # fmt: skip
    figure.update_xaxes(title="agreement (1: the same everywhere)", range=[-0.15, 1.05])
    figure.update_yaxes(tickvals=[-k for k in range(len(names))], ticktext=names, range=[-len(names) + 0.4, 0.6])
    made = finish(figure, "Do judges see the same?", "The same answers under every judge; bars: latents resampled.")
    made.update_yaxes(showgrid=False, title=None)
    made.update_layout(height=190 + 58 * len(names), margin={"l": 12 + 7 * max(map(len, names), default=0)})
    return made


def induced_correction(found: Sequence[Induced]) -> Figure:
    """Rates by the share of corrections in the training texts; untuned models to the left.

    Args: found: what `inducing.by_share` returned.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    names = [safe(i.name if i.share is None else f"{i.share:.0%}") for i in found]
    for shift, (field, colour, symbol, label) in zip((-0.08, 0.08), _RATES, strict=True):
        some: list[Estimate] = [getattr(i.rates, field) for i in found]
        figure.add_scatter(
            x=[k + shift for k in range(len(found))], y=[e.value for e in some], mode="markers", name=label,
            marker={"color": colour, "size": 10, "symbol": symbol}, error_y=bars(some, colour), hoverinfo="text",
            hovertext=[f"<b>{name}</b><br>{label}: {e.short}" for name, e in zip(names, some)],
        )  # fmt: skip
    calm = [i.unsteered.multi for i in found]
    figure.add_scatter(
        x=list(range(len(found))), y=[e.value for e in calm], mode="markers", name="more than one attempt, unsteered",
        marker={"color": CONTROL, "size": 8, "symbol": "square-open"}, error_y=bars(calm, CONTROL), hoverinfo="text",
        hovertext=[f"<b>{name}</b><br>unsteered: {e.short}" for name, e in zip(names, calm)],
    )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(found))), ticktext=names, title="corrections among the training texts")
    figure.update_yaxes(title="share of answers", tickformat=".0%", rangemode="tozero")
    return finish(figure, "Can it be taught?", f"{_counts([i.rates for i in found])}; thresholds found anew on every "
                  "model.")  # fmt: skip


def _is_control(name: str) -> bool:
    return any(word in name for word in ("uniform", "matched", "random"))


def _counts(rates: Sequence[EsrRates]) -> str:
    counts = sorted({r.n for r in rates})
    if not counts:
        return "n = 0"
    return f"n = {counts[0]} trials a condition" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} trials"
