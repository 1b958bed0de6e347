"""What ACT fits: probes of attention heads, one a head and cluster of questions, and the plan made of the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.adaptive import ShortfallAdd
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class HeadProbe:
    """One probe: p = sigmoid(weight . x_head + bias).

    theta: unit normal. sigma: standard deviation of projections on it over all activations. accuracy: mean over target
    and other rows of the share told right, on held-out prompts of its cluster; 0 where fewer than five rows were held
    out. n_validation: how many.
    """

    site: Site
    head: int
    cluster: int
    weight: Tensor
    bias: float
    sigma: float
    accuracy: float
    n_validation: int

    @property
    def theta(self) -> Tensor:
        """Unit normal, pointing to the target."""
        return self.weight / self.weight.norm()


@dataclass(frozen=True, eq=False)
class ActHeads(Shown):
    """Probes of all heads and clusters.

    shape: how `z` splits at each site, (heads, d_head). k: clusters a head. control: accuracy of the whole procedure
    with a random style of each prompt in place of the target, mean and range over n probes: what no signal scores.
    """

    probes: tuple[HeadProbe, ...]
    shape: Mapping[Site, tuple[int, int]]
    k: int
    control: Estimate | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def best(self, top: int = 24) -> tuple[HeadProbe, ...]:
        """The `top` probes of every cluster by validation accuracy, the first of equals.

        Raises: BadInput: top is below 1.
        """
        if top < 1:
            raise BadInput(f"top={top}: at least one head a cluster")
        found = []
        for cluster in range(self.k):
            mine = [probe for probe in self.probes if probe.cluster == cluster]
            found += sorted(mine, key=lambda probe: -probe.accuracy)[:top]
        return tuple(found)

    @property
    def accuracy(self) -> float:
        """Mean validation accuracy of the probes that have one; NaN without any."""
        judged = [p.accuracy for p in self.probes if p.n_validation]
        return float(np.mean(judged)) if judged else float("nan")

    def plan(
        self, alpha: float = 12.0, top: int = 24, *, beta: float | None = 0.0, where: Any = "last_prompt+response",
        schedule: Any = None,
    ) -> list[ShortfallAdd]:  # fmt: skip
        """The intervention, one a block: x += alpha sigma theta (1 + beta - p) for the chosen probes of all clusters.

        Args: alpha: 12 (15 in the paper's first version). top: heads a cluster, 24 (48). beta: as `ShortfallAdd`.
        """
        by_site: dict[Site, list[HeadProbe]] = {}
        for probe in self.best(top):
            by_site.setdefault(probe.site, []).append(probe)
        if not by_site:
            raise TooFewExamples("no head has a probe: in no cluster were both kinds of rows to fit on")
        plans = []
        for site in sorted(by_site, key=lambda site: site.depth):
            mine = by_site[site]
            vectors = torch.stack([self._placed(p, p.sigma * p.theta) for p in mine])
            weight = torch.stack([self._placed(p, p.weight) for p in mine])
            bias = torch.tensor([p.bias for p in mine])
            plans.append(ShortfallAdd(vectors, weight, bias, alpha, beta, site=site, where=where, schedule=schedule))
        return plans

    def _placed(self, probe: HeadProbe, vector: Tensor) -> Tensor:
        """A vector of one head in the whole of `z`, zero elsewhere."""
        heads, width = self.shape[probe.site]
        whole = torch.zeros(heads, width)
        whole[probe.head] = vector
        return whole.flatten()

    def to_frame(self) -> pd.DataFrame:
        """One row a probe: site, head, cluster, accuracy, rows held out, sigma."""
        import pandas as pd

        names = ("site", "head", "cluster", "accuracy", "n_validation", "sigma")
        rows = [[str(p.site), p.head, p.cluster, p.accuracy, p.n_validation, p.sigma] for p in self.probes]
        return pd.DataFrame(rows, columns=list(names))

    def __repr__(self) -> str:
        best = max((p.accuracy for p in self.probes if p.n_validation), default=float("nan"))
        control = "" if self.control is None else f", without signal {self.control.value:.3f}"
        return (
            f"ActHeads({len(self.probes)} probes in {len(self.shape)} blocks, {self.k} clusters a head: validation "
            f"accuracy mean {self.accuracy:.3f}, best {best:.3f}{control})"
        )
