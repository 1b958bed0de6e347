"""Editing SAE latents, the reconstruction error kept: h' = h + decode(f') - decode(f), f = encode(h).

    f'_j = min(max(f_j, low_j), high_j) + add_j           clamp c is low = high = c

Decoding is linear but for the scale s(h) that an SAE with normalisation undoes, so the difference has the closed form

    h' = h + s(h) sum_j (f'_j - f_j) d_j                  over the edited latents only

which is exact for every kind (the tests compare it with encode, edit, decode, encode, decode). Latents that are only
added to need no encoding at all; the others need their own columns of the encoder, or all of it where latents compete
(topk).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.arguments import known_unit
from latentlens.values.codes import latent_index
from latentlens.values.interventions import Edit, Intervention, Unit
from latentlens.values.sae import SAE

_WHAT = ("add", "clamp", "low", "high")


@dataclass(frozen=True, eq=False, repr=False)
class EditLatents(Intervention):
    """Change chosen latents of an SAE; everything the SAE does not explain stays as it is.

    add: {latent: amount} or pairs; amounts of a repeated latent are summed. clamp: {latent: value}. low, high:
        bounds. Clamps and bounds come first, then additions; additions do not encode again, and clamping a latent
        that is silent to 0 returns the state bit for bit.
    unit: of the additions: "raw", or "norm" for multiples of the median norm of the states at the site.
    site: where it acts; the SAE's own site by default. It may be another one of equal width (the Endogenous Steering
        Resistance run applies a layer-50 SAE at layer 33).

    An SAE computes in its own type; the edit itself and its sum with the state are float32.

    Raises: BadInput: nothing to do, no such latent, a number that is not finite, or bounds that exclude each other.
    Source: endogenous steering resistance (arXiv 2602.06941), its vLLM fork; SAELens `use_error_term`.
    """

    sae: SAE
    add: Any = None
    clamp: Any = None
    low: Any = None
    high: Any = None
    unit: Unit = "raw"

    def __post_init__(self) -> None:
        """Read the latents and check the numbers."""
        if not isinstance(self.sae, SAE):
            raise BadInput(f"EditLatents takes an SAE (load_sae, or latentlens.values.sae.SAE), not {type(self.sae)}")
        for name in _WHAT:
            object.__setattr__(self, name, _amounts(getattr(self, name), name, self.sae.d_sae))
        if not any(getattr(self, name) for name in _WHAT):
            raise BadInput(
                "EditLatents without a latent does nothing: give add={7: 4.0}, clamp={7: 0.0}, low= or high="
            )
        known_unit(self.unit)
        if self.unit == "norm" and self.sae.normalisation != "none":
            raise BadInput(f"{self.sae} rescales its inputs, so its latents have no fixed length: use unit='raw'")
        for latent in self.clamp.keys() & (self.low.keys() | self.high.keys()):
            raise BadInput(f"latent {latent} is clamped to {self.clamp[latent]:g}: it cannot have a bound as well")
        for latent in self.low.keys() & self.high.keys():
            if self.low[latent] > self.high[latent]:
                raise BadInput(f"latent {latent}: low={self.low[latent]:g} is above high={self.high[latent]:g}")
        if self.site is None:
            object.__setattr__(self, "site", self.sae.site)
        super().__post_init__()

    @property
    def latents(self) -> tuple[int, ...]:
        """The latents it changes, in order."""
        return tuple(sorted(set().union(*(getattr(self, name) for name in _WHAT))))

    @property
    def lane(self) -> Hashable:
        """Edits of one SAE are evaluated together, whatever their latents."""
        return (type(self).__name__, self.sae.fingerprint)

    @property
    def width(self) -> int:
        """Width of the states it fits."""
        return self.sae.d_in

    @classmethod
    def stacked(cls, items: Sequence[Any]) -> Edit:
        """One function for edits of one SAE: states (n, d) float32, `which` edit each of them gets."""
        return _StackedLatents(items)

    def in_raw_units(self, norm: Callable[[Any], float]) -> Self:
        """Additions as multiples of the decoder rows: a median norms are a norm / |d_j| units of latent j."""
        if self.unit == "raw":
            return self
        lengths = self.sae.decoder(list(self.add)).float().norm(dim=-1).tolist() if self.add else []
        scale = norm(self.site)
        raw = {j: a * scale / length for (j, a), length in zip(self.add.items(), lengths, strict=True)}
        return replace(self, add=raw, unit="raw")

    def __repr__(self) -> str:
        parts = [f"{j}{a:+g}" for j, a in self.add.items()] + [f"{j}={c:g}" for j, c in self.clamp.items()]
        parts += [f"{j}>={m:g}" for j, m in self.low.items()] + [f"{j}<={m:g}" for j, m in self.high.items()]
        shown = parts if len(parts) <= 6 else [*parts[:5], f"... {len(parts) - 5} more"]
        unit = [] if self.unit == "raw" else ["in median norms"]
        when = [] if self.schedule.constant else [str(self.schedule)]
        return f"EditLatents({', '.join([*shown, *unit, self.sae.name, f'at {self.site}', str(self.where), *when])})"


def ablate(sae: SAE, latents: Iterable[int], **options: Any) -> EditLatents:
    """Clamp latents to 0: h' = h - sum_j f_j d_j. Does nothing where they are silent.

    Args: options: `site`, `where`, `schedule`.
    """
    return EditLatents(sae, clamp=dict.fromkeys((int(j) for j in latents), 0.0), **options)


@dataclass
class _StackedLatents:
    """Several edits of one SAE over the union of the latents that they bound or clamp."""

    items: Sequence[EditLatents]
    _on: dict[torch.device, _Tables] = field(default_factory=dict)

    def __call__(self, states: Tensor, which: Tensor | None, order: Tensor | None) -> Tensor:
        if states.device not in self._on:
            self._on[states.device] = _tables(self.items, states.device)
        return self._on[states.device].apply(states, which)


@dataclass
class _Tables:
    """What a batch of edits needs on one device. Tables are (n_items, ...).

    bounded: the latents in the columns of low and high. decoder: their rows (n_bounded, d), float32.
    added: what the additions of an item amount to, (n_items, d); adds: which items have any, (n_items,); None if no
        item has.
    """

    sae: SAE
    small: SAE | None
    bounded: Tensor
    low: Tensor
    high: Tensor
    decoder: Tensor
    added: Tensor
    adds: Tensor | None

    def apply(self, states: Tensor, which: Tensor | None) -> Tensor:
        moved, touched = None, None
        if self.bounded.numel():
            codes = self._codes(states).float()
            low, high = (t[0] if which is None else t[which] for t in (self.low, self.high))
            change = torch.minimum(torch.maximum(codes, low), high) - codes
            moved, touched = change @ self.decoder, (change != 0).any(-1)
        if self.adds is not None:
            added, adds = (t[0] if which is None else t[which] for t in (self.added, self.adds))
            moved = added.expand_as(states) if moved is None else moved + added
            touched = adds.expand(len(states)) if touched is None else touched | adds
        assert moved is not None
        assert touched is not None
        scale = self.sae.scale(states)
        moved = moved if scale is None else moved * scale.float()
        return torch.where(touched[:, None], states + moved, states)  # what nothing touches stays bit for bit

    def _codes(self, states: Tensor) -> Tensor:
        """Codes of the bounded latents, (n, n_bounded)."""
        if self.small is not None:
            return self.small.encode(states)
        if self.sae.kind == "topk":
            return self.sae.encode(states, self.bounded)
        return self.sae.encode(states)[:, self.bounded]  # most of the latents: no copy of their weights is made


def _tables(items: Sequence[EditLatents], device: torch.device) -> _Tables:
    sae = items[0].sae.to(device)
    bounded = sorted(set().union(*(item.clamp.keys() | item.low.keys() | item.high.keys() for item in items)))
    column = {latent: i for i, latent in enumerate(bounded)}
    low, high = torch.full((len(items), len(bounded)), -math.inf), torch.full((len(items), len(bounded)), math.inf)
    added = torch.zeros(len(items), sae.d_in, device=device)
    for i, item in enumerate(items):
        for table, values in ((low, item.clamp | item.low), (high, item.clamp | item.high)):
            if values:
                table[i, [column[j] for j in values]] = torch.tensor(list(values.values()))
        if item.add:
            amounts = torch.tensor(list(item.add.values()), device=device)
            added[i] = amounts @ sae.decoder(list(item.add)).float()
    index = torch.tensor(bounded, dtype=torch.long)
    whole = sae.kind == "topk" or not bounded or len(bounded) > sae.d_sae / 2
    return _Tables(
        sae,
        None if whole else sae.restricted(index),
        index,
        low.to(device),
        high.to(device),
        sae.decoder(index).float() if bounded else torch.zeros(0, sae.d_in, device=device),
        added,
        torch.tensor([bool(item.add) for item in items], device=device) if any(item.add for item in items) else None,
    )


def _amounts(given: Any, name: str, d_sae: int) -> dict[int, float]:
    """{latent: number}, sorted, from a mapping or pairs."""
    if given is None:
        return {}
    try:
        pairs = [(j, float(a)) for j, a in (given.items() if isinstance(given, Mapping) else given)]
    except (TypeError, ValueError):
        raise BadInput(f"{name}={given!r}: give {{latent: number}}, e.g. {name}={{7: 4.0}}") from None
    if not pairs:
        return {}
    found: dict[int, float] = {}
    for latent, (_, amount) in zip(latent_index([j for j, _ in pairs], d_sae).tolist(), pairs, strict=True):
        if not math.isfinite(amount):
            raise BadInput(f"{name}: latent {latent} gets {amount}, which is not a finite number")
        if latent in found and name != "add":
            raise BadInput(f"{name} names latent {latent} twice")
        found[latent] = found.get(latent, 0.0) + amount
    return dict(sorted(found.items()))
