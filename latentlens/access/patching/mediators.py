"""Mediators as a model has them: patterns expanded, heads and neurons counted, positions named by their tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from latentlens.access.layout import SiteSpec
from latentlens.errors import BadInput
from latentlens.values.mediators import Mediator
from latentlens.values.sae import SAE
from latentlens.values.where import Where

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_READ_ONLY = {"resid_mid": "attn_out or resid_post", "logits": "final_norm"}

Each = Literal["site", "head", "neuron"]


@dataclass(frozen=True)
class Joint:
    """Mediators that are swapped together, under one name."""

    name: str
    parts: tuple[Mediator, ...]


def mediators(
    lm: LensModel, sites: SiteSpec, where: Any = "all", *, each: Each = "site", prompts: Any = None
) -> list[Mediator]:
    """A grid of mediators: sites x parts x positions.

    mediators(lm, "resid_post[*]", {"value": PerRow(spots), "end": "last"})     a map of blocks and places
    mediators(lm, "resid_post[*]", "each", prompts=clean)                      every block and token
    mediators(lm, "z[*]", "last", each="head")                                 every head

    Args:
        where: one selection; {name: selection}; or "each" for one mediator a token, which takes prompts of one length.
        each: "site", "head" (of z) or "neuron" (of mlp_post).
        prompts: for "each": those that will be edited. A position is called by its token where all prompts agree.
    Raises: BadInput, SiteNotFound.
    """
    if isinstance(where, str) and where == "each":
        where = _by_token(lm, prompts)
    named = where if isinstance(where, Mapping) else {"": where}
    if each not in ("site", "head", "neuron"):
        raise BadInput(f"each={each!r}: allowed are 'site', 'head' and 'neuron'")
    out = []
    for site in lm.layout.sites(sites):
        parts: list[dict[str, Any]] = [{}]
        if each == "head":
            heads = lm.layout.heads(site.block) if site.point == "z" and site.block is not None else None
            if heads is None:
                raise BadInput(f"{site} has no heads: each='head' takes z, such as 'z[*]'")
            parts = [{"heads": i} for i in range(heads[0])]
        elif each == "neuron":
            if site.point != "mlp_post":
                raise BadInput(f"{site} has no neurons: each='neuron' takes mlp_post, such as 'mlp_post[*]'")
            parts = [{"neurons": i} for i in range(lm.layout.width(site))]
        out += [Mediator(site, spot, at=name, **part) for part in parts for name, spot in named.items()]
    return [one for mediator in out for one in on_model(lm, mediator)]


def _by_token(lm: LensModel, prompts: Any) -> dict[str, Where]:
    if prompts is None:
        raise BadInput("where='each' needs prompts=, those that will be edited")
    rows = lm.tokens(prompts)
    if len({len(row) for row in rows}) > 1:
        raise BadInput(
            f"where='each' takes prompts of one length, not of {min(map(len, rows))} to {max(map(len, rows))} tokens. "
            "Name positions instead: where={'subject': ll.PerRow([3, 4, ...]), 'end': 'last'}"
        )
    named: dict[str, Where] = {}
    for position in range(len(rows[0])):
        words = Counter(lm._reader.decode_each([row.ids[position] for row in rows]))
        word = next(iter(words)).strip() if len(words) == 1 else "…"
        named[f"{position} {word}".strip()] = Where.of(position)
    return named


def joints(lm: LensModel, given: Any) -> list[Joint]:
    """What was asked for, as named sets of mediators on this model.

    Raises: BadInput: nothing, something that cannot be patched, or two of one name. SiteNotFound.
    """
    given = _unfolded(given)
    if isinstance(given, Mapping):
        found = [Joint(str(name), _parts(lm, one)) for name, one in given.items()]
    else:
        found = []
        for one in given if isinstance(given, list) else [given]:
            if isinstance(one, list):
                parts = _parts(lm, one)
                found.append(Joint(" + ".join(part.name for part in parts), parts))
            else:
                found += [Joint(part.name, (part,)) for part in on_model(lm, Mediator.of(one))]
    if not found or any(not joint.parts for joint in found):
        raise BadInput("no mediator to patch: give a site, a Direction, a probe, (sae, latent) or an ll.Mediator")
    twice = [name for name, n in Counter(joint.name for joint in found).items() if n > 1]
    if twice:
        raise BadInput(f"two mediators are called {twice[0]!r}: give {{name: mediator}}")
    return found


def _unfolded(given: Any) -> Any:
    """A probe of several classes as {class: direction}, a sweep over sites as a list of probes; others as they are."""
    if isinstance(classes := getattr(given, "directions", None), Mapping):
        return classes
    return list(given.probes) if hasattr(given, "probes") else given


def _parts(lm: LensModel, given: Any) -> tuple[Mediator, ...]:
    several = given if isinstance(given, (list, tuple)) and not _is_latent(given) else [given]
    return tuple(part for one in several for part in on_model(lm, Mediator.of(one)))


def _is_latent(given: Sequence[Any]) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], SAE)


def on_model(lm: LensModel, mediator: Mediator) -> list[Mediator]:
    """One mediator a site, each checked against the model.

    Raises: BadInput: no such head or neuron, another width or frame, or a site that cannot be edited. SiteNotFound.
    """
    return [_checked(lm, mediator.on(site, _d_head(lm, site))) for site in lm.layout.sites(mediator.site)]


def _d_head(lm: LensModel, site: Any) -> int | None:
    heads = lm.layout.heads(site.block) if site.point == "z" and site.block is not None else None
    return heads[1] if heads is not None else None


def _checked(lm: LensModel, one: Mediator) -> Mediator:
    if one.site.point in _READ_ONLY:
        raise BadInput(f"{one.site} can be read but not edited: patch {_READ_ONLY[one.site.point]} instead")
    width = lm.layout.width(one.site)
    heads = lm.layout.heads(one.site.block) if one.heads and one.site.block is not None else None
    most = {"heads": heads[0] if heads else 0, "neurons": width}
    for name in ("heads", "neurons"):
        if beyond := [i for i in getattr(one, name) if i >= most[name]]:
            raise BadInput(f"{one.site} has {most[name]} {name}, 0 to {most[name] - 1}: no {beyond[0]}")
    for what, size in [("the SAE", one.sae.d_in)] if one.sae else [(repr(d), d.vector.numel()) for d in one.directions]:
        if size != width:
            raise BadInput(f"{what} has width {size}, {one.site} of this model {width}")
    raw = tuple(d.to_raw() for d in one.directions)
    return replace(one, directions=raw) if raw != one.directions else one
