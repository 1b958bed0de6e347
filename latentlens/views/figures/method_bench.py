"""method_bench(found): which steering methods do more than random directions at the same KL, and at what price?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentlens.values.method_bench import MethodBench
from latentlens.values.results import Estimate
from latentlens.views.figures.style import BLUE, CONTROL, GRID, INK, bars, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: What each panel shows, its heading, and its range (None: as the numbers want it).
_PANELS = (
    ("concept", "concept", (-0.08, 2.08)),
    ("off_target", "off target", None),
    ("nll", "nats a token", None),
    ("harmonic", "harmonic mean", (-0.08, 2.08)),
)
_ROLES = (("method", BLUE, "methods", "circle"), ("control", CONTROL, "controls", "square-open"))
_ROW = 21  # pixels a method


def method_bench(found: MethodBench) -> Figure:
    """One row a method, one panel a question, every mean with its interval; controls in grey.

    From the left: the concept in the answers at the common KL budget (0 to 2), the change of what should not change,
    the nats a token that the answers cost under the unsteered model, and AxBench's harmonic mean of concept, task and
    fluency at the strength that half of the prompts chose. Dotted: the mean of the random directions.

    Args: found: from `ll.method_bench`.
    """
    from plotly.subplots import make_subplots

    rows = list(found.scores)[::-1]
    names = [safe(found.label(one)) for one in rows]
    figure = make_subplots(rows=1, cols=len(_PANELS), shared_yaxes=True, horizontal_spacing=0.03)
    chance = next((one for one in rows if one.method == "random direction"), None)
    for column, (what, heading, ends) in enumerate(_PANELS, start=1):
        for role, colour, label, symbol in _ROLES:
            kept = [(name, getattr(one, what)) for name, one in zip(names, rows) if one.role == role]
            kept = [(name, e) for name, e in kept if e.value == e.value]
            figure.add_scatter(
                x=[e.value for _, e in kept], y=[name for name, _ in kept], error_x=bars([e for _, e in kept], colour),
                mode="markers", marker={"color": colour, "size": 8, "symbol": symbol},
                name=label, legendgroup=role, showlegend=column == 1, hoverinfo="text",
                hovertext=[f"<b>{name}</b><br>{heading}: {e.short}" for name, e in kept], row=1, col=column,
            )  # fmt: skip
        if chance is not None:
            _line(figure, getattr(chance, what), column)
        if what == "off_target":
            most = max([0.05, *(one.off_target.high for one in rows if one.off_target.high == one.off_target.high)])
            ends = (-0.04 * most, 1.04 * most)
        figure.update_xaxes(title=heading, range=ends, row=1, col=column)
    level = found.scores[0].concept.level
    finish(
        figure,
        "Which steering methods work at the same KL?",
        f"{safe(', '.join(found.concepts))}; at least {min(one.concept.n for one in rows)} answers a row; {level:.0%} "
        "intervals, prompts resampled.<br>Concept, off target and nats: changes at the same KL; harmonic mean: at each "
        "method's own strength. Dotted: mean of the random directions.",
    )
    figure.update_xaxes(showgrid=True, gridcolor=GRID, nticks=5)
    figure.update_yaxes(categoryorder="array", categoryarray=names, showgrid=True, gridcolor=GRID, ticks="")
    figure.update_layout(
        height=200 + _ROW * len(rows),
        margin={"l": 12, "t": 104, "b": 84},
        legend={"y": -0.11 if len(rows) > 15 else -0.2},
    )
    figure.update_yaxes(automargin=True)
    return figure


def _line(figure: Figure, chance: Estimate, column: int) -> None:
    if chance.value == chance.value:
        figure.add_vline(x=chance.value, line={"color": INK, "width": 1, "dash": "dot"}, row=1, col=column)  # pyright: ignore[reportArgumentType]
