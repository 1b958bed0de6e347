"""Readings during generation: states at sites, before or after the edits there, in the pass that writes the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from latentlens.access.editing.selector import Frame, Selector
from latentlens.access.hooks import Callback, Tap
from latentlens.access.labels import labels_of
from latentlens.access.layout import Layout
from latentlens.access.tokens import RowReader
from latentlens.errors import BadInput
from latentlens.values.activations import Activations
from latentlens.values.rollouts import Record
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

LATENTS = "latents"


@dataclass(frozen=True)
class Readings:
    """What was read of one row: positions (n,), and by moment ("after", "before", "latents") and site (n, width)."""

    positions: tuple[int, ...]
    values: dict[str, dict[Site, Tensor]]


@dataclass
class _Kept:
    rows: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    values: dict[tuple[str, Site], list[Tensor]] = field(default_factory=dict)


class Recorder:
    """Reads what a `Record` asks for in every forward of one batch.

    Raises: SiteNotFound, BadInput: no such site here, or one after the last block's output that generation computes
        for the last position only.
    """

    def __init__(self, layout: Layout, record: Record, rows: Sequence[TokenRow]) -> None:
        self.layout, self.record = layout, record
        self._prompts = [len(row) for row in rows]
        self.selector = Selector([record.where] * len(rows), rows)
        self._moments = ("before", "after") if record.edits == "both" else (record.edits,)
        self._sites = layout.sites(record.sites) if record.sites or record.sites == 0 else []
        if any(site.point == "logits" for site in self._sites):
            raise BadInput("generation computes the logits of the last position only: use lm.logits(runs) afterwards")
        if not self._sites and record.sae is None:
            raise BadInput("record= names nothing to read: give sites= or sae=")
        self._kept = _Kept()
        self._flat: Tensor | None = None
        self._stopped = False

    def around(self, edits: list[tuple[Tap, Callback]]) -> list[tuple[Tap, Callback]]:
        """The edits' callbacks with the readings before and after them."""
        reads = {m: [(self.layout.tap(site), self._look(m, site)) for site in self._sites] for m in self._moments}
        calls = [*reads.get("before", []), *edits, *reads.get("after", [])]
        if self.record.sae is not None:
            site = self.layout.sites(self.record.sae.site)[0]
            calls.append((self.layout.tap(site), self._look(LATENTS, site)))
        return calls

    def announce(self, frame: Frame) -> None:
        """Work out what to keep of the next forward."""
        if self._stopped:
            return
        chosen = np.flatnonzero(self.selector.mask(frame))
        self._flat = torch.from_numpy(chosen) if len(chosen) else None
        if len(chosen):
            self._kept.rows.append(frame.rows[chosen // frame.positions.shape[1]])
            self._kept.positions.append(frame.positions.ravel()[chosen])

    def stop(self) -> None:
        """Read nothing any more."""
        self._stopped, self._flat = True, None

    def _look(self, moment: str, site: Site) -> Callback:
        kept = self._kept.values.setdefault((moment, site), [])

        def look(states: Tensor) -> None:
            if self._flat is None:
                return
            value = states.reshape(-1, states.shape[-1]).index_select(0, self._flat.to(states.device))
            if moment == LATENTS:
                latents = self.record.latents
                value = self.record.sae.encode(value, None if latents is None else list(latents))
            kept.append(value)

        return look

    def readings(self, texts: Sequence[Sequence[int]], everything: bool = False) -> list[Readings]:
        """What was read of each row; steps after the end of a row's text are left out.

        Args: everything: the last token of each text too, where it has been read already.
        """
        if not self._kept.rows:
            return [Readings((), {}) for _ in texts]
        rows, positions = np.concatenate(self._kept.rows), np.concatenate(self._kept.positions)
        unread = 0 if self.record.last_token or everything else 1
        limit = np.array([n + len(text) - unread for n, text in zip(self._prompts, texts, strict=True)])
        values = {key: torch.cat(parts).cpu() for key, parts in self._kept.values.items()}
        found = []
        for i in range(len(texts)):
            mine = np.flatnonzero((rows == i) & (positions < limit[i]))
            mine, first = mine[np.argsort(positions[mine], kind="stable")], {}
            for at in mine.tolist():  # without a KV cache every step reads the row again, alike
                first.setdefault(int(positions[at]), at)
            index = torch.tensor(list(first.values()), dtype=torch.long)
            by_moment: dict[str, dict[Site, Tensor]] = {}
            for (moment, site), value in values.items():
                by_moment.setdefault(moment, {})[site] = value[index]
            found.append(Readings(tuple(first), by_moment))
        return found


class Collected:
    """Readings of all batches of a call, in the order of its rows."""

    def __init__(self) -> None:
        self._of: dict[int, Readings] = {}

    def add(self, which: Sequence[int], texts: Sequence[tuple[int, ...]], readings: Sequence[Readings]) -> None:
        """Take what a batch has read."""
        self._of |= dict(zip(which, readings, strict=False))

    def activations(self, reader: RowReader, rows: Sequence[TokenRow]) -> dict[str, Activations]:
        """Labelled values by moment; `rows` are the prompts with what was generated."""
        ordered = [self._of[i] for i in range(len(rows))]
        at = [np.array(one.positions, dtype=np.int64) for one in ordered]
        labels = labels_of(reader, rows, at, at)
        found = {}
        for moment in dict.fromkeys(moment for one in ordered for moment in one.values):
            sites = next(one.values[moment] for one in ordered if moment in one.values)
            values = {site: torch.cat([one.values[moment][site] for one in ordered if one.values]) for site in sites}
            found[moment] = Activations(values, labels)
        return found
