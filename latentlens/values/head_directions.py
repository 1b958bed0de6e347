"""Directions inside attention heads, as ITI uses them: a unit vector, a spread and a score for every head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.markup import Shown
from latentlens.values.operations import Add
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class HeadDirections(Shown):
    """A direction for every head of the blocks read.

    sites: the sites `z[l]`, one a block. theta: (blocks, heads, d_head), unit vectors; zeros where a head's classes do
        not differ. sigma: (blocks, heads), standard deviation of all rows along theta.
    score: (blocks, heads), what heads are chosen by. scored_by: "held-out accuracy" or "separation" (distance of the
        class means along theta over the spread inside the classes).
    best_of_shuffled: the largest score of any head under shuffled labels, over draws: what the best of so many heads
        reaches by luck. None where it was not drawn.
    n_test: rows behind each accuracy, 0 for separations. about: provenance.
    """

    sites: tuple[Site, ...]
    theta: Tensor
    sigma: Tensor
    score: np.ndarray
    scored_by: str
    best_of_shuffled: Estimate | None = None
    n_test: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    def best(self, k: int = 48) -> list[tuple[int, int]]:
        """The k heads of highest score as (place of the site, head); of equals the earlier.

        Raises: BadInput: k is below 1 or above the number of heads.
        """
        if not 1 <= k <= self.score.size:
            raise BadInput(f"k={k}: choose 1 to {self.score.size} heads, as many as {len(self.sites)} blocks have")
        order = np.argsort(-self.score.ravel(), kind="stable")[:k]
        return [(int(i) // self.score.shape[1], int(i) % self.score.shape[1]) for i in order]

    def directions(self, k: int = 48) -> list[Direction]:
        """One Direction a block that has chosen heads: sigma theta in their slices of `z`, zeros elsewhere.

        Raises: BadInput: as `best`; or none of the chosen heads tells the classes apart.
        """
        chosen, found = self.best(k), []
        for place, site in enumerate(self.sites):
            heads = [head for at, head in chosen if at == place]
            vector = torch.zeros_like(self.theta[place])
            vector[heads] = self.sigma[place, heads][:, None] * self.theta[place, heads]
            if vector.any():
                source = {**self.about, "heads": heads}
                found.append(Direction(vector.flatten(), site, f"heads {heads} of {site}", "raw", source))
        if not found:
            raise BadInput(f"none of the {k} heads chosen tells the classes apart")
        return found

    def plan(self, alpha: float = 15.0, k: int = 48, **options: Any) -> list[Add]:
        """The intervention: z_h <- z_h + alpha sigma_h theta_h in the k best heads.

        Args: alpha: in standard deviations of the heads' own rows; the paper's 15, with 48 heads of LLaMA-7B.
            options: `where`, `schedule`, of every `Add`.
        """
        return [Add(direction, alpha, **options) for direction in self.directions(k)]

    def to_frame(self) -> pd.DataFrame:
        """One row a head: site, head, score, sigma, whether its classes differ."""
        import pandas as pd

        blocks, heads = self.score.shape
        return pd.DataFrame(
            {
                "site": [str(site) for site in self.sites for _ in range(heads)],
                "head": list(range(heads)) * blocks,
                self.scored_by: self.score.ravel(),
                "sigma": self.sigma.numpy().ravel(),
                "differs": self.theta.any(-1).numpy().ravel(),
            }
        )

    def table(self) -> pd.DataFrame:
        """The same, best heads first."""
        return self.to_frame().sort_values(self.scored_by, ascending=False, kind="stable", ignore_index=True)

    def __repr__(self) -> str:
        (place, head), *_ = self.best(1)
        null = f"; best of them under shuffled labels {self.best_of_shuffled.short}" if self.best_of_shuffled else ""
        return (
            f"HeadDirections({self.score.size} heads, {len(self.sites)} blocks; best {self.sites[place]}, head {head}: "
            f"{self.scored_by} {self.score[place, head]:.3f}{null})"
        )
