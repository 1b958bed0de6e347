"""steering_effect(effect): does the direction change what the model does, and does any other?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentlens.values.results import Arm, ArmKind, SteeringEffect
from latentlens.views.figures.style import BLUE, CONTROL, INK, PURPLE, band, bars, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


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
            **_share(arms, CONTROL, aside), line={"color": CONTROL, "width": 1}, legendgroup="random",
            marker={"color": CONTROL, "size": 6, "symbol": "square-open"}, showlegend=i == 0,
            name=f"random direction of equal norm ({len(draws)} draw{'s' * (len(draws) != 1)})",
        )  # fmt: skip
    levels: tuple[tuple[ArmKind, str, str], ...] = (("no edit", INK, "dot"), ("prompt", PURPLE, "dash"))
    for kind, colour, dash in levels:
        for arm in effect.of(kind):  # neither has a strength: the level goes across
            band(figure, ends, [arm.share] * 2, colour, 0.12, "", first=False)
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
    figure.update_xaxes(title=f"steering strength ({safe(effect.unit)})", range=ends, zeroline=False)
    figure.update_yaxes(
        title=f"share of rollouts: {safe(effect.outcome)}", range=[-0.03, 1.03], tickformat=".0%", dtick=0.2
    )
    counts = sorted({a.n for a in effect.arms})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return finish(
        figure,
        "Does the direction change what the model writes?",
        f"n = {n} rollouts a point; bars and band: {effect.arms[0].level:.0%} Wilson intervals.",
    )


def _share(arms: Sequence[Arm], colour: str, aside: float = 0.0) -> dict[str, Any]:
    return {
        "x": [a.coeff + aside for a in arms],
        "y": [a.share.value for a in arms],
        "error_y": bars([a.share for a in arms], colour),
        "mode": "lines+markers",
        "hoverinfo": "text",
        "hovertext": [_arm_text(a) for a in arms],
    }


def _arm_text(arm: Arm) -> str:
    strength = "" if arm.kind in ("no edit", "prompt") else f" at {arm.coeff:g}"
    return f"<b>{arm.label}{strength}</b><br>{arm.share.short}<br>{arm.k} of {arm.n}"
