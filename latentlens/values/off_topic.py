"""Latents that fire when an answer is about something else than the question, by one rule, ranked; frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentlens.values.markup import Shown

if TYPE_CHECKING:
    import pandas as pd

Rule = Literal["derangement", "separability", "contrast"]


@dataclass(frozen=True, eq=False)
class OffTopicDetectors(Shown):
    """Detectors by one rule, strongest first.

    latents: the detectors. statistic: what they are ranked by, named in `ranked_by`, one number each.
    normal_rate, shuffled_rate: share of conversations in which a latent fires, with the answer to its own question and
    with the answer to another one. normal_mean, shuffled_mean: mean of its largest value in a conversation. All of them
    (d_sae,). effect: standardised paired contrast, (d_sae,); beyond `null_high` lies what permuted signs do not reach.
    n_pairs: conversations on either side.
    """

    rule: Rule
    latents: tuple[int, ...]
    statistic: tuple[float, ...]
    ranked_by: str
    normal_rate: NDArray[np.float64]
    shuffled_rate: NDArray[np.float64]
    normal_mean: NDArray[np.float64]
    shuffled_mean: NDArray[np.float64]
    effect: NDArray[np.float64]
    null_high: float
    n_pairs: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def related(self) -> tuple[int, ...]:
        """Every latent whose contrast is beyond chance, detectors included: no fair control for them."""
        return tuple(sorted({*self.latents, *(int(j) for j in np.flatnonzero(self.effect > self.null_high))}))

    def level(self, latent: int) -> float:
        """Mean of its largest value in a conversation with a wrong answer: how strongly it fires when it does."""
        return float(self.shuffled_mean[latent])

    def to_frame(self) -> pd.DataFrame:
        """One row a detector: rank, latent, the statistic, rates and means on either side, effect."""
        import pandas as pd

        at = list(self.latents)
        return pd.DataFrame(
            {
                "rank": range(1, len(at) + 1),
                "latent": at,
                self.ranked_by: self.statistic,
                "fires, own answer": self.normal_rate[at],
                "fires, other answer": self.shuffled_rate[at],
                "mean, own answer": self.normal_mean[at],
                "mean, other answer": self.shuffled_mean[at],
                "paired effect": self.effect[at],
            }
        )

    def __repr__(self) -> str:
        best = ", ".join(map(str, self.latents[:6])) + (", ..." if len(self) > 6 else "")
        return (
            f"OffTopicDetectors({self.rule}: {len(self)} of {len(self.effect)} latents ({best}), {self.n_pairs} pairs)"
        )
