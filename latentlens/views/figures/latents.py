"""latent_dashboard(codes, latent): what is this latent? Texts it fires on, how it fires, what it writes, its like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.methods import latents as methods
from latentlens.values.codes import Codes, latent_index
from latentlens.values.latent_findings import Examples, LogitLens
from latentlens.values.markup import HEAT, Html, Shown, facts, note, tag
from latentlens.values.sae import SAE
from latentlens.views.figures.style import BLUE

if TYPE_CHECKING:
    import pandas as pd

_BINS = 40


@dataclass(frozen=True, eq=False)
class LatentDashboard(Shown):
    """One latent on one page. counts, edges: histogram of its activations where it fires. n_rows: rows read.

    alike: (latent, cosine of the decoder rows); together: (latent, correlation of firing). Empty without an SAE.
    """

    latent: int
    examples: Examples
    counts: np.ndarray
    edges: np.ndarray
    n_rows: int
    writes: LogitLens | None = None
    alike: tuple[tuple[int, float], ...] = ()
    together: tuple[tuple[int, float], ...] = ()
    name: str = ""

    shows_itself = True

    @property
    def n_active(self) -> int:
        """Rows on which it fires."""
        return int(self.counts.sum())

    def to_frame(self) -> pd.DataFrame:
        """Its neighbours: latent, by (decoder or firing), value."""
        import pandas as pd

        rows = [("decoder", *pair) for pair in self.alike] + [("firing", *pair) for pair in self.together]
        return pd.DataFrame(rows, columns=["by", "latent", "value"])

    def __repr__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        return f"LatentDashboard({self.latent}{name}: fires on {self.n_active} of {self.n_rows} rows)"

    def _html_parts(self) -> tuple[Html, ...]:
        left = [tag("h4", "How strongly it fires"), self._histogram()]
        if self.writes is not None:
            at = self.writes.latents.index(self.latent)
            left += [tag("h4", "What one unit writes"), _bars(self.writes.raised[at], self.writes.lowered[at])]
        if self.alike or self.together:
            shown = {"decoder rows alike": _pairs(self.alike), "fire together": _pairs(self.together)}
            left += [tag("h4", "Neighbours"), facts(shown)]
        right = [tag("h4", f"Strongest of {self.n_rows} tokens"), *self.examples._html_parts()]
        side = "flex:1 1 18rem;min-width:0"
        wide = tag("div", *right, style="flex:2 1 26rem;min-width:0")
        return (tag("div", tag("div", *left, style=side), wide, style="display:flex;flex-wrap:wrap;gap:0 2rem"),)

    def _histogram(self) -> Html:
        """Bars over the activations where it fires; heights are square roots of counts, so that few are seen."""
        if not self.n_active:
            return note("It fires on none of them.")
        height = np.sqrt(self.counts / max(self.counts.max(), 1)) * 60
        bars = [
            tag("rect", x=f"{5 * i:.0f}", y=f"{62 - h:.1f}", width="4", height=f"{h:.1f}", fill=BLUE)
            for i, h in enumerate(height)
        ]
        line = tag("line", x1="0", x2="200", y1="62.5", y2="62.5", stroke="currentColor", stroke_opacity="0.4")
        drawn = tag("svg", *bars, line, viewBox="0 0 200 64", width="100%", height="64", preserveAspectRatio="none")
        rate = self.n_active / self.n_rows
        below = note(
            f"{self.edges[0]:.2g} to {self.edges[-1]:.2g}; fires on {rate:.2%} (heights: square roots of counts)"
        )
        return Html(drawn + below)


def latent_dashboard(
    codes: Codes,
    latent: int,
    *,
    sae: SAE | None = None,
    writes: LogitLens | None = None,
    k: int = 8,
    neighbours: int = 5,
    name: str = "",
) -> LatentDashboard:
    """Everything about one latent: a value that shows itself in a notebook and in a report.

    Args:
        codes: of tokens, from `lm.latents(sae, texts)`.
        latent: which. sae: for neighbours by decoder row. writes: from `latents.logit_lens`, for what it writes.
        k: texts shown. neighbours: of each kind.
    Raises: BadInput: no such latent, or `writes` is of other latents.
    """
    latent = int(latent_index([latent], codes.d_sae)[0])
    if writes is not None and latent not in writes.latents:
        raise BadInput(f"writes= holds the latents {writes.latents}, not {latent}")
    values = codes.dense([latent])[:, 0].float().cpu().numpy()
    active = values[values > 0]
    counts, edges = np.histogram(active, bins=_BINS, range=(0.0, float(active.max())) if len(active) else (0.0, 1.0))
    found = methods.examples(codes, latent, k, name=name)
    alike = () if sae is None else _alike(sae, latent, neighbours)
    return LatentDashboard(
        latent, found, counts, edges, len(codes), writes, alike, _together(codes, values, latent, neighbours), name
    )


def _alike(sae: SAE, latent: int, k: int) -> tuple[tuple[int, float], ...]:
    rows = sae.W_dec.detach().float().cpu()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return _top((rows @ rows[latent]).numpy(), latent, k)


def _together(codes: Codes, values: np.ndarray, latent: int, k: int) -> tuple[tuple[int, float], ...]:
    """Latents whose firing (yes or no) correlates most with this one's, over the rows."""
    n, on = len(codes), values > 0
    if not 0 < on.sum() < n:
        return ()
    index, row = codes.indices.cpu().numpy(), codes.row_of.cpu().numpy()
    rate = np.bincount(index, minlength=codes.d_sae) / n
    both = np.bincount(index, on[row], minlength=codes.d_sae) / n
    spread = np.sqrt(rate * (1 - rate) * on.mean() * (1 - on.mean()))
    return _top(np.where(spread > 0, (both - rate * on.mean()) / np.maximum(spread, 1e-12), 0.0), latent, k)


def _top(scores: np.ndarray, latent: int, k: int) -> tuple[tuple[int, float], ...]:
    scores = scores.copy()
    scores[latent] = -np.inf
    best = np.argsort(-scores, kind="stable")[:k]
    return tuple((int(j), float(scores[j])) for j in best if np.isfinite(scores[j]) and scores[j] > 0)


def _pairs(of: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{j} ({value:.2f})" for j, value in of)


def _bars(raised: Sequence[tuple[str, float]], lowered: Sequence[tuple[str, float]]) -> Html:
    """Tokens with a bar each, the most raised first, the most lowered last."""
    given: list[tuple[Any, float]] = [*raised, *reversed(list(lowered))]
    full = max((abs(v) for _, v in given), default=0.0) or 1.0
    rows = []
    for token, value in given:
        colour = HEAT[1 if value > 0 else -1]
        drawn = f"display:inline-block;height:.75em;width:{60 * abs(value) / full:.0f}px;background:rgba({colour},0.8)"
        shown = repr(token)[1:-1].replace(" ", "·")
        rows.append(
            tag("tr", tag("td", shown), tag("td", f"{value:+.2f}", class_="ll-n"), tag("td", tag("span", style=drawn)))
        )
    return tag("table", *rows)
