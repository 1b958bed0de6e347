"""What G-ACT fits: clusters of differences, a probe a site that names the cluster, and the plan made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, SiteNotFound
from latentlens.maths.softmax_probe import Softmax
from latentlens.values.adaptive import AdaptiveAdd
from latentlens.values.directions import Direction, as_site
from latentlens.values.markup import Shown
from latentlens.values.operations import Add
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ClusterScore:
    """How well the cluster of a prompt is named at one site, on prompts that nothing was fitted on.

    accuracy, macro_f1: of the probe; n counts prompts, intervals resample groups of them, NaN where there are too few.
    majority_accuracy, majority_f1: of always naming the largest cluster. shuffled_accuracy, shuffled_f1: of the probe
    refitted on permuted clusters, mean and spread over n draws. heads_accuracy, heads_f1: of the same probe on each
    attention head of the block (as ACT reads), mean and range over n heads; best_head_f1: of the best of them, chosen
    by that score. None where heads were not given.
    """

    site: Site
    accuracy: Estimate
    macro_f1: Estimate
    majority_accuracy: float
    majority_f1: float
    shuffled_accuracy: Estimate
    shuffled_f1: Estimate
    heads_accuracy: Estimate | None = None
    heads_f1: Estimate | None = None
    best_head_f1: float = float("nan")


@dataclass(frozen=True, eq=False)
class ClusterSteering(Shown):
    """Clusters of per-prompt differences, and a probe at every site that tells a prompt's cluster from its state.

    sites: where. centroids: (sites, K, d), mean difference of each cluster at each site. mean: (sites, d), of all
    prompts fitted on: what K = 1 would give. probe: one softmax probe a site. scale: (sites,), mean |h| of the states
    it was fitted on, the unit of `alpha`. labels: (prompts,), cluster of every prompt, the largest cluster first;
    held-out prompts have that of the nearest centroid. train_rows, test_rows: indices of prompts. scores: one a site.
    clustered_at: places in `sites` whose differences were clustered.
    """

    sites: tuple[Site, ...]
    centroids: Tensor
    mean: Tensor
    probe: Softmax
    scale: Tensor
    labels: NDArray[np.intp]
    train_rows: NDArray[np.intp]
    test_rows: NDArray[np.intp]
    scores: tuple[ClusterScore, ...]
    clustered_at: tuple[int, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Number of clusters."""
        return self.centroids.shape[1]

    @property
    def sizes(self) -> NDArray[np.intp]:
        """Prompts in each cluster, held-out ones included."""
        return np.bincount(self.labels, minlength=self.k)

    def best_sites(self, m: int = 4) -> tuple[Site, ...]:
        """The m sites of highest held-out macro-F1, the first of equals; all where there are fewer. In their order.

        Raises: BadInput: m is below 1. SiteNotFound: nothing was held out, so nothing can be chosen by it.
        """
        if m < 1:
            raise BadInput(f"m={m}: steer at 1 site at least")
        found = np.array([score.macro_f1.value for score in self.scores])
        if np.isnan(found).all():
            raise SiteNotFound("no prompt was held out, so sites cannot be chosen by macro-F1: name them, sites=[...]")
        chosen = sorted(np.argsort(-np.nan_to_num(found, nan=-1.0), kind="stable")[:m].tolist())
        return tuple(self.sites[i] for i in chosen)

    def plan(
        self, alpha: float = 0.2, sites: Any = 4, *, soft: bool = False, threshold: float = 0.5, reads: Any = None,
        where: Any = "last_prompt+response", order: Sequence[int] | None = None, schedule: Any = None,
    ) -> list[AdaptiveAdd]:  # fmt: skip
        """The intervention: at each site the vector of the cluster that the probe names there, alpha mean |h| long.

        Args:
            alpha: length, in mean |h| of the states at the site.
            sites: how many (`best_sites`), or which.
            soft, threshold, reads, where, schedule: as `AdaptiveAdd`.
            order: cluster k gets the vector of cluster order[k]: a wrong one is the control that shows whether the
                choice matters.
        """
        vectors = self._scaled(self.centroids, alpha)
        weight, bias = self.probe.folded()
        given = list(range(self.k)) if order is None else list(order)
        if len(given) != self.k or not set(given) <= set(range(self.k)):
            raise BadInput(f"order={given} must hold one of the clusters 0 to {self.k - 1} for each of them")
        common = {"where": where, "soft": soft, "threshold": threshold, "reads": reads, "schedule": schedule}
        return [
            AdaptiveAdd(vectors[i][given], weight[i], bias[i], site=self.sites[i], **common)
            for i in self._places(sites)
        ]

    def mean_plan(
        self, alpha: float = 0.2, sites: Any = 4, *, where: Any = "last_prompt+response", random: int | None = None,
        schedule: Any = None,
    ) -> list[Add]:  # fmt: skip
        """The plain alternative: at the same sites the mean difference of all prompts, equally long.

        Args: random: the seed of a random direction in place of each.
        """
        found = []
        for i in self._places(sites):
            direction = self.mean_direction(self.sites[i])
            direction = direction if random is None else direction.random_like(1000 * random + i)
            coeff = alpha * float(self.scale[i]) / direction.norm
            found.append(Add(direction, coeff, where=where, schedule=schedule))
        return found

    def mean_direction(self, site: Any) -> Direction:
        """The mean difference at a site.

        Raises: BadInput: it is zero there.
        """
        place = self._places([site])[0]
        return Direction(self.mean[place], self.sites[place], "mean difference", "raw", dict(self.about))

    def direction(self, site: Any, cluster: int) -> Direction:
        """The mean difference of one cluster at a site."""
        place, name = self._places([site])[0], f"cluster {cluster} of {self.k}"
        return Direction(self.centroids[place, cluster], self.sites[place], name, "raw", dict(self.about))

    def choices(self, states: Tensor) -> NDArray[np.intp]:
        """Cluster that each site's probe names for each state: (sites, n, d) -> (sites, n); the lowest of equals."""
        return self.probe.probabilities(states).argmax(-1).numpy()

    def nearest(self, differences: Tensor) -> NDArray[np.intp]:
        """Cluster whose centroids are nearest to each difference: (sites, n, d) -> (n,); the lowest of equals.

        argmin_k sum_l |D_l - c_lk|^2 / scale_l^2        over the sites that the clusters were made at
        """
        unit = self.scale[:, None, None]
        far = torch.cdist(
            differences.float() / unit, self.centroids / unit, compute_mode="donot_use_mm_for_euclid_dist"
        )
        return far[list(self.clustered_at)].square().sum(0).argmin(-1).numpy()

    def cosines(self) -> Tensor:
        """(sites, K): cosine of each cluster's vector with the mean difference; near 1 the clusters say nothing new."""
        return torch.nn.functional.cosine_similarity(self.centroids, self.mean[:, None], dim=-1)

    def _scaled(self, vectors: Tensor, alpha: float) -> Tensor:
        """Every vector alpha mean |h| long, with the arithmetic of `Add`; a zero vector stays zero."""
        rows = [
            [(alpha * float(scale) / float(v.norm())) * v if v.any() else v for v in of_site]
            for of_site, scale in zip(vectors, self.scale, strict=True)
        ]
        return torch.stack([torch.stack(of_site) for of_site in rows])

    def _places(self, sites: Any) -> list[int]:
        if isinstance(sites, int):
            sites = self.best_sites(sites)
        wanted = [as_site(site) for site in ([sites] if isinstance(sites, (str, Site)) else sites)]
        missing = [str(site) for site in wanted if site not in self.sites]
        if missing or not wanted:
            raise SiteNotFound(
                f"{', '.join(missing) or 'no site'} was not fitted. Held: {', '.join(map(str, self.sites))}"
            )
        return [self.sites.index(site) for site in wanted]

    def to_frame(self) -> pd.DataFrame:
        """One row a site: scores with their controls, cosines of the clusters with the mean difference."""
        import pandas as pd

        cosines = self.cosines()
        return pd.DataFrame(
            {
                "site": str(s.site),
                "accuracy": s.accuracy,
                "macro-F1": s.macro_f1,
                "majority F1": s.majority_f1,
                "shuffled F1": s.shuffled_f1,
                "ACT heads F1, mean and range": s.heads_f1,
                "best head F1": s.best_head_f1,
                "majority accuracy": s.majority_accuracy,
                "shuffled accuracy": s.shuffled_accuracy,
                "ACT heads accuracy": s.heads_accuracy,
                "lowest cosine to the mean": float(cosines[i].min()),
            }
            for i, s in enumerate(self.scores)
        )

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        best = max(self.scores, key=lambda s: np.nan_to_num(s.macro_f1.value, nan=-1.0))
        return (
            f"ClusterSteering({len(self.sites)} sites, {self.k} cluster{'s' * (self.k != 1)} of {sizes} prompts; best "
            f"{best.site}: macro-F1 {best.macro_f1}, shuffled {best.shuffled_f1.short}; lowest cosine of a cluster "
            f"with the mean difference {float(self.cosines().min()):.3f})"
        )


@dataclass(frozen=True, eq=False)
class ClusterStability(Shown):
    """Whether the same clusters come again. 1: the same partition; 0: as two random ones.

    seeds: adjusted Rand index of KMeans from other starting points on the same prompts, mean and range over n pairs.
    samples: of KMeans on random parts of the prompts, each judged on all of them. matched: cosine of a cluster's mean
    difference with that of the same cluster (Hungarian matching) found on another part, mean and range.
    """

    seeds: Estimate
    samples: Estimate
    matched: Estimate
    k: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a measure."""
        import pandas as pd

        names = ("adjusted Rand, other seeds", "adjusted Rand, other prompts", "cosine of matched clusters")
        estimates = (self.seeds, self.samples, self.matched)
        return pd.DataFrame({"measure": names, "mean and range": estimates, "pairs": [e.n for e in estimates]})

    def __repr__(self) -> str:
        return f"ClusterStability(K={self.k}: seeds {self.seeds.short}, other prompts {self.samples.short})"


@dataclass(frozen=True)
class Refinement:
    """What online refinement saw: generations that taught, that were refused, and that could not be judged."""

    learnt: int
    refused: int
    unknown: int
    frozen: bool = False
    clusters: tuple[int, ...] = ()
