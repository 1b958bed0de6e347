"""identity_matrix(found): do directions and classifiers of concepts invert each other?   identity_by_site(found)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from latentlens.errors import BadInput
from latentlens.methods.identity_test import IdentityTest
from latentlens.views.figures.style import BLUE, CONTROL, bars, cut, finish, heat, level, safe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def identity_matrix(found: IdentityTest) -> Figure:
    """M = A W, rows divided by their diagonal: ones on the diagonal and nothing beside it, if the theorem holds.

    Args: found: from `methods.identity_test.identity_test`.
    """
    import plotly.graph_objects as go

    names = [cut(name, 20) for name in found.concepts]
    hover = [
        [f"moving along <b>{a}</b><br>read by the classifier of <b>{b}</b><br>{v:.2f}" for b, v in zip(names, row)]
        for a, row in zip(names, found.matrix)
    ]
    text = [[f"{v:.2f}" for v in row] for row in found.matrix]
    cells = heat(found.matrix, names, names, signed=True, title="M", largest=1.0, hovertext=hover)
    figure = go.Figure(go.Heatmap(**cells, text=text, texttemplate="%{text}", textfont={"size": 11}))
    finish(
        figure,
        "Does each direction move its own classifier alone?",
        f"Rows: directions, divided by their diagonal. Columns: classifiers. Mean of {found.gap.n} halvings.",
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=0 if len(names) <= 6 else -45, side="bottom")
    margin = {"l": 24 + 7 * max(map(len, names)), "r": 90, "t": 92, "b": 40 + 5 * max(map(len, names))}
    return figure.update_layout(height=200 + 34 * len(names), margin=margin)


def identity_by_site(found: Mapping[str, IdentityTest]) -> Figure:
    """Gap between the diagonal and the rest at each site, with the spread over halvings; labels shuffled in grey.

    Args: found: site -> test.
    Raises: BadInput: none given.
    """
    import plotly.graph_objects as go

    if not found:
        raise BadInput("no site: give {site: identity_test(pairs)}")
    figure, sites = go.Figure(), [safe(site) for site in found]
    for name, colour, symbol, of in (
        ("classifiers of the concepts", BLUE, "circle", [t.gap for t in found.values()]),
        ("labels shuffled", CONTROL, "square", [t.gap_shuffled for t in found.values()]),
    ):
        figure.add_scatter(
            x=sites, y=[e.value for e in of], mode="markers", name=name, error_y=bars(of, colour), hoverinfo="text",
            marker={"color": colour, "symbol": symbol, "size": 10},
            hovertext=[f"<b>{site}</b><br>{name}: {e.short}" for site, e in zip(sites, of)],
        )  # fmt: skip
    level(figure, 0.0)
    figure.update_yaxes(title="mean diagonal − mean |rest|, cosines")
    n = next(iter(found.values())).gap.n
    return finish(
        figure, "Where do directions and classifiers belong together?", f"Bars: 95% of {n} halvings of the pairs."
    )
