"""What may carry an effect from one place of a model to its answer: a site, heads, neurons, directions or latents.

    Mediator("resid_post[3]", where="last")        the whole state
    Mediator("z[3]", heads=2, d_head=32)           one attention head
    Mediator("mlp_post[3]", neurons=[5, 7])        neurons
    Mediator(direction)                            the coordinate along a direction, at its own site
    Mediator(sae, latents=17)                      a latent of an SAE, the reconstruction error kept

A mediator knows three things about itself, given the states `here` (of the run that is edited) and `there` (of the run
that the value is taken from): the intervention that gives it the other run's value, the change that this makes, and a
random change of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.arguments import put, span
from latentlens.values.codes import latent_index
from latentlens.values.directions import Direction
from latentlens.values.interventions import Intervention
from latentlens.values.latent_patches import PatchLatents
from latentlens.values.replacements import AddAt, Patch, PatchAlong, PatchUnits
from latentlens.values.sae import SAE
from latentlens.values.sites import Site
from latentlens.values.where import PerRow, Where


@dataclass(frozen=True, eq=False, repr=False)
class Mediator:
    """One part of a model's state that an intervention can carry over from another run.

    site: any spelling (a pattern stands for several mediators once a model reads it); a Direction, or anything with a
        `direction` (a probe), which is used at its own site; or an SAE, at its own.
    where: positions, counted in the row that is edited; a `PerRow` gives each prompt its own.
    at: what the positions are called in tables; how `where` is written by default.
    heads: of a `z` site. neurons: of an `mlp_post` site. directions: instead of the whole state, what lies in their
        span. latents: of the SAE.
    d_head: width of a head; filled in by the model.

    Raises: BadInput: parts that do not go together.
    """

    site: Any
    where: Any = "all"
    at: str = ""
    heads: Any = ()
    neurons: Any = ()
    directions: Any = ()
    sae: SAE | None = None
    latents: Any = ()
    d_head: int | None = None

    def __post_init__(self) -> None:
        """Read what was given and check that it is one kind of part."""
        what, directions, sae = self.site, _several(self.directions), self.sae
        if isinstance(what, SAE):
            what, sae = what.site, what
        what = getattr(what, "direction", what)
        if isinstance(what, Direction):
            what, directions = what.site, (what, *directions)
        where = self.where if isinstance(self.where, PerRow) else Where.of(self.where)
        put(
            self, site=what, where=where, sae=sae, directions=directions,
            at=self.at or ("each prompt's own" if isinstance(where, PerRow) else str(where)),
            heads=_indices("heads", self.heads), neurons=_indices("neurons", self.neurons),
            latents=_indices("latents", self.latents),
        )  # fmt: skip
        kinds = [name for name in ("heads", "neurons", "directions", "latents") if getattr(self, name)]
        if len(kinds) > 1:
            raise BadInput(f"a Mediator is one kind of part, not {' and '.join(kinds)}: give them one by one")
        if (self.sae is None) != (not self.latents):
            raise BadInput("latents belong to an SAE: Mediator(sae, latents=[17])")
        if self.sae is not None:
            latent_index(list(self.latents), self.sae.d_sae)
        if not all(isinstance(d, Direction) for d in directions):
            raise BadInput("directions= takes Directions (a probe has one: probe.direction)")

    @classmethod
    def of(cls, what: Any, where: Any = "all") -> Mediator:
        """A mediator from anything that can be asked for its indirect effect.

        Args:
            what: a Mediator, a site, a Direction, a probe (anything with a `direction`), or (sae, latent).
            where: positions, unless it is a Mediator already.
        Raises: BadInput: none of these.
        """
        if isinstance(what, Mediator):
            return what
        if isinstance(what, (Site, str, Direction)) or (hasattr(what, "direction") and not isinstance(what, SAE)):
            return cls(what, where)
        if isinstance(what, tuple) and len(what) == 2 and isinstance(what[0], SAE):
            return cls(what[0], where, latents=what[1])
        raise BadInput(
            f"{type(what).__name__} cannot be patched. Give a site, a Direction, a probe, (sae, latent) or an "
            "ll.Mediator, which also knows heads and neurons"
        )

    def on(self, site: Site, d_head: int | None = None) -> Mediator:
        """The same mediator at one site of a model."""
        if self.heads and (site.point != "z" or d_head is None):
            raise BadInput(f"heads are parts of z, not of {site}: write z[{site.block or 0}]")
        if self.neurons and site.point != "mlp_post":
            raise BadInput(f"neurons are coordinates of mlp_post, not of {site}: write mlp_post[{site.block or 0}]")
        return replace(self, site=site, d_head=d_head)

    @property
    def part(self) -> str:
        """Which part of the state, in words; empty for all of it."""
        if self.heads:
            return _counted("head", self.heads)
        if self.neurons:
            return _counted("neuron", self.neurons)
        if self.sae is not None:
            return _counted("latent", self.latents)
        return " and ".join(d.name or "direction" for d in self.directions)

    @property
    def name(self) -> str:
        """How it is called in tables: `z[3] head 2 at last`."""
        parts = [str(self.site), self.part, "" if self.at == "all" else f"at {self.at}"]
        return " ".join(filter(None, parts))

    # -- what it does to states (m, d), the positions in order ------------------------------------------

    def swap(self, there: Tensor, positions: Sequence[int]) -> Intervention:
        """The intervention that gives it the value it has in `there`."""
        where = {"site": self.site, "where": list(positions)}
        if self.units:
            return PatchUnits(there, self.units, **where)
        if self.sae is not None:
            codes = self.sae.encode(there.to(self.sae.device), list(self.latents))
            return PatchLatents(self.sae, self.latents, codes.float().cpu(), **where)
        if self.directions:
            return PatchAlong(there, self.directions, **where)
        return Patch(there, **where)

    def change(self, here: Tensor, there: Tensor) -> Tensor:
        """What that intervention adds to `here`, (m, d), float32."""
        here, there = here.float(), there.float()
        if self.units:
            moved = torch.zeros_like(here)
            moved[:, list(self.units)] = (there - here)[:, list(self.units)]
            return moved
        if self.sae is not None:
            return decoded_change(self.sae, here, there, self.latents)
        if self.directions:
            basis = span(self.directions)
            return ((there - here) @ basis) @ basis.T
        return there - here

    def random_change(self, change: Tensor, generator: torch.Generator) -> Tensor:
        """A random vector for each position, as long as the change there, among the coordinates of the mediator."""
        noise = torch.randn(change.shape, generator=generator)
        if self.units:
            kept = torch.zeros(change.shape[1])
            kept[list(self.units)] = 1.0
            noise = noise * kept
        return noise / noise.norm(dim=-1, keepdim=True).clamp(min=1e-30) * change.norm(dim=-1, keepdim=True)

    def random_swap(self, here: Tensor, there: Tensor, positions: Sequence[int], seed: int) -> Intervention | None:
        """The control: random vectors of the same norms, added at the same positions; None where nothing changes."""
        change = self.change(here, there)
        if not bool(change.any()):
            return None
        made = self.random_change(change, torch.Generator().manual_seed(seed))
        return AddAt(made, site=self.site, where=list(positions))

    @property
    def units(self) -> tuple[int, ...]:
        """The coordinates of its heads or neurons; empty for the other kinds."""
        if self.heads:
            width = self.d_head or 0
            return tuple(head * width + i for head in self.heads for i in range(width))
        return self.neurons

    def __repr__(self) -> str:
        return f"Mediator({self.name})"


def decoded_change(sae: SAE, here: Tensor, there: Tensor, latents: Sequence[int] | None = None) -> Tensor:
    """What the codes of `there` add to `here` where they replace its own, (m, d): s(h) (f' - f) decoder."""
    index = list(range(sae.d_sae)) if latents is None else list(latents)
    here, there = here.to(sae.device), there.to(sae.device)
    codes = sae.encode(there, index).float() - sae.encode(here, index).float()
    moved, scale = codes @ sae.decoder(index).float(), sae.scale(here)
    return (moved if scale is None else moved * scale.float()).cpu()


def shares(part: Mediator, here: Tensor, there: Tensor, slope: Tensor) -> Tensor:
    """What each coordinate (or each latent) adds to slope . (there - here), summed over positions, float64.

    The attributions of all heads, neurons or latents of a site come from one such vector: see `attributed`.
    """
    sae = part.sae
    if sae is None:
        return ((there.double() - here.double()) * slope.double()).sum(0)
    here, there, slope = (t.to(sae.device) for t in (here, there, slope))
    scale, index = sae.scale(here), list(range(sae.d_sae))
    per_unit = (slope.float() if scale is None else slope.float() * scale.float()) @ sae.decoder(index).float().T
    return ((sae.encode(there).float() - sae.encode(here).float()).double() * per_unit.double()).sum(0).cpu()


def attributed(part: Mediator, of: Tensor) -> float:
    """Slope . change of one mediator (no directions) from what `shares` gives for its site, or its SAE."""
    chosen = part.latents if part.sae is not None else part.units
    return float(of[list(chosen)].sum() if chosen else of.sum())


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple, range)) else (value,)


def _indices(what: str, value: Any) -> tuple[int, ...]:
    given = _several(value)
    if not all(hasattr(i, "__index__") and not isinstance(i, bool) and int(i) >= 0 for i in given):
        raise BadInput(f"{what}={value!r}: give one index, or a list of them, counted from 0")
    return tuple(sorted({int(i) for i in given}))


def _counted(noun: str, of: tuple[int, ...]) -> str:
    if len(of) == 1:
        return f"{noun} {of[0]}"
    shown = ", ".join(map(str, of[:4])) + (", ..." if len(of) > 4 else "")
    return f"{noun}s {shown}"
