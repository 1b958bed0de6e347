"""What projections on a trait vector tell: about answers to come, about texts, about data, about a training.

Separation   how well projections tell texts with a trait from texts without
Monitoring   how projections go with the trait of what is written
Drift        projections by turn of a conversation
Shift        difference of projections between two models, or between training data and the model's own answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import SiteNotFound
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Separation(Shown):
    """AUROC of a projection at several sites.

    rows: one mapping a site: `site`, `auroc` and `random` as Estimates. random: |AUROC - .5| + .5 of random directions,
    their sign chosen in hindsight: mean and 95% range over draws. length: AUROC of the number of tokens alone.
    """

    rows: Sequence[Mapping[str, Any]]
    length: Estimate | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def at(self, site: Any) -> Mapping[str, Any]:
        """The row of one site.

        Raises: SiteNotFound.
        """
        for row in self.rows:
            if row["site"] == str(site):
                return row
        raise SiteNotFound(f"{site} is not among {', '.join(str(row['site']) for row in self.rows)}")

    def to_frame(self) -> pd.DataFrame:
        """One row a site."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __repr__(self) -> str:
        best = max(self.rows, key=lambda row: row["auroc"].value)
        length = "" if self.length is None else f", length alone {self.length.short}"
        return f"Separation({len(self.rows)} sites; highest at {best['site']}: AUROC {best['auroc']}{length})"


@dataclass(frozen=True, eq=False)
class Monitoring(Shown):
    """How a projection goes with a score.

    pearson, spearman: over all rows. within: Pearson after the mean of each kind (of prompt) was taken off both sides:
    what is left when kinds are known; None without kinds. projection, score, kind: the rows, for the figure.
    """

    pearson: Estimate
    spearman: Estimate
    within: Estimate | None
    projection: NDArray[np.float64]
    score: NDArray[np.float64]
    kind: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row an answer: kind, projection, score."""
        import pandas as pd

        return pd.DataFrame({"kind": self.kind, "projection": self.projection, "score": self.score})

    def table(self) -> pd.DataFrame:
        """The correlations, for people."""
        import pandas as pd

        named = {"Pearson r": self.pearson, "Spearman": self.spearman, "Pearson r within a kind of prompt": self.within}
        return pd.DataFrame([{"statistic": k, "value": v} for k, v in named.items() if v is not None])

    def __repr__(self) -> str:
        within = "" if self.within is None else f", within a kind of prompt {self.within.short}"
        return f"Monitoring(Pearson r {self.pearson}{within})"


@dataclass(frozen=True, eq=False)
class Drift(Shown):
    """Mean projection of the assistant's words by turn of a conversation.

    turns: number of the assistant's turn, from 1. by_turn: mean over conversations. slope: change a turn, least squares
    inside each conversation, mean over conversations.
    """

    turns: tuple[int, ...]
    by_turn: tuple[Estimate, ...]
    slope: Estimate
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a turn."""
        import pandas as pd

        return pd.DataFrame({"turn": self.turns, "projection": self.by_turn})

    def __repr__(self) -> str:
        return f"Drift({len(self.turns)} turns: {self.by_turn[0].short} at first, slope {self.slope.short} a turn)"


@dataclass(frozen=True, eq=False)
class Shift(Shown):
    """Paired differences of projections.

    mean: over rows. values: (n,) the difference of each row. what: what was compared, in words.
    """

    mean: Estimate
    values: NDArray[np.float64]
    what: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt."""
        import pandas as pd

        return pd.DataFrame({"difference": self.values})

    def __repr__(self) -> str:
        return f"Shift({self.what}: {self.mean})"
