"""Adaptive steering of a style: shares of styles by arm, and where the cluster of a prompt can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from latentlens.errors import BadInput
from latentlens.values.gact import ClusterScore, ClusterSteering
from latentlens.values.results import Estimate
from latentlens.values.style_effect import UNKNOWN, StyleArm, StyleEffect
from latentlens.views.figures.style import CONTROL, INK, SERIES, VERMILLION, band, bars, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def style_shares(effects: Sequence[StyleEffect]) -> Figure:
    """Shares of all styles under every arm, a panel a target; the target's share comes first, with its interval.

    Args: effects: one a target, with the same styles.
    """
    from plotly.subplots import make_subplots

    if not effects:
        raise BadInput("no effect to draw")
    styles = effects[0].styles
    if any(effect.styles != styles for effect in effects):
        raise BadInput("the effects must be of the same styles")
    titles = [f"towards {safe(effect.target)}" for effect in effects]
    figure = make_subplots(1, len(effects), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.025)
    colours = {style: SERIES[i % len(SERIES)] for i, style in enumerate(styles)} | {UNKNOWN: CONTROL}
    for column, effect in enumerate(effects, 1):
        arms = effect.arms[::-1]
        names = [safe(arm.name) for arm in arms]
        for style in (effect.target, *(s for s in styles if s != effect.target), UNKNOWN):
            shares = [arm.share(style) for arm in arms]
            first = style == effect.target
            figure.add_bar(
                x=[s.value for s in shares], y=names, orientation="h", name=safe(style), legendgroup=style,
                showlegend=column == 1, marker={"color": colours[style], "opacity": 1.0 if first else 0.5},
                hoverinfo="text", hovertext=[_text(arm, style) for arm in arms],
                error_x={**bars(shares, "#303338"), "thickness": 1.5} if first else None, row=1, col=column,
            )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.25)
    counts = sorted({arm.n for effect in effects for arm in effect.arms})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    figure = finish(
        figure,
        "In which style does the model answer?",
        f"Full colour: the style steered to, with its 95% Wilson interval; n = {n} answers an arm, all counted.",
    )
    figure.update_xaxes(range=[0, 1.01], tickvals=[0, 0.5], ticktext=["0", "50%"], title="")
    figure.update_yaxes(automargin=True, showgrid=False)
    tall = 26 * max(len(effect.arms) for effect in effects)
    figure.update_layout(height=170 + tall, margin={"b": 78}, legend={"y": -34 / tall})
    return figure


def cluster_probes(found: Mapping[str, ClusterSteering]) -> Figure:
    """Held-out macro-F1 of the cluster at every block, with shuffled clusters, the largest cluster, and single heads.

    Args: found: the steering of each target, by its name; sites of one kind.
    """
    import plotly.graph_objects as go

    scored = {name: [s for s in one.scores if s.macro_f1.n] for name, one in found.items()}
    if not any(scored.values()):
        raise BadInput("no steering has a held-out score to draw")
    figure = go.Figure()
    blocks = sorted({s.site.block or 0 for scores in scored.values() for s in scores})
    every = [[s for scores in scored.values() for s in scores if (s.site.block or 0) == b] for b in blocks]
    drawn = [_pooled([s.shuffled_f1 for s in at]) for at in every]
    band(figure, blocks, drawn, CONTROL, 0.22, f"shuffled clusters ({drawn[0].n} draws)", first=True)
    largest = [max(s.majority_f1 for s in at) for at in every]
    figure.add_scatter(
        x=blocks, y=largest, mode="lines", line={"color": INK, "dash": "dot", "width": 1.5},
        name="always the largest cluster",
    )  # fmt: skip
    heads = [[s.heads_f1 for s in at if s.heads_f1 is not None] for at in every]
    if all(heads):
        pooled = [_pooled(of) for of in heads]
        figure.add_scatter(
            x=blocks, y=[e.value for e in pooled], mode="lines+markers", name="single attention heads, mean and range",
            line={"color": VERMILLION, "dash": "dash", "width": 1.5}, marker={"size": 6, "symbol": "square-open"},
            error_y=bars(pooled, VERMILLION), hoverinfo="text", hovertext=[f"heads {e.short}" for e in pooled],
        )  # fmt: skip
    for i, (name, scores) in enumerate(scored.items()):
        colour, aside = SERIES[i % len(SERIES)], 0.06 * (i - (len(scored) - 1) / 2)
        figure.add_scatter(
            x=[(s.site.block or 0) + aside for s in scores], y=[s.macro_f1.value for s in scores], mode="lines+markers",
            name=f"residual stream, {safe(name)}", line={"color": colour, "width": 2.2},
            marker={"color": colour, "size": 7}, error_y=bars([s.macro_f1 for s in scores], colour), hoverinfo="text",
            hovertext=[_score_text(name, s) for s in scores],
        )  # fmt: skip
    figure.update_xaxes(title="block (0 is the first)", range=[blocks[0] - 0.4, blocks[-1] + 0.4], dtick=1)
    figure.update_yaxes(title="macro-F1, held out", range=[-0.03, 1.04], dtick=0.2)
    n = sorted({s.macro_f1.n for scores in scored.values() for s in scores})
    k = sorted({one.k for one in found.values()})
    return finish(
        figure,
        "Where can a prompt's cluster be read?",
        f"{', '.join(map(str, k))} clusters of differences; n = {', '.join(map(str, n))} prompts held out; bars: 95% "
        "intervals, groups resampled.",
    )


def _pooled(of: Sequence[Estimate]) -> Estimate:
    """Mean of the values, with the widest range."""
    mean = sum(e.value for e in of) / len(of)
    return Estimate(mean, min(e.low for e in of), max(e.high for e in of), of[0].n, of[0].level)


def _text(arm: StyleArm, style: str) -> str:
    share = arm.share(style)
    parts = [f"<b>{safe(arm.name)}</b>", f"{safe(style)} {share.short}", f"{round(share.value * arm.n)} of {arm.n}"]
    valid = arm.validity(style)
    return "<br>".join([*parts, f"valid {valid.short}"] if valid.n else parts)


def _score_text(name: str, score: ClusterScore) -> str:
    rows = [
        f"<b>{safe(name)}, {score.site}</b>",
        f"macro-F1 {score.macro_f1.short}",
        f"accuracy {score.accuracy.short}",
    ]
    rows.append(f"shuffled clusters {score.shuffled_f1.short}")
    if score.heads_f1 is not None:
        rows.append(f"heads {score.heads_f1.short}")
    return "<br>".join(rows)
