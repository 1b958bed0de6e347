"""calibration_curve(report): can the probabilities be believed? sites_and_joins(report): where is it, and of what?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from latentlens.errors import BadInput
from latentlens.values.probe_report import ProbeReport
from latentlens.values.results import Estimate
from latentlens.views.figures.style import BLUE, CONTROL, INK, ORANGE, VERMILLION, bars, finish, level, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_KINDS = (("as fitted", BLUE, "circle"), ("with temperature", ORANGE, "diamond"))


def calibration_curve(report: ProbeReport) -> Figure:
    """Share of label 1 against the probability that the probe gave, out of fold, bin by bin; right on the diagonal.

    Blue: as fitted. Orange: after the temperature of the inner folds. Bars: Wilson intervals of the rows in a bin,
    which take the rows as independent. Points are as large as their bins are full.

    Args: report: from `ll.probe_report`.
    Raises: BadInput: a report without reliability (made by an older version).
    """
    import plotly.graph_objects as go

    if not report.reliability:
        raise BadInput("the report holds no reliability: make it again with ll.probe_report")
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "dash": "dash", "width": 1.4}, hoverinfo="skip",
        name="perfectly calibrated",
    )  # fmt: skip
    for name, colour, symbol in _KINDS:
        points = report.reliability.get(name, ())
        most = max((e.n for _, e in points), default=1)
        shares = [e for _, e in points]
        figure.add_scatter(
            x=[mean for mean, _ in points], y=[e.value for e in shares], mode="lines+markers", name=name,
            error_y=bars(shares, colour), line={"color": colour, "width": 2}, hoverinfo="text",
            marker={"color": colour, "symbol": symbol, "size": [6 + 12 * math.sqrt(e.n / most) for e in shares]},
            hovertext=[f"<b>{name}</b><br>probability {m:.2f}<br>label 1: {e.short}, n = {e.n}" for m, e in points],
        )  # fmt: skip
    positive = safe(report.classes[1])
    figure.update_xaxes(title=f"probability of “{positive}”", range=[-0.03, 1.03], dtick=0.2)
    figure.update_yaxes(title=f"share of “{positive}”", range=[-0.03, 1.03], dtick=0.2)
    told = {row["what"]: row["value"] for row in report.rows.get("calibration", ())}
    errors = [f"{name}: {told[key]:.3f}" for name, _, _ in _KINDS if (key := f"ECE of 10 bins, {name}") in told]
    return finish(
        figure,
        "Can the probabilities be believed?",
        f"Out of fold, n = {report.auroc.n} rows. Expected calibration error {'; '.join(errors)}.",
    )


def sites_and_joins(report: ProbeReport) -> Figure:
    """AUROC of every site, of ways of joining tokens, and of baselines that need no model, all nested and out of fold.

    Blue: the model's sites. Orange: how tokens are joined at the site chosen most often. Grey: bag of words, length, an
    untrained model. What a grey point reaches, the probe does not owe to the model.

    Args: report: from `ll.probe_report`.
    """
    from plotly.subplots import make_subplots

    rows = [(str(row["what"]), row["AUROC"]) for row in report.rows.get("layers", ())]
    sites = [row for row in rows if "[" in row[0] or row[0] in ("final_norm", "logits")]
    others = [row for row in rows if row not in sites]
    joined = [(str(row["how"]), row["AUROC"]) for row in report.rows.get("aggregation", ())]
    panels = [("site", sites, BLUE), ("joining tokens", joined, ORANGE), ("without the model", others, CONTROL)]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise BadInput("the report holds neither sites nor baselines: nothing to draw")
    figure = make_subplots(
        1, len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[title for title, _, _ in panels],
        column_widths=[max(2, len(some)) for _, some, _ in panels],
    )  # fmt: skip
    lowest = 0.4
    for k, (_, some, colour) in enumerate(panels):
        held = [(name, e) for name, e in some if math.isfinite(e.value)]
        lowest = min([lowest, *(e.low for _, e in held)])
        names = [safe(name) for name, _ in some]
        figure.add_scatter(
            x=[names[[n for n, _ in some].index(name)] for name, _ in held], y=[e.value for _, e in held],
            mode="lines+markers" if k == 0 and len(held) > 1 else "markers", error_y=bars([e for _, e in held], colour),
            line={"color": colour, "width": 2}, marker={"color": _colours(held, report, colour), "size": 9},
            hoverinfo="text", hovertext=[f"<b>{safe(n)}</b><br>{e.short}" for n, e in held], showlegend=False,
            row=1, col=k + 1,
        )  # fmt: skip
        figure.update_xaxes(
            categoryorder="array", categoryarray=names, tickangle=-45, automargin=True, row=1, col=k + 1
        )
        level(figure, 0.5, row=1, col=k + 1)
    figure.update_yaxes(range=[max(0.0, lowest - 0.03), 1.03])
    figure.update_yaxes(title="AUROC, out of fold", row=1, col=1)
    finish(
        figure,
        "Where can it be read, and is it more than words?",
        f"n = {report.auroc.n} rows, groups resampled. "
        f'<span style="color:{VERMILLION}">●</span> {report.direction.site}: chosen most often by the inner folds; the '
        f"whole procedure reaches {report.auroc.short}, permutation p = {report.p:.3g}.",
    )
    figure.update_annotations(font={"size": 12, "color": INK}, yshift=2)
    return figure.update_layout(margin={"t": 110, "b": 40}, height=520)


def _colours(held: list[tuple[str, Estimate]], report: ProbeReport, colour: str) -> list[str]:
    """The site that was chosen most often stands out."""
    return [VERMILLION if name == str(report.direction.site) else colour for name, _ in held]
