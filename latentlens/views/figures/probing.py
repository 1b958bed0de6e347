"""by_layer(sweep): where in the model can the label be read?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentlens.errors import BadInput
from latentlens.values.results import Estimate, ProbeSweep, SiteProbe
from latentlens.values.sites import BLOCK_POINTS
from latentlens.views.figures.style import CONTROL, INK, SERIES, VERMILLION, band, bars, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


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
        band(figure, places, nulls, CONTROL, 0.20, f"shuffled labels ({draws})", first=part == 0)
    for i, (_, probes) in enumerate(lines):
        control = [p.control for p in probes if p.control is not None]
        if len(control) == len(probes):
            figure.add_scatter(
                x=[place[str(p.site)] for p in probes], y=[c.value for c in control], mode="lines+markers",
                line={"color": CONTROL, "dash": "dash"}, name=f"control task ({draws})", legendgroup="control",
                marker={"color": CONTROL, "size": 6, "symbol": "square-open"}, showlegend=i == 0, hoverinfo="text",
                hovertext=[f"{p.site}<br>control task {c.short}" for p, c in zip(probes, control)],
                error_y=bars(control, CONTROL) if len(points) < 2 else None,
            )  # fmt: skip
    for i, (name, probes) in enumerate(lines):
        colour = SERIES[i % len(SERIES)]
        x = [place[str(p.site)] for p in probes]
        band(figure, x, [p.auroc for p in probes], colour, 0.18, "", first=False)
        figure.add_scatter(
            x=x, y=[p.auroc.value for p in probes], mode="lines+markers", name=f"probe, {name}",
            line={"color": colour, "width": 2.5}, marker={"color": colour, "size": 7}, hoverinfo="text",
            error_y=bars([p.auroc for p in probes], colour) if len(probes) == 1 else None,
            hovertext=[_probe_text(p) for p in probes],
        )  # fmt: skip
    best = sweep.best()
    figure.add_scatter(
        x=[place[str(best.site)]], y=[best.auroc.value], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 17, "color": VERMILLION, "line": {"width": 2.5}},
    )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=1, xref="paper", y=0.5, text="chance", showarrow=False, xanchor="left", xshift=3,
        font={"size": 11, "color": INK},
    )  # fmt: skip
    lows = [e.low for p in sweep for e in (p.auroc, p.shuffled, p.control) if e is not None]
    figure.update_xaxes(
        title="block (0 is the first)", tickvals=list(ticks), ticktext=list(ticks.values()),
        range=[-0.4, max(place.values()) + 0.4],
    )  # fmt: skip
    figure.update_yaxes(title="AUROC", range=[max(0.0, min(0.38, min(lows) - 0.03)), 1.04], dtick=0.1)
    negative, positive = (safe(c) for c in sweep.classes)
    return finish(
        figure,
        f"Where can “{positive}” be told from “{negative}”?",
        f"Held out: {sweep.n_test} rows of {sweep.n_groups[1]} groups; trained on {sweep.n_train} rows of "
        f"{sweep.n_groups[0]}. Coloured band: {best.auroc.level:.0%} interval, groups resampled.<br>"
        f'<span style="color:{VERMILLION}">◯ <b>{best.site}</b>: {best.auroc.short}</span>, '
        + ("the only site" if len(sweep) == 1 else "chosen by cross-validation on the training side"),
    )


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


def _probe_text(p: SiteProbe) -> str:
    rows = [f"<b>{p.site}</b>", f"AUROC held out {p.auroc.short}", f"cross-validated {p.cv_auroc:.3f}"]
    rows.append(f"shuffled labels {p.shuffled.short}")
    if p.control is not None and p.selectivity is not None:
        rows += [f"control task {p.control.short}", f"selectivity {p.selectivity.short}"]
    return "<br>".join(rows)
