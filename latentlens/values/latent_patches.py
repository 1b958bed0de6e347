"""Patching SAE latents: their codes become those of another run, the reconstruction error kept.

    h' = h + s(h) sum_j (c_k,j - f_j(h)) d_j          j over the patched latents, f = encode(h), k: the position

which is the interchange of some latents and of nothing else: what the SAE does not explain, and every other latent,
stay as they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.arguments import put, vectors_of
from latentlens.values.codes import latent_index
from latentlens.values.interventions import Edit, Intervention
from latentlens.values.replacements import PositionTable
from latentlens.values.sae import SAE


@dataclass(frozen=True, eq=False, repr=False)
class PatchLatents(Intervention):
    """Give latents of an SAE the codes that they had elsewhere: the k-th selected position gets codes[k].

    latents: which. codes: (m, len(latents)), or (len(latents),) for one position. site: the SAE's own by default.

    Raises: BadInput: no such latent, one named twice, codes of another shape or not finite.
    Source: Marks et al., Sparse Feature Circuits (arXiv 2403.19647): the error term is kept.
    """

    sae: SAE
    latents: Any = ()
    codes: Any = None
    positional = True

    def __post_init__(self) -> None:
        """Read the latents and check the codes."""
        if not isinstance(self.sae, SAE):
            raise BadInput(f"PatchLatents takes an SAE first, not {type(self.sae).__name__}")
        latents = tuple(latent_index(self.latents, self.sae.d_sae).tolist())
        if not latents or len(set(latents)) < len(latents):
            raise BadInput(f"latents={self.latents!r}: name at least one latent, each once")
        given = torch.as_tensor(self.codes)
        codes = vectors_of(given[None] if given.ndim == 1 else given, "codes", 2)
        if codes.shape[1] != len(latents):
            raise BadInput(f"codes of shape {tuple(codes.shape)} for {len(latents)} latents: one column each")
        put(self, latents=latents, codes=codes)
        if self.site is None:
            object.__setattr__(self, "site", self.sae.site)
        super().__post_init__()

    def tensors(self) -> Mapping[str, Tensor]:
        """Codes, (m, k)."""
        return {"codes": self.codes}

    @property
    def lane(self) -> Hashable:
        """Patches of one SAE are evaluated together, whatever their latents and positions."""
        return (type(self).__name__, self.sae.fingerprint)

    @property
    def width(self) -> int:
        """Width of the states it fits."""
        return self.sae.d_in

    @classmethod
    def stacked(cls, items: Sequence[Any]) -> Edit:
        """One function for patches of one SAE."""
        return _StackedCodes(items)


@dataclass
class _StackedCodes:
    """Codes of several patches over the union of their latents; NaN where a patch leaves a latent alone."""

    items: Sequence[PatchLatents]
    _on: dict[torch.device, tuple[SAE, Tensor | None, Tensor, PositionTable]] = field(default_factory=dict)

    def __call__(self, states: Tensor, which: Tensor | None, order: Tensor | None) -> Tensor:
        if states.device not in self._on:
            self._on[states.device] = self._prepared(states.device)
        sae, columns, decoder, table = self._on[states.device]
        assert order is not None
        has, wanted = table(which, order)
        codes = sae.encode(states).float()
        codes = codes if columns is None else codes[:, columns]
        change = torch.where(has & ~wanted.isnan(), wanted - codes, 0.0)
        moved, scale = change @ decoder, sae.scale(states)
        moved = moved if scale is None else moved * scale.float()
        return torch.where((change != 0).any(-1, keepdim=True), states + moved, states)

    def _prepared(self, device: torch.device) -> tuple[SAE, Tensor | None, Tensor, PositionTable]:
        sae = self.items[0].sae.to(device)
        union = sorted(set().union(*(item.latents for item in self.items)))
        place = {latent: i for i, latent in enumerate(union)}
        tables = []
        for item in self.items:
            table = torch.full((len(item.codes), len(union)), torch.nan)
            table[:, [place[j] for j in item.latents]] = item.codes
            tables.append(table)
        decoder = sae.decoder(union).float()
        whole = sae.kind == "topk" or len(union) > sae.d_sae / 2  # latents that compete are encoded together
        columns = torch.tensor(union, device=device) if whole else None
        return sae if whole else sae.restricted(union), columns, decoder, PositionTable.of(tables, device)
