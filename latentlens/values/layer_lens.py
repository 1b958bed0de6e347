"""The logit lens: what a model would say next if it stopped after each block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput, SiteNotFound
from latentlens.values.directions import as_site
from latentlens.values.markup import Html, Shown, table, tag
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class LayerLens(Shown):
    """The model's own final norm, unembedding, scaling and softcapping, applied to the stream at several sites.

    At the last block this is the model's output. Before it, it is a reading in a frame that earlier blocks need not
    use: a token that appears early is evidence, one that does not appear is none.

    sites: in order. labels: per column one value per position read, as in `Activations`.
    top: (n_sites, n_rows, k) token ids, the likeliest first; p: their probabilities; words: id -> text.
    entropy: (n_sites, n_rows), nats. kl: KL(model's output || lens), nats.
    next_id: (n_rows,) the token that follows in the text, -1 at its end. next_p, next_rank: (n_sites, n_rows) its
        probability and rank (0 is the likeliest); NaN at the end.
    watched: token text -> (n_sites, n_rows) probability.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """

    sites: tuple[Site, ...]
    labels: Mapping[str, np.ndarray]
    top: np.ndarray
    p: np.ndarray
    words: Mapping[int, str]
    entropy: np.ndarray
    kl: np.ndarray
    next_id: np.ndarray
    next_p: np.ndarray
    next_rank: np.ndarray
    watched: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    shows_itself = True

    def __len__(self) -> int:
        return len(self.next_id)

    def at(self, site: Site | str) -> int:
        """Index of a site.

        Raises: SiteNotFound: not read; says which were.
        """
        wanted = as_site(site)
        if wanted not in self.sites:
            raise SiteNotFound(f"{wanted} was not read. Held: {', '.join(map(str, self.sites))}")
        return self.sites.index(wanted)

    def of_text(self, text: int) -> LayerLens:
        """The positions of one text.

        Raises: BadInput: no such text.
        """
        held = sorted(set(self.labels["text"].tolist()))
        if text not in held:
            raise BadInput(f"no text {text!r} in this lens; it holds {held[0]} to {held[-1]}")
        keep = self.labels["text"] == text
        kept = {name: getattr(self, name)[:, keep] for name in ("top", "p", "entropy", "kl", "next_p", "next_rank")}
        labels = {name: column[keep] for name, column in self.labels.items()}
        watched = {name: column[:, keep] for name, column in self.watched.items()}
        return replace(self, **kept, labels=labels, next_id=self.next_id[keep], watched=watched)

    def says(self, site: Site | str, row: int = -1) -> list[tuple[str, float]]:
        """Tokens and probabilities at a site and position, the likeliest first."""
        at = self.at(site)
        return [(self.words[int(i)], float(p)) for i, p in zip(self.top[at, row], self.p[at, row], strict=True)]

    def to_frame(self) -> pd.DataFrame:
        """One row a site and position: site, text, position, token, says, p, entropy, kl, next, next_p, next_rank."""
        import pandas as pd

        n = len(self)
        named = {name: np.tile(self.labels[name], len(self.sites)) for name in ("text", "position", "token")}
        following = np.array([self.words.get(int(i), "") for i in self.next_id], dtype=object)
        columns: dict[str, Any] = {"site": np.repeat([str(s) for s in self.sites], n), **named}
        columns["says"] = [self.words[int(i)] for i in self.top[:, :, 0].ravel()]
        columns |= {"p": self.p[:, :, 0].ravel(), "entropy": self.entropy.ravel(), "kl": self.kl.ravel()}
        columns |= {"next": np.tile(following, len(self.sites))}
        columns |= {"next_p": self.next_p.ravel(), "next_rank": self.next_rank.ravel()}
        columns |= {f"p({name})": column.ravel() for name, column in self.watched.items()}
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        said = ", ".join(f"{word!r} {p:.2f}" for word, p in self.says(self.sites[-1])[:3]) if len(self) else "nothing"
        return f"LayerLens({len(self.sites)} sites, {len(self)} positions; the last position ends in {said})"

    def _html_parts(self) -> tuple[Html, ...]:
        first = self.of_text(self.labels["text"][0]) if len(self) else self
        shown = list(range(len(first)))[-_COLUMNS:]
        rows = [
            {"site": str(site), **{_heading(first, i): _cell(first, at, i) for i in shown}}
            for at, site in reversed(list(enumerate(first.sites)))
        ]
        return (table(rows, None),)


_COLUMNS = 10


def _heading(lens: LayerLens, row: int) -> str:
    """Position and token, on one line."""
    return f"{lens.labels['position'][row]} {str(lens.labels['token'][row])!r}".replace(" ", "\u00a0")


def _cell(lens: LayerLens, at: int, row: int) -> Html:
    """The likeliest token on blue as strong as it is likely; the others as its title."""
    others = ", ".join(f"{word!r} {p:.2f}" for word, p in lens.says(lens.sites[at], row))
    p = float(lens.p[at, row, 0])
    word = lens.words[int(lens.top[at, row, 0])]
    style = f"white-space:pre;background:rgba(0,114,178,{0.6 * p:.2f})"
    return tag("span", repr(word)[1:-1], title=others, class_="ll-t", style=style)
