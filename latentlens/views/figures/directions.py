"""cosine_map(directions): are these directions the same, opposite, or strangers?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from latentlens.values.direction_table import cosines
from latentlens.values.directions import Direction
from latentlens.views.figures.style import cut, finish, heat

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def cosine_map(directions: Mapping[str, Direction]) -> Figure:
    """Cosine of every direction with every other; what chance explains is left without a number.

    Of random directions in d dimensions the cosine has standard deviation 1 / sqrt(d); with m pairs, the band holds all
    of them in 95 of 100 tries (Bonferroni). States of a model share directions, so theirs are larger than that as a
    rule: above the band means related by more than isotropic chance, not related by concept.

    Args: directions: name -> Direction, of one width and frame.
    Raises: BadInput: none given, or directions that do not fit together.
    """
    import plotly.graph_objects as go
    from scipy.stats import norm

    frame = cosines(directions)
    z, names = frame.to_numpy(), [cut(name, 24) for name in frame.columns]
    pairs = max(1, len(names) * (len(names) - 1) // 2)
    chance = float(norm.isf(0.025 / pairs) * frame.attrs["random sd"])
    text = [["" if abs(v) < chance else f"{v:.2f}" for v in row] for row in z]
    hover = [[f"{a}<br>{b}<br>cosine {v:.3f}" for b, v in zip(names, row)] for a, row in zip(names, z)]
    shown = np.where(np.abs(z) < chance, 0.0, z)
    cells = heat(shown, names, names, signed=True, title="cosine", largest=1.0, hovertext=hover)
    figure = go.Figure(go.Heatmap(**cells, text=text, texttemplate="%{text}", textfont={"size": 11}))
    tried = f"{pairs} random pairs pass" if pairs > 1 else "a random pair passes"
    said = f"Without a number: |cosine| below {chance:.2f}, which {tried} once in 20 tries."
    finish(figure, "Are these directions related?", said)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=0 if len(names) <= 6 else -45, side="bottom")
    left = 24 + 7 * max(map(len, names))
    size = {"l": left, "r": 90, "t": 92, "b": 40 if len(names) <= 6 else 30 + 5 * max(map(len, names))}
    return figure.update_layout(height=180 + 34 * len(names), margin=size)
