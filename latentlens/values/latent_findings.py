"""What was found about SAE latents, frozen.

Firing      how often and how strongly each latent fires
Examples    the tokens that a latent fires on most, in their context
Detectors   how well each latent tells two sets of rows apart
LogitLens   the tokens that latents write towards and away from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.maths.statistics import auroc_score_interval
from latentlens.values.markup import Shown, table, tag, tokens
from latentlens.values.results import Estimate
from latentlens.values.visible import visible

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Firing(Shown):
    """Statistics of every latent over n_rows rows, (d_sae,) each.

    rate: share of rows on which it fires. mean: over all rows. active_mean: over the rows on which it fires (NaN if
    none). max: largest.
    """

    rate: np.ndarray
    mean: np.ndarray
    active_mean: np.ndarray
    max: np.ndarray
    n_rows: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.rate)

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a row."""
        return float(self.rate.sum())

    @property
    def dead(self) -> np.ndarray:
        """Which latents fire on no row, (d_sae,) bool."""
        return self.rate == 0

    def top(self, k: int = 10, by: str = "mean") -> list[int]:
        """The k latents with the largest `mean`, `max`, `rate` or `active_mean`; latents that never fire are left out.

        Raises: BadInput: another statistic.
        """
        if by not in ("mean", "max", "rate", "active_mean"):
            raise BadInput(f"by={by!r}: allowed are mean, max, rate and active_mean")
        values = np.where(self.dead, -np.inf, np.nan_to_num(getattr(self, by)))
        order = np.argsort(-values, kind="stable")[:k]
        return [int(j) for j in order if not self.dead[j]]

    def to_frame(self, latents: Sequence[int] | None = None) -> pd.DataFrame:
        """One row a latent: latent, rate, mean, active_mean, max."""
        import pandas as pd

        index = np.arange(self.d_sae) if latents is None else np.asarray(latents, dtype=int)
        columns = {name: getattr(self, name)[index] for name in ("rate", "mean", "active_mean", "max")}
        return pd.DataFrame({"latent": index, **columns})

    def __repr__(self) -> str:
        return f"Firing({self.d_sae} latents on {self.n_rows} rows: L0 {self.l0:.1f}, {self.dead.mean():.1%} silent)"

    def _html_parts(self) -> tuple[Any, ...]:
        return (table(self.to_frame(self.top(10))),)


@dataclass(frozen=True)
class Example:
    """A stretch of one text: its tokens, how strongly the latent fires on each, and which one is the example."""

    text: int
    position: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int

    @property
    def peak(self) -> float:
        """How strongly the latent fires there."""
        return self.values[self.at]

    def __str__(self) -> str:
        shown = (f"[[{visible(t)}]]" if i == self.at else visible(t) for i, t in enumerate(self.tokens))
        return f"{self.peak:8.3f}  text {self.text}:{self.position}  " + "".join(shown).replace("\n", "\\n")


@dataclass(frozen=True)
class Examples(Shown):
    """What a latent fires on most, strongest first; tokens are coloured by how strongly it fires on them."""

    latent: int
    items: tuple[Example, ...]
    rate: float
    name: str = ""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        return iter(self.items)

    def __getitem__(self, index: int) -> Example:
        return self.items[index]

    def to_frame(self) -> pd.DataFrame:
        """One row an example: latent, text, position, token, value, context."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "latent": self.latent,
                    "text": e.text,
                    "position": e.position,
                    "token": e.tokens[e.at],
                    "value": e.peak,
                    "context": "".join(e.tokens),
                }
                for e in self.items
            ]
        )

    def __str__(self) -> str:
        head = f"latent {self.latent}{f' ({self.name})' if self.name else ''}: fires on {self.rate:.2%} of rows"
        return "\n".join([head, *(str(e) for e in self.items)])

    __repr__ = __str__

    def _html_parts(self) -> tuple[Any, ...]:
        strongest = max((max(e.values) for e in self.items), default=0.0)
        shown = [
            {"fires": e.peak, "context": tag("span", tokens(e.tokens, e.values, largest=strongest, at=e.at))}
            for e in self.items
        ]
        return (table(shown, None),)


@dataclass(frozen=True, eq=False)
class Detectors(Shown):
    """How well each latent tells positive rows from negative ones.

    auroc: (d_sae,), ties counted one half: a latent that fires on none has 0.5.
    null_high: under permuted labels, the 95% quantile of the LARGEST AUROC over all latents; null_low: of the smallest.
        What lies outside was not found by looking at many latents.
    positive_rate, negative_rate: shares of rows on which it fires, (d_sae,).
    """

    auroc: np.ndarray
    positive_rate: np.ndarray
    negative_rate: np.ndarray
    n_positive: int
    n_negative: int
    null_low: float
    null_high: float
    n_permutations: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def estimate(self, latent: int) -> Estimate:
        """AUROC of one latent with its score interval (rows taken as independent)."""
        value = float(self.auroc[latent])
        low, high = auroc_score_interval(value, self.n_positive, self.n_negative)
        return Estimate(value, low, high, self.n_positive + self.n_negative)

    def best(self, k: int = 10, *, either: bool = False) -> list[int]:
        """The k latents with the largest AUROC, or the farthest from one half on `either` side."""
        score = np.abs(self.auroc - 0.5) if either else self.auroc
        return [int(j) for j in np.argsort(-score, kind="stable")[:k]]

    @property
    def beyond_chance(self) -> list[int]:
        """Latents above `null_high`, best first."""
        return self.best(int((self.auroc > self.null_high).sum()))

    def to_frame(self, k: int = 20) -> pd.DataFrame:
        """The k best: latent, auroc, low, high, positive_rate, negative_rate, beyond_chance."""
        import pandas as pd

        rows = []
        for j in self.best(k):
            e = self.estimate(j)
            rates = {"positive_rate": self.positive_rate[j], "negative_rate": self.negative_rate[j]}
            found = {"latent": j, "auroc": e.value, "low": e.low, "high": e.high, **rates}
            rows.append({**found, "beyond_chance": e.value > self.null_high})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        found = (f"{j}: {self.estimate(j).short}" for j in self.best(3))
        rows = f"{self.n_positive} against {self.n_negative} rows"
        chance = f"by chance the best of all reaches {self.null_high:.3f} ({self.n_permutations} permutations)"
        return f"Detectors({len(self.auroc)} latents, {rows}; best {'; '.join(found)}; {chance})"


@dataclass(frozen=True)
class LogitLens(Shown):
    """Tokens whose logits a unit of each latent raises and lowers most, with the change."""

    latents: tuple[int, ...]
    raised: tuple[tuple[tuple[str, float], ...], ...]
    lowered: tuple[tuple[tuple[str, float], ...], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a latent, side and rank: latent, side, rank, token, logit."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"latent": latent, "side": side, "rank": rank, "token": token, "logit": value}
                for side, table in (("raised", self.raised), ("lowered", self.lowered))
                for latent, tokens in zip(self.latents, table, strict=True)
                for rank, (token, value) in enumerate(tokens)
            ]
        )

    def __str__(self) -> str:
        lines = []
        for latent, up, down in zip(self.latents, self.raised, self.lowered, strict=True):
            lines.append(f"latent {latent}: + {_listed(up)} | - {_listed(down)}")
        return "\n".join(lines)

    __repr__ = __str__

    def _html_head(self) -> str:
        return f"LogitLens({len(self.latents)} latents: tokens that one unit raises and lowers most)"

    def _html_parts(self) -> tuple[Any, ...]:
        sides = zip(self.latents, self.raised, self.lowered, strict=True)
        return (table([{"latent": j, "raises": _listed(up), "lowers": _listed(down)} for j, up, down in sides], None),)


def _listed(tokens: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{visible(token)!r} {value:+.2f}" for token, value in tokens)
