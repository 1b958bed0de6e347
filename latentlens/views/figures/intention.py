"""regimes(values): does a metric tell regimes apart? by_regime(found): how it runs along blocks or tokens in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from latentlens.errors import BadInput
from latentlens.methods.intention import average, contrast
from latentlens.values.intention import Dimensionality, EntropyCurve
from latentlens.values.results import Estimate
from latentlens.views.figures.style import SERIES, band, bars, faint, finish, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_PAIRS_NAMED = 3


def regimes(values: Mapping[str, ArrayLike], *, metric: str = "metric", groups: ArrayLike | None = None) -> Figure:
    """One metric of the same items in several regimes: every item a dot, its mean with the 95% interval.

    The subtitle has the AUROC of each pair: the chance that an item of the second regime exceeds one of the first.

    Args: values: regime -> (n,), item i the same in each. metric: in words, with its unit. groups: (n,) what intervals
        resample; the item by default.
    Raises: BadInput: fewer than two regimes, more than five, or lengths that differ; TooFewExamples.
    """
    import plotly.graph_objects as go

    given = {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}
    _countable(given)
    told = [
        f"{safe(b)} over {safe(a)} {contrast(given[a], given[b], groups=groups).auroc.short}"
        for a, b in list(combinations(given, 2))[:_PAIRS_NAMED]
    ]
    figure = go.Figure()
    rng = np.random.default_rng(0)
    for i, (name, column) in enumerate(given.items()):
        mean, colour = average(column, groups=groups), SERIES[i]
        aside = i + rng.uniform(-0.22, 0.22, len(column))  # so that equal values can be seen
        figure.add_scatter(
            x=aside, y=column, mode="markers", marker={"color": faint(colour, 0.35), "size": 6}, showlegend=False,
            hoverinfo="text", hovertext=[f"{safe(name)}, item {k}<br>{v:.4g}" for k, v in enumerate(column)],
        )  # fmt: skip
        figure.add_scatter(
            x=[i + 0.34], y=[mean.value], mode="markers", error_y=bars([mean], colour), showlegend=False,
            marker={"color": colour, "size": 11, "symbol": "diamond"}, hoverinfo="text",
            hovertext=[f"<b>{safe(name)}</b><br>mean {mean.short}"],
        )  # fmt: skip
    names = [safe(name) for name in given]
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.3])
    figure.update_yaxes(title=safe(metric))
    n = len(next(iter(given.values())))
    subtitle = f"n = {n} items in each; diamonds: means with 95% intervals.<br>AUROC: {'; '.join(told)}"
    return finish(figure, "Does it tell the regimes apart?", subtitle).update_layout(margin={"b": 60})


def by_regime(found: Mapping[str, EntropyCurve] | Mapping[str, Dimensionality]) -> Figure:
    """A metric of several regimes, each with its interval: entropy along the tokens written, or dimension by block.

    Args: found: regime -> what `intention.entropy_curve`, or what `intention.effective_dimensionality`, returned.
    Raises: BadInput: none, more than five, or values of two kinds.
    """
    import plotly.graph_objects as go

    kinds = {type(one) for one in found.values()}
    if len(kinds) != 1 or not kinds <= {EntropyCurve, Dimensionality} or len(found) > len(SERIES):
        raise BadInput(
            f"{len(found)} regimes of {len(kinds)} kinds: give 1 to {len(SERIES)}, all curves or all dimensions"
        )
    figure, first = go.Figure(), next(iter(found.values()))
    for i, (name, one) in enumerate(found.items()):
        x, estimates = _line(one)
        colour = SERIES[i]
        band(figure, x, estimates, colour, 0.16, "", first=False)
        figure.add_scatter(
            x=x, y=[e.value for e in estimates], mode="lines+markers", name=safe(name), hoverinfo="text",
            line={"color": colour, "width": 2}, marker={"color": colour, "size": 5},
            hovertext=[f"{safe(name)}, {place}<br>{e.short}, n = {e.n}" for place, e in zip(x, estimates)],
        )  # fmt: skip
    if isinstance(first, EntropyCurve):
        figure.update_xaxes(title="token written (0: the distribution of the first)")
        figure.update_yaxes(title=f"mean entropy ({safe(first.unit)})", rangemode="tozero")
        return finish(
            figure,
            "How undecided is it at each token?",
            "Bands: 95% intervals over texts; late tokens: long texts only.",
        )
    figure.update_xaxes(title="block (0 is the first)", dtick=max(1, len(first.layers) // 16))
    figure.update_yaxes(title="participation ratio", rangemode="tozero")
    counts = sorted({one.n for one in found.values() if isinstance(one, Dimensionality)})
    same = f"n = {counts[0]} items in each." if len(counts) == 1 else f"n = {counts}: it grows with n, do not compare."
    return finish(figure, "How many dimensions do the states fill?", f"{same} Bands: 95% intervals, jackknife.")


def _line(one: EntropyCurve | Dimensionality) -> tuple[list[float], Sequence[Estimate]]:
    if isinstance(one, EntropyCurve):
        return [float(s) for s in one.steps], one.by_step
    blocks = [layer.site.block for layer in one.layers]
    return [float(i if b is None else b) for i, b in enumerate(blocks)], [layer.participation for layer in one.layers]


def _countable(given: Mapping[str, np.ndarray]) -> None:
    lengths = {len(column) for column in given.values() if column.ndim == 1}
    if not 2 <= len(given) <= len(SERIES) or len(lengths) != 1 or any(c.ndim != 1 for c in given.values()):
        raise BadInput(
            f"{len(given)} regimes with {sorted(lengths)} values: 2 to {len(SERIES)} of them, (n,) each, one n"
        )
