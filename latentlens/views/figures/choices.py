"""choices(selection): what does choosing among answers gain, and save?   early_warning(curve): how soon is it seen?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentlens.values.selection import Policy, Selection
from latentlens.values.trajectory import EarlyWarning
from latentlens.views.figures.style import BLUE, CONTROL, GREEN, INK, ORANGE, SERIES, band, bars, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_NEEDS_ANSWERS = "needs the answers"


def choices(found: Selection) -> Figure:
    """Accuracy of every way of choosing against the tokens that it saves; up and to the right is better.

    Blue: by a signal. Grey squares: its controls (the same with shuffled scores or labels); grey circles: what only
    somebody who knows the answers could do. Orange: the majority vote, with a line across. Green: without a signal.

    Args: found: from `selection.select`, `early_stopping.early_stop` or `early_stopping.early_path`.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    plain = ("majority vote", "shortest", "first", "random")
    groups: dict[str, tuple[str, str, list[Policy]]] = {
        "by the signal": (BLUE, "circle", [p for p in found if not p.note and p.name not in plain]),
        **{
            p.name: (CONTROL, symbol, [p])
            for p, symbol in zip((p for p in found if p.note == "control"), ("square", "square-open"))
        },
        "majority vote": (ORANGE, "diamond", [p for p in found if p.name == "majority vote"]),
        "without a signal": (GREEN, "triangle-up", [p for p in found if p.name in ("shortest", "first", "random")]),
        _NEEDS_ANSWERS: (CONTROL, "circle-open", [p for p in found if p.note == _NEEDS_ANSWERS]),
    }
    for name, (colour, symbol, some) in groups.items():
        if not some:
            continue
        saved, right = [p.saved for p in some], [p.accuracy for p in some]
        figure.add_scatter(
            x=[e.value for e in saved], y=[e.value for e in right], name=safe(name),
            mode="markers" if some[0].note == "control" else "markers+text",  # controls lie close together
            error_x=bars(saved, colour), error_y=bars(right, colour), hoverinfo="text",
            text=[safe(p.name) for p in some], textfont={"size": 11, "color": INK},
            textposition=[f"{_side(p, found)} right" for p in some],
            marker={"color": colour, "symbol": symbol, "size": 11}, hovertext=[_text(p) for p in some],
        )  # fmt: skip
    for vote in groups["majority vote"][2]:
        figure.add_hline(y=vote.accuracy.value, line={"color": ORANGE, "width": 1, "dash": "dot"})
    ends = [end for p in found for end in (p.saved.low, p.saved.high)]
    figure.update_xaxes(
        title="tokens saved, of writing all samples", tickformat=".0%", range=[min(-0.06, *ends), max(ends) + 0.16]
    )
    figure.update_yaxes(title="share of questions answered rightly", tickformat=".0%")
    n = found.policies[0].accuracy.n
    return finish(
        figure,
        "Is choosing worth it?",
        f"{found.n_samples} samples of each of {found.n_questions} questions, {n} of them tested; bars: 95% intervals, "
        "questions resampled.",
    )


def early_warning(curve: EarlyWarning) -> Figure:
    """AUROC of each signal after its first steps, among texts that go on that long, with its band; chance across.

    Args: curve: from `signal_quality.early_warning`.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    names = list(dict.fromkeys(name for name, _ in curve.by_step))
    lowest, highest = 0.4, 0.6
    for i, name in enumerate(names):
        steps = [step for one, step in curve.by_step if one == name]
        found = [curve.by_step[name, step] for step in steps]
        colour, x = SERIES[i % len(SERIES)], [curve.tokens[step] for step in steps]
        known = [e for e in found if e.low == e.low]
        lowest, highest = min([lowest, *(e.low for e in known)]), max([highest, *(e.high for e in known)])
        if len(known) == len(found):
            band(figure, x, found, colour, 0.14, "", first=False)
        figure.add_scatter(
            x=x, y=[e.value for e in found], mode="lines+markers", name=safe(name), hoverinfo="text",
            line={"color": colour, "width": 2.2}, marker={"color": colour, "size": 7},
            hovertext=[f"<b>{safe(name)}</b>, step {s}<br>{e.short}, n = {e.n}" for s, e in zip(steps, found)],
        )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dot"})
    counts = [e.n for e in curve.by_step.values()]
    figure.update_xaxes(title="tokens read (median)", rangemode="tozero")
    figure.update_yaxes(title="AUROC", range=[max(0.0, lowest - 0.03), min(1.0, highest + 0.03)])
    return finish(
        figure,
        "How soon can it be seen?",
        f"Among texts that still go on: n = {max(counts)} at first, {min(counts)} at last. Bands: 95% intervals, "
        "groups resampled.",
    )


def _side(p: Policy, found: Selection) -> str:
    """Where its name stands: away from the nearest of the points that save about as much."""
    near = [
        o.accuracy.value - p.accuracy.value for o in found if o is not p and abs(o.saved.value - p.saved.value) < 0.1
    ]
    return "top" if near and min(near, key=abs) < 0 else "bottom"


def _text(p: Policy) -> str:
    note = f"<br>{p.note}" if p.note else ""
    return (
        f"<b>{safe(p.name)}</b><br>right {p.accuracy.short}<br>minus majority {p.gain.short}<br>saved {p.saved.short}"
        f"<br>{p.tokens.value:.0f} tokens, {p.samples:.2f} samples{note}"
    )
