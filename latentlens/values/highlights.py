"""Tokens of texts with one number each, shown as coloured text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.values.markup import HEAT, Html, Shown, note, tag, tokens

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Highlights(Shown):
    """One number for every token of some texts: a projection, a score, how strongly a latent fires.

    texts: (n,) the text of each token. position: (n,) its position there. words: (n,). values: (n,), NaN for none.
    name: of what was read. unit: of the values, in words.

    Raises: BadInput: columns of different lengths, or no token.
    """

    texts: np.ndarray
    position: np.ndarray
    words: np.ndarray
    values: np.ndarray
    name: str
    unit: str = ""

    shows_itself = True

    def __post_init__(self) -> None:
        """Check that there is one value a token."""
        lengths = {len(column) for column in (self.texts, self.position, self.words, self.values)}
        if len(lengths) != 1 or lengths == {0}:
            raise BadInput(f"highlights need one value a token, and a token: got columns of {sorted(lengths)}")

    @property
    def largest(self) -> float:
        """The largest |value|: full colour."""
        finite = np.abs(self.values[np.isfinite(self.values)])
        return float(finite.max()) if len(finite) else math.nan

    def to_frame(self) -> pd.DataFrame:
        """One row a token: text, position, token, value."""
        import pandas as pd

        return pd.DataFrame({"text": self.texts, "position": self.position, "token": self.words, "value": self.values})

    def __repr__(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        best = int(np.nanargmax(np.abs(self.values))) if np.isfinite(self.values).any() else 0
        return (
            f"Highlights({self.name}{unit}: {len(self.words)} tokens of {len(set(self.texts.tolist()))} texts, "
            f"strongest {self.values[best]:.3g} at {self.words[best]!r})"
        )

    def _html_parts(self) -> tuple[Html, ...]:
        lines = []
        for text in dict.fromkeys(self.texts.tolist()):
            mine = self.texts == text
            shown = tokens(self.words[mine].tolist(), self.values[mine].tolist(), largest=self.largest)
            lines.append(tag("div", shown, style="margin:.35em 0;line-height:1.9"))
        unit = f", {self.unit}" if self.unit else ""
        scale = [
            tag("span", f" {sign * self.largest:.3g} ", class_="ll-t", style=f"background:rgba({HEAT[sign]},0.75)")
            for sign in ((-1, 1) if (self.values < 0).any() else (1,))
        ]
        said = tag("span", f" {self.name}{unit}; the number of a token is its title", class_="ll-note")
        legend = tag("div", *scale, said, style="font-size:12px")
        return (*lines, legend) if np.isfinite(self.largest) else (*lines, note("no finite value"))


def highlights_of(labels: Any, values: np.ndarray, name: str, unit: str = "") -> Highlights:
    """Highlights of labelled rows, in reading order.

    Raises: BadInput: the rows have no labels text, position and token.
    """
    missing = {"text", "position", "token"} - set(labels)
    if missing:
        raise BadInput(f"highlights need the labels text, position and token; {', '.join(sorted(missing))} are missing")
    text, position = np.asarray(labels["text"]), np.asarray(labels["position"])
    order = np.lexsort((position, text))
    words = np.asarray(labels["token"], dtype=object)
    return Highlights(text[order], position[order], words[order], np.asarray(values, dtype=float)[order], name, unit)
