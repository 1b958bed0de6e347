"""paths(of): how do the states travel through a text: where to, how fast, how straight?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.maths.paths import speed, turning
from latentlens.values.sites import Site
from latentlens.values.trajectory import Paths
from latentlens.views.figures.style import SERIES, TIME, faint, finish, level, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST = 12


def paths(of: Paths, *, site: Site | str | None = None, labels: Sequence[Any] | None = None) -> Figure:
    """Paths of some texts in the plane that holds most of their variance; step length and turning angle beside it.

    A random walk looks like a smooth curve in this plane, too (its first two components hold most of it): the subtitle
    says how much of the variance the plane holds here and for Gaussian walks of the same lengths. Turning angles of
    independent steps in many dimensions lie at pi / 2, of states that fluctuate about a point at 2 pi / 3.

    Args:
        of: from `trajectory.paths`; slice it to choose texts. site: which; the last by default.
        labels: one a text, for colours and the legend; the texts' numbers by default.
    Raises: BadInput: no such site, more than 12 texts, or labels that do not fit.
    """
    from plotly.subplots import make_subplots

    if not 0 < len(of) <= _MOST:
        raise BadInput(f"{len(of)} texts: draw 1 to {_MOST} of them, e.g. paths(found[:6])")
    names = [str(one) for one in (labels if labels is not None else [f"text {t}" for t in of.texts])]
    if len(names) != len(of):
        raise BadInput(f"{len(names)} labels for {len(of)} texts")
    at = len(of.sites) - 1 if site is None else [str(s) for s in of.sites].index(_site(of, site))
    states = [np.asarray(x[at], dtype=np.float64) for x in of.states]
    flat, held = _plane(states)
    walked = _walk_share(states, seed=0)
    figure = make_subplots(
        rows=2, cols=2, column_widths=[0.6, 0.4], specs=[[{"rowspan": 2}, {}], [None, {}]], shared_xaxes=False,
        horizontal_spacing=0.12, vertical_spacing=0.14,
    )  # fmt: skip
    colours = {name: SERIES[i % len(SERIES)] for i, name in enumerate(dict.fromkeys(names))}
    seen: set[str] = set()
    for one, xy, name, starts in zip(states, flat, names, of.starts):
        colour, size = colours[name], np.full(len(xy), 5.0)
        size[[0, -1]] = 11
        symbol = ["circle-open", *["circle"] * (len(xy) - 2), "diamond"][: len(xy)]
        marker = {"color": colour, "size": size.tolist(), "symbol": symbol, "line": {"width": 0}}
        if len(states) == 1:  # colour is free to tell the time
            marker |= {"color": list(range(len(xy))), "colorscale": [list(stop) for stop in TIME]}
        figure.add_scatter(
            x=xy[:, 0], y=xy[:, 1], mode="lines+markers", line={"color": faint(colour, 0.4), "width": 1},
            hoverinfo="text", marker=marker, name=safe(name), legendgroup=safe(name),
            showlegend=name not in seen, row=1, col=1,
            hovertext=[f"{safe(name)}<br>point {i}, from token {p}" for i, p in enumerate(starts)],
        )  # fmt: skip
        seen.add(name)
        step, turn = speed(one[None])[0], turning(one[None])[0]
        for row, values, first in ((1, step, 1), (2, turn, 2)):
            figure.add_scatter(
                x=list(range(first, first + len(values))), y=values, mode="lines", row=row, col=2, showlegend=False,
                line={"color": colour, "width": 1.2}, legendgroup=safe(name), name=safe(name),
            )  # fmt: skip
    for angle, dash in ((np.pi / 2, "dot"), (2 * np.pi / 3, "dash")):
        level(figure, angle, dash, row=2, col=2)
    figure.update_xaxes(title="first component", row=1, col=1)
    figure.update_yaxes(title="second component", scaleanchor="x", row=1, col=1)
    figure.update_yaxes(title="step length", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(
        title="turning angle", tickvals=[0, np.pi / 2, 2 * np.pi / 3, np.pi], ticktext=["0", "π/2", "2π/3", "π"],
        range=[0, np.pi], row=2, col=2,
    )  # fmt: skip
    figure.update_xaxes(title="point", row=2, col=2)
    time = ", blue to orange in between" if len(states) == 1 else ""
    share = f"The plane holds {held:.0%} of the variance; of random walks {walked:.0%}."
    said = f"{of.sites[at]}; ○ start, ◆ end{time}. {share}"
    finish(figure, "How do the states travel?", said)
    return figure.update_layout(height=520, showlegend=len(colours) > 1)


def _site(of: Paths, site: Site | str) -> str:
    if str(site) not in [str(s) for s in of.sites]:
        raise BadInput(f"{site} is not among {', '.join(map(str, of.sites))}")
    return str(site)


def _plane(states: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Every path in the first two principal components of all points, and the share of variance these hold."""
    points = np.concatenate(states)
    centre = points.mean(0)
    _, sizes, axes = np.linalg.svd(points - centre, full_matrices=False)
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-30))
    kept = np.zeros((2, points.shape[1]))
    kept[: min(2, len(axes))] = axes[:2]
    return [(x - centre) @ kept.T for x in states], share


def _walk_share(states: list[np.ndarray], seed: int, draws: int = 10) -> float:
    """What the plane would hold if every path were a Gaussian random walk of as many steps from its own start."""
    rng, shares = np.random.default_rng(seed), []
    for _ in range(draws):
        walks = []
        for x in states:
            size = np.linalg.norm(np.diff(x, axis=0), axis=1).mean() if len(x) > 1 else 0.0
            steps = rng.standard_normal((max(len(x) - 1, 0), x.shape[1])) * size / x.shape[1] ** 0.5
            walks.append(x[:1] + np.concatenate([np.zeros((1, x.shape[1])), steps.cumsum(0)]))
        shares.append(_plane(walks)[1])
    return float(np.mean(shares))
