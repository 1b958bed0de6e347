"""Character sheets read off frozen activations: what was predicted, against a constant, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latentlens.errors import SiteNotFound
from latentlens.values.directions import Direction, as_site
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class SitePsychometrics(Shown):
    """Both heads at one site, on characters that no head was trained on.

    traits: names, in the order of the sheet. mse, r2: over all traits; by_trait: (mse, r2) of each. constant_mse:
    of predicting the training mean always. train_r2: on the training characters. cv_r2: on characters kept
    aside in training, by which steps (of training) and sites are chosen. ridge_r2: of a linear readout of the
    same states. shuffled_r2: the head refitted with the sheets dealt to other characters, mean and range over
    draws.
    identity: how often the nearest other excerpt, in the identity head's space, is of the same character; raw_identity:
    the same in the states themselves; chance. None without that head.
    directions: trait -> change of the state from its lowest to its highest value, others held fixed. angle: mean
    |cosine| between them; chance_angle: of random directions.
    """

    site: Site
    traits: tuple[str, ...]
    mse: Estimate
    r2: Estimate
    by_trait: Mapping[str, tuple[Estimate, Estimate]]
    constant_mse: float
    train_r2: float
    cv_r2: float
    steps: int
    ridge_r2: Estimate
    shuffled_r2: Estimate
    identity: Estimate | None
    raw_identity: Estimate | None
    chance_identity: float
    directions: Mapping[str, Direction]
    angle: float
    chance_angle: float

    def __repr__(self) -> str:
        who = ""
        if self.identity is not None and self.raw_identity is not None:
            who = f", identity {self.identity.short} (raw states {self.raw_identity.short})"
        return (
            f"SitePsychometrics({self.site}: MSE {self.mse.short}, of a constant {self.constant_mse:.3f}; R2 "
            f"{self.r2.short}, shuffled {self.shuffled_r2.short}{who}; n={self.mse.n})"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a trait."""
        import pandas as pd

        return pd.DataFrame({"trait": name, "MSE": mse, "R2": r2} for name, (mse, r2) in self.by_trait.items())


@dataclass(frozen=True, eq=False)
class Psychometrics(Shown):
    """The same at several sites, with one split.

    n_characters: (training, test). about: settings.
    """

    sites: Sequence[SitePsychometrics]
    n_characters: tuple[int, int]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, site: Site | str) -> SitePsychometrics:
        """One site.

        Raises: SiteNotFound.
        """
        wanted = as_site(site)
        for one in self.sites:
            if one.site == wanted:
                return one
        raise SiteNotFound(f"{wanted} was not read. Held: {', '.join(str(one.site) for one in self.sites)}")

    def best(self) -> SitePsychometrics:
        """The site with the highest `cv_r2`; never chosen by the test characters."""
        return max(self.sites, key=lambda one: one.cv_r2)

    def to_frame(self) -> pd.DataFrame:
        """One row a site."""
        import pandas as pd

        return pd.DataFrame(
            {
                "site": str(one.site),
                "MSE": one.mse,
                "MSE of a constant": one.constant_mse,
                "R2": one.r2,
                "R2, characters kept aside": one.cv_r2,
                "R2, training": one.train_r2,
                "R2, linear": one.ridge_r2,
                "R2, shuffled sheets": one.shuffled_r2,
                "identity": one.identity,
                "identity, raw states": one.raw_identity,
                "identity, chance": one.chance_identity,
                "mean |cosine| of traits": one.angle,
                "by chance": one.chance_angle,
            }
            for one in self.sites
        )

    def __repr__(self) -> str:
        train, test = self.n_characters
        return f"Psychometrics({len(self)} sites, {train} training and {test} test characters; best {self.best()!r})"
