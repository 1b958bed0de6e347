"""Figures: one function a question, a result in, a plotly Figure out.

    by_layer(sweep)             where in the model can the label be read?
    steering_effect(effect)     does the direction change what the model does, and does any other?

Backgrounds are transparent and inks are mid-grey, so a figure reads on a light and on a dark page.
Colours are those of Okabe and Ito, told apart with any colour vision; grey is kept for controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from latentlens.errors import BadInput
from latentlens.values.results import Arm, ArmKind, Estimate, ProbeSweep, SiteProbe, SteeringEffect
from latentlens.values.sites import BLOCK_POINTS
from latentlens.values.visible import visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
_SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)
_CONTROL = "#8A9099"
_INK = "#7C828B"
_GRID = "rgba(128,134,142,0.22)"


def by_layer(sweep: ProbeSweep) -> Figure:
    """Held-out AUROC by layer with its interval, the controls in grey, chance, and the best site marked.

    One coloured line for each kind of site (residual stream, attention output, ...). The grey band is the
    spread of the same probe on shuffled labels; the dashed grey line is the control task.

    Args: sweep: what `probe.fit` returned.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    place, ticks = _places(sweep)
    points = sorted({p.site.point for p in sweep if p.site.block is not None}, key=BLOCK_POINTS.index)
    lines = [(point, [p for p in sweep if p.site.point == point]) for point in points]
    lines += [(str(p.site), [p]) for p in sweep if p.site.block is None]
    draws = f"{sweep.probes[0].shuffled.n} draws"
    # Several lines share one band, as wide as the widest null at each place.
    for part, probes in enumerate(_runs(sweep)):
        places = sorted({place[str(p.site)] for p in probes})
        nulls = [_widest([p.shuffled for p in probes if place[str(p.site)] == x]) for x in places]
        _band(figure, places, nulls, _CONTROL, 0.20, f"shuffled labels ({draws})", first=part == 0)
    for i, (_, probes) in enumerate(lines):
        control = [p.control for p in probes if p.control is not None]
        if len(control) == len(probes):
            figure.add_scatter(
                x=[place[str(p.site)] for p in probes], y=[c.value for c in control], mode="lines+markers",
                line={"color": _CONTROL, "dash": "dash"}, name=f"control task ({draws})", legendgroup="control",
                marker={"color": _CONTROL, "size": 6, "symbol": "square-open"}, showlegend=i == 0, hoverinfo="text",
                hovertext=[f"{p.site}<br>control task {c.short}" for p, c in zip(probes, control)],
                error_y=_bars(control, _CONTROL) if len(points) < 2 else None,
            )  # fmt: skip
    for i, (name, probes) in enumerate(lines):
        colour = _SERIES[i % len(_SERIES)]
        x = [place[str(p.site)] for p in probes]
        _band(figure, x, [p.auroc for p in probes], colour, 0.18, "", first=False)
        figure.add_scatter(
            x=x, y=[p.auroc.value for p in probes], mode="lines+markers", name=f"probe, {name}",
            line={"color": colour, "width": 2.5}, marker={"color": colour, "size": 7}, hoverinfo="text",
            error_y=_bars([p.auroc for p in probes], colour) if len(probes) == 1 else None,
            hovertext=[_probe_text(p) for p in probes],
        )  # fmt: skip
    best = sweep.best()
    figure.add_scatter(
        x=[place[str(best.site)]], y=[best.auroc.value], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 17, "color": VERMILLION, "line": {"width": 2.5}},
    )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": _INK, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=1, xref="paper", y=0.5, text="chance", showarrow=False, xanchor="left", xshift=3,
        font={"size": 11, "color": _INK},
    )  # fmt: skip
    lows = [e.low for p in sweep for e in (p.auroc, p.shuffled, p.control) if e is not None]
    figure.update_xaxes(
        title="block (0 is the first)", tickvals=list(ticks), ticktext=list(ticks.values()),
        range=[-0.4, max(place.values()) + 0.4],
    )  # fmt: skip
    figure.update_yaxes(title="AUROC", range=[max(0.0, min(0.38, min(lows) - 0.03)), 1.04], dtick=0.1)
    negative, positive = (_safe(c) for c in sweep.classes)
    return _finish(
        figure,
        f"Where can “{positive}” be told from “{negative}”?",
        f"Held out: {sweep.n_test} rows of {sweep.n_groups[1]} groups; trained on {sweep.n_train} rows of "
        f"{sweep.n_groups[0]}. Coloured band: {best.auroc.level:.0%} interval, groups resampled.<br>"
        f'<span style="color:{VERMILLION}">◯ <b>{best.site}</b>: {best.auroc.short}</span>, '
        + ("the only site" if len(sweep) == 1 else "chosen by cross-validation on the training side"),
    )


def steering_effect(effect: SteeringEffect) -> Figure:
    """Share of the outcome against steering strength, with the unedited model and random directions.

    Blue: the direction. Grey: random directions of equal norm, one thin line a draw. Dotted: no edit, with
    its interval as a band; purple: asked for in the prompt. Intervals are Wilson's.

    Args: effect: the counted arms.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    coeffs = [0.0, *(a.coeff for a in effect.arms)]
    left, right = min(coeffs), max(coeffs)
    margin = 0.08 * ((right - left) or 1.0)
    ends = [left - margin, right + margin]
    draws = sorted({a.draw for a in effect.of("random")})
    for i, draw in enumerate(draws):
        arms = sorted((a for a in effect.of("random") if a.draw == draw), key=lambda a: a.coeff)
        aside = (i - (len(draws) - 1) / 2) * 0.1 * margin  # so that the bars of the draws do not hide each other
        figure.add_scatter(
            **_share(arms, _CONTROL, aside), line={"color": _CONTROL, "width": 1}, legendgroup="random",
            marker={"color": _CONTROL, "size": 6, "symbol": "square-open"}, showlegend=i == 0,
            name=f"random direction of equal norm ({len(draws)} draw{'s' * (len(draws) != 1)})",
        )  # fmt: skip
    levels: tuple[tuple[ArmKind, str, str], ...] = (("no edit", _INK, "dot"), ("prompt", PURPLE, "dash"))
    for kind, colour, dash in levels:
        for arm in effect.of(kind):  # neither has a strength: the level goes across
            _band(figure, ends, [arm.share] * 2, colour, 0.12, "", first=False)
            figure.add_scatter(
                x=ends, y=[arm.share.value] * 2, mode="lines", line={"color": colour, "dash": dash, "width": 1.8},
                name="asked in the prompt" if kind == "prompt" else kind, hoverinfo="text", hovertext=_arm_text(arm),
            )  # fmt: skip
    steered = list(effect.of("direction"))
    if steered:
        if 0.0 not in effect.coeffs:  # strength 0 is the unedited model: the line passes through it
            steered += effect.of("no edit")[:1]
        figure.add_scatter(
            **_share(sorted(steered, key=lambda a: a.coeff), BLUE), line={"color": BLUE, "width": 2.5},
            marker={"color": BLUE, "size": 9}, name="the direction",
        )  # fmt: skip
    figure.update_xaxes(title=f"steering strength ({_safe(effect.unit)})", range=ends, zeroline=False)
    figure.update_yaxes(
        title=f"share of rollouts: {_safe(effect.outcome)}", range=[-0.03, 1.03], tickformat=".0%", dtick=0.2
    )
    counts = sorted({a.n for a in effect.arms})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return _finish(
        figure,
        "Does the direction change what the model writes?",
        f"n = {n} rollouts a point; bars and band: {effect.arms[0].level:.0%} Wilson intervals.",
    )


# -- parts ----------------------------------------------------------------------------------------


def _places(sweep: ProbeSweep) -> tuple[dict[str, float], dict[float, str]]:
    """Horizontal place of every site, and the ticks: blocks at their index, sites without one after them."""
    if not len(sweep):
        raise BadInput("the sweep holds no site: nothing to draw")
    blocks = sorted({p.site.block for p in sweep if p.site.block is not None})
    place = {str(p.site): float(p.site.block) for p in sweep if p.site.block is not None}
    step = max(1, round(len(blocks) / 16))
    ticks = {float(b): str(b) for b in blocks[::step]}
    after = float(blocks[-1]) if blocks else -1.0
    for p in sweep:
        if p.site.block is None:
            after += 1
            place[str(p.site)], ticks[after] = after, str(p.site)
    return place, ticks


def _runs(sweep: ProbeSweep) -> list[list[SiteProbe]]:
    """Sites with a block, joined by a line; then each site without one, on its own."""
    joined = [p for p in sweep if p.site.block is not None]
    return ([joined] if joined else []) + [[p] for p in sweep if p.site.block is None]


def _widest(of: Sequence[Estimate]) -> Estimate:
    return Estimate(of[0].value, min(e.low for e in of), max(e.high for e in of), of[0].n, of[0].level)


def _band(
    figure: Figure, x: Sequence[float], of: Sequence[Estimate], colour: str, alpha: float, name: str, first: bool
) -> None:
    """Interval as a filled band; a single place gets a short bar of the same ink."""
    x = list(x)
    low, high = [e.low for e in of], [e.high for e in of]
    if len(x) == 1:
        x, low, high = [x[0] - 0.12, x[0] + 0.12], low * 2, high * 2
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=f"rgba({red},{green},{blue},{alpha})",
        line={"width": 0}, mode="lines", hoverinfo="skip", name=name, legendgroup=name or None, showlegend=first,
    )  # fmt: skip


def _bars(of: Sequence[Estimate], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value for e in of],
        "arrayminus": [e.value - e.low for e in of],
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def _share(arms: Sequence[Arm], colour: str, aside: float = 0.0) -> dict[str, Any]:
    return {
        "x": [a.coeff + aside for a in arms],
        "y": [a.share.value for a in arms],
        "error_y": _bars([a.share for a in arms], colour),
        "mode": "lines+markers",
        "hoverinfo": "text",
        "hovertext": [_arm_text(a) for a in arms],
    }


def _probe_text(p: SiteProbe) -> str:
    rows = [f"<b>{p.site}</b>", f"AUROC held out {p.auroc.short}", f"cross-validated {p.cv_auroc:.3f}"]
    rows.append(f"shuffled labels {p.shuffled.short}")
    if p.control is not None and p.selectivity is not None:
        rows += [f"control task {p.control.short}", f"selectivity {p.selectivity.short}"]
    return "<br>".join(rows)


def _arm_text(arm: Arm) -> str:
    strength = "" if arm.kind in ("no edit", "prompt") else f" at {arm.coeff:g}"
    return f"<b>{arm.label}{strength}</b><br>{arm.share.short}<br>{arm.k} of {arm.n}"


def _safe(text: str) -> str:
    """Plotly reads a small HTML in its labels; a label must not become markup, nor run on for ever."""
    text = visible(text)
    return escape(text if len(text) <= 60 else text[:59] + "…", quote=False)


def _finish(figure: Figure, title: str, subtitle: str) -> Figure:
    axis = {"gridcolor": _GRID, "linecolor": _INK, "zeroline": False, "ticks": "outside", "tickcolor": _GRID,
            "ticklen": 4, "title": {"standoff": 10, "font": {"size": 13}}}  # fmt: skip
    figure.update_xaxes(**axis, showgrid=False, showline=True)
    figure.update_yaxes(**axis, showline=False)
    figure.update_layout(
        template="none", height=460, margin={"l": 64, "r": 52, "t": 92, "b": 104}, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": _INK},
        title={"text": f"<b>{title}</b>", "x": 0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top",
               "font": {"size": 17},
               "subtitle": {"text": subtitle, "font": {"size": 12, "color": _INK}}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": _GRID, "activecolor": _INK},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"},
    )  # fmt: skip
    return figure
