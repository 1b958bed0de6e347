"""Pairs of prompts for activation patching: which token corresponds to which, and the states that are carried over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from latentlens.access.patching.answer_metric import Tally
from latentlens.access.patching.mediators import Joint
from latentlens.errors import NotAligned
from latentlens.values.alignment import align
from latentlens.values.mediators import Mediator
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site
from latentlens.values.where import PerRow, resolve

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_CHUNKS = 8  # token budgets of rows that are made ready at a time


@dataclass(frozen=True)
class Stranger:
    """A prompt that has nothing to do with a pair, and which of its positions corresponds to which of the base."""

    row: TokenRow
    to: dict[int, int]


@dataclass(frozen=True)
class Spot:
    """One part of a mediator in one pair: its positions in the base, in the source, and in the unrelated prompt."""

    part: Mediator
    base: tuple[int, ...]
    source: tuple[int, ...]
    strange: tuple[int, ...] | None


@dataclass(frozen=True)
class Pairs:
    """Prompts that are edited, prompts that values come from, and which position corresponds to which.

    maps: per pair, position in the base -> position in the source. strangers: per pair, for the control; None without.
    """

    base: list[TokenRow]
    source: list[TokenRow]
    maps: list[dict[int, int]]
    strangers: list[Stranger | None] | None = None

    def __len__(self) -> int:
        return len(self.base)

    def spots(self, wanted: Sequence[Joint]) -> list[list[list[Spot]]]:
        """Where every part of every mediator is, by pair, mediator and part.

        Raises: NotAligned: a position without a counterpart ("all" leaves such positions out). WhereNotValid.
        """
        found: list[list[list[Spot]]] = [[[] for _ in wanted] for _ in self.base]
        for j, joint in enumerate(wanted):
            for part in joint.parts:
                for i, positions in enumerate(resolve(part.where, self.base)):
                    to = self.maps[i]
                    lost = [p for p in positions if p not in to]
                    if lost and (str(part.where) != "all" or len(lost) == len(positions)):
                        raise NotAligned(
                            f"{joint.name} is at position {lost[0]} of pair {i}, which corresponds to no token of the "
                            "other prompt: align other positions, or choose others with where="
                        )
                    kept = tuple(p for p in positions if p in to)
                    stranger = self.strangers[i] if self.strangers is not None else None
                    covered = stranger is not None and all(p in stranger.to for p in kept)
                    strange = tuple(stranger.to[p] for p in kept) if stranger is not None and covered else None
                    found[i][j].append(Spot(part, kept, tuple(to[p] for p in kept), strange))
        return found

    def chunks(self, rows_each: int, token_budget: int) -> Iterator[list[int]]:
        """Pairs in groups, so that plans and states of a few are held at a time and batches are still full."""
        longest = max(map(len, [*self.base, *self.source]))
        many = max(1, _CHUNKS * token_budget // (rows_each * longest))
        for start in range(0, len(self), many):
            yield list(range(start, min(start + many, len(self))))


def strangers(
    base: Sequence[TokenRow],
    source: Sequence[TokenRow],
    pool: Sequence[TokenRow] | None,
    how: Any,
    groups: Sequence[Any] | None,
    seed: int,
) -> list[Stranger | None]:
    """For each pair a random prompt that fits and is none of its own; None where there is no such prompt.

    Args: pool: where to choose from; None: the base prompts of other pairs, of other groups. how: as for `align`.
    """
    rng, out = np.random.default_rng(seed), []
    for i, row in enumerate(base):
        mine = {row.ids, source[i].ids}
        fits = [
            other for k, other in enumerate(base if pool is None else pool)
            if (isinstance(how, str) or len(other) == len(row)) and other.ids not in mine
            and not (pool is None and groups is not None and groups[k] == groups[i])
        ]  # fmt: skip
        pick = int(rng.integers(1 << 32))  # drawn for every pair, so that one pair does not change the others
        other = fits[pick % len(fits)] if fits else None
        out.append(None if other is None else Stranger(other, align(row, other, how if isinstance(how, str) else None)))
    return out


class States:
    """States of some rows at the sites and positions that somebody asks for, read through the cache."""

    def __init__(
        self,
        lm: LensModel,
        rows: Sequence[TokenRow],
        asked: Sequence[set[int]],
        sites: Sequence[Site],
        cached: bool,
        tally: Tally,
    ) -> None:
        used = [i for i, positions in enumerate(asked) if positions]
        self._index: dict[tuple[int, int], int] = {}
        self._values: dict[Site, Tensor] = {}
        if not used:
            return
        where = PerRow([sorted(asked[i]) for i in used])
        acts = lm.activations([rows[i] for i in used], list(sites), where, cached=cached)
        tally.forwards += acts.about["forwards"]
        at = zip(acts.labels["text"].tolist(), acts.labels["position"].tolist(), strict=True)
        self._index = {(used[text], position): k for k, (text, position) in enumerate(at)}
        self._values = {site: acts[site].flatten(1) for site in acts.sites}

    def __call__(self, row: int, site: Site, positions: Sequence[int]) -> Tensor:
        """(m, d), float32."""
        return self._values[site][[self._index[row, p] for p in positions]].float()


@dataclass(frozen=True)
class Carried:
    """States of the base, source and unrelated prompts of some pairs."""

    base: States
    source: States
    strange: States

    @classmethod
    def of(
        cls,
        lm: LensModel,
        pairs: Pairs,
        spots: Sequence[Sequence[Sequence[Spot]]],
        chunk: Sequence[int],
        cached: bool,
        tally: Tally,
        whole: bool = False,
    ) -> Carried:
        """Read them. Args: whole: at every position that has a counterpart, not only where a mediator is."""
        need, need_source, need_strange = ([set() for _ in chunk] for _ in range(3))
        for k, i in enumerate(chunk):
            for spot in (spot for parts in spots[i] for spot in parts):
                need[k].update(spot.base)
                need_source[k].update(spot.source)
                need_strange[k].update(spot.strange or ())
            if whole:
                need[k].update(pairs.maps[i])
                need_source[k].update(pairs.maps[i].values())
        chosen = pairs.strangers or [None] * len(pairs)
        rows = [[pairs.base[i] for i in chunk], [pairs.source[i] for i in chunk]]
        rows.append([s.row if (s := chosen[i]) is not None else pairs.base[i] for i in chunk])
        sites = sites_of(spots[chunk[0]])
        needs = (need, need_source, need_strange)
        return cls(*(States(lm, r, n, sites, cached, tally) for r, n in zip(rows, needs, strict=True)))


def sites_of(spots: Sequence[Sequence[Spot]]) -> list[Site]:
    """The sites of the mediators of one pair, each once."""
    return list(dict.fromkeys(spot.part.site for parts in spots for spot in parts))
