"""What can be pinned in the panel and added while the model writes: directions, latents, contrasts of two texts.

Each knows its values on tokens, its edit, and the lines of Python that make it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.interventions import Intervention
from latentlens.values.latents import EditLatents
from latentlens.values.operations import Add
from latentlens.values.sae import SAE
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_DEFAULT_SHARE = 0.6  # of the depth, where contrasts are read and added until somebody moves them


@dataclass(frozen=True)
class Item:
    """Something with a place in the stream. key: how the panel names it; name: for people; site: its own place."""

    key: str
    name: str
    site: Site

    def values(self, lm: LensModel, inputs: Any, block: int) -> np.ndarray:
        """One number for every token of one input: how much of it the token holds at a block."""
        raise NotImplementedError

    def edit(self, lm: LensModel, strength: float, block: int, where: str) -> Intervention:
        """Adding it: strength in median norms of the states at the block."""
        raise NotImplementedError

    def code(self, strength: float, block: int, where: str) -> tuple[list[str], str]:
        """Lines of Python that make it, and the expression of `edit` with the same arguments."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pinned(Item):
    """A direction that was handed to the panel."""

    direction: Direction
    handed: str

    def values(self, lm: LensModel, inputs: Any, block: int) -> np.ndarray:
        """Projections on the unit vector."""
        return self.direction.project(_states(lm, inputs, _at(self.site, block))).numpy()

    def edit(self, lm: LensModel, strength: float, block: int, where: str) -> Intervention:
        """Add it."""
        return Add(self.direction, strength, unit="norm", site=_at(self.site, block), where=where)

    def code(self, strength: float, block: int, where: str) -> tuple[list[str], str]:
        """It comes from the mapping that was handed to the panel."""
        place = "" if block == self.site.block else f", site={str(_at(self.site, block))!r}"
        made = f"directions[{self.handed!r}]"
        return (
            [f"# directions: those given to the panel; this one has fingerprint {self.direction.fingerprint[:16]}"],
            f'll.Add({made}, {strength:g}, unit="norm"{place}, where={where!r})',
        )


@dataclass(frozen=True)
class Contrast(Item):
    """The state after one text minus the state after another, at whatever block it is added.

    Source: activation addition, Turner et al. (arXiv 2308.10248).
    """

    plus: str
    minus: str

    def direction(self, lm: LensModel, block: int) -> Direction:
        """Last-token state of one text minus that of the other.

        Raises: BadInput: the two are the same.
        """
        site = _at(self.site, block)
        found = lm.activations([self.plus, self.minus], str(site), "last")[site]
        return Direction(found[0] - found[1], site, self.name)

    def values(self, lm: LensModel, inputs: Any, block: int) -> np.ndarray:
        """Projections on the unit vector."""
        return self.direction(lm, block).project(_states(lm, inputs, _at(self.site, block))).numpy()

    def edit(self, lm: LensModel, strength: float, block: int, where: str) -> Intervention:
        """Add it."""
        return Add(self.direction(lm, block), strength, unit="norm", where=where)

    def code(self, strength: float, block: int, where: str) -> tuple[list[str], str]:
        """Two texts, one capture."""
        site = str(_at(self.site, block))
        lines = [
            f"states = lm.activations([{self.plus!r}, {self.minus!r}], {site!r}, 'last')[{site!r}]",
            f"contrast = ll.Direction(states[0] - states[1], {site!r}, {self.name!r})",
        ]
        return lines, f'll.Add(contrast, {strength:g}, unit="norm", where={where!r})'


@dataclass(frozen=True)
class Latent(Item):
    """One latent of the panel's SAE."""

    sae: SAE
    latent: int
    load: str

    def values(self, lm: LensModel, inputs: Any, block: int) -> np.ndarray:
        """Activations of the latent, read where the SAE belongs."""
        return lm.latents(self.sae, inputs).dense([self.latent])[:, 0].float().cpu().numpy()

    def edit(self, lm: LensModel, strength: float, block: int, where: str) -> Intervention:
        """Add to the latent, the rest of the state kept."""
        site = _at(self.site, block)
        return EditLatents(self.sae, add={self.latent: strength}, unit="norm", site=site, where=where)

    def code(self, strength: float, block: int, where: str) -> tuple[list[str], str]:
        """The SAE, as it is loaded."""
        place = "" if block == self.site.block else f", site={str(_at(self.site, block))!r}"
        added = f"add={{{self.latent}: {strength:g}}}"
        return [self.load], f'll.EditLatents(sae, {added}, unit="norm"{place}, where={where!r})'


def pinned(directions: Mapping[str, Direction]) -> list[Item]:
    """Items of the directions handed to the panel.

    Raises: BadInput: something else, or a direction outside the stream of blocks.
    """
    out: list[Item] = []
    for name, direction in directions.items():
        if not isinstance(direction, Direction):
            raise BadInput(f"directions[{name!r}] is a {type(direction).__name__}: give Directions by name")
        if direction.site.block is None:
            raise BadInput(f"directions[{name!r}] lives at {direction.site}, which is no block: nothing to slide")
        out.append(Pinned(f"direction:{name}", name, direction.site, direction.to_raw(), name))
    return out


def contrast(query: str, n_blocks: int) -> Contrast | None:
    """A contrast from "one text - another text"; None when it is not written so."""
    plus, dash, minus = query.partition(" - ")
    if not dash or not plus.strip() or not minus.strip() or plus.strip() == minus.strip():
        return None
    plus, minus = plus.strip(), minus.strip()
    site = Site("resid_post", round(_DEFAULT_SHARE * (n_blocks - 1)))
    return Contrast(f"contrast:{plus} - {minus}", f"{plus} - {minus}", site, plus, minus)


def _at(site: Site, block: int) -> Site:
    return Site(site.point, block)


def _states(lm: LensModel, inputs: Any, site: Site) -> Any:
    return lm.activations(inputs, str(site), "all")[site]
