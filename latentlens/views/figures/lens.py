"""The logit lens, drawn: what would be said after each block, and when an answer appears.

logit_lens(lens)            what would the model say if it stopped here?
lens_at(lens, row=-1)       at one position: which block decides it?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentlens.errors import BadInput
from latentlens.values.layer_lens import LayerLens
from latentlens.views.figures.style import CONTROL, SERIES, cut, finish, heat, words_below

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def logit_lens(lens: LayerLens, *, text: int = 0, last: int = 16) -> Figure:
    """The likeliest next token after each block, for every position of one text; its colour is its probability.

    Args: lens: from `lm.logit_lens`. text: which input. last: how many positions at its end are shown.
    Raises: BadInput: no such text.
    """
    import plotly.graph_objects as go

    mine = lens.of_text(text)
    n = len(mine)
    kept = np.arange(max(0, n - last), n)
    words = [str(w) for w in mine.labels["token"][kept]]
    p = mine.p[:, kept, 0]
    room = min(12, max(4, round(90 / len(words))))  # characters that a cell has room for
    said = [[cut(mine.words[int(i)], room) for i in row] for row in mine.top[:, kept, 0]]
    hover = [[_hover(mine, at, int(row)) for row in kept] for at in range(len(mine.sites))]
    names = [_name(site) for site in mine.sites]
    cells = heat(p, range(len(words)), names, signed=False, title="probability", largest=1.0, hovertext=hover)
    figure = go.Figure(go.Heatmap(**cells, text=said, texttemplate="%{text}", textfont={"size": 11}))
    words_below(figure, words)
    finish(
        figure, "What would be said next, if the model stopped here?", "Final norm and unembedding are the model's own."
    )
    left = 24 + 7.5 * max(map(len, names))
    size = {"l": left, "r": 90, "t": 92, "b": 56 if len(words) <= 12 else 116}
    return figure.update_layout(height=230 + 26 * len(names), margin=size)


def lens_at(lens: LayerLens, *, row: int = -1, top: int = 4) -> Figure:
    """Probability of the model's likeliest tokens, and of those watched, after each block, at one position.

    Dashed grey: the token that follows in the text, where it is none of them.

    Args: lens: from `lm.logit_lens`. row: which position of the lens. top: how many of the likeliest.
    Raises: BadInput: no such row.
    """
    import plotly.graph_objects as go

    if not -len(lens) <= row < len(lens):
        raise BadInput(f"row={row}: the lens holds {len(lens)} positions")
    names, x = [_name(site) for site in lens.sites], list(range(len(lens.sites)))
    lines: dict[str, list[float]] = {}
    for token in lens.top[-1, row, :top]:
        # what is not among the tokens kept at a block is less likely than the last of them
        kept = np.where(lens.top[:, row] == token, lens.p[:, row], 0.0).sum(-1)
        lines[lens.words[int(token)]] = [float(v) if v > 0 else np.nan for v in kept]
    lines |= {word: [float(v) for v in column[:, row]] for word, column in lens.watched.items()}
    figure = go.Figure()
    for i, (word, values) in enumerate(lines.items()):
        colour = SERIES[i % len(SERIES)]
        figure.add_scatter(
            x=x, y=values, mode="lines+markers", name=f"“{_short(word)}”", connectgaps=False,
            line={"color": colour, "width": 2.5}, marker={"color": colour, "size": 7}, hoverinfo="text",
            hovertext=[f"<b>{_short(word)}</b><br>{name}<br>p = {v:.3f}" for name, v in zip(names, values)],
        )  # fmt: skip
    follows = lens.words.get(int(lens.next_id[row]))
    if follows is not None and follows not in lines:
        figure.add_scatter(
            x=x, y=lens.next_p[:, row].tolist(), mode="lines", name=f"“{_short(follows)}”, which follows in the text",
            line={"color": CONTROL, "dash": "dash"}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_xaxes(tickvals=x, ticktext=names)
    figure.update_yaxes(title="probability", range=[-0.02, 1.02])
    word = _short(str(lens.labels["token"][row]))
    kept = f"A line begins where its token is among the {lens.p.shape[-1]} likeliest."
    return finish(figure, f"When does the model know what follows “{word}”?", kept)


def _name(site: object) -> str:
    return "embedding" if str(site) == "resid_pre[0]" else str(site)


def _short(word: str) -> str:
    return cut(word, 14)


def _hover(lens: LayerLens, at: int, row: int) -> str:
    said = "<br>".join(f"{_short(word)}  {p:.3f}" for word, p in lens.says(lens.sites[at], row))
    end = (
        ""
        if np.isnan(lens.next_rank[at, row])
        else f"<br>the token that follows has rank {lens.next_rank[at, row]:.0f}"
    )
    return f"<b>{lens.sites[at]}</b>, after “{_short(str(lens.labels['token'][row]))}”<br>{said}{end}"
