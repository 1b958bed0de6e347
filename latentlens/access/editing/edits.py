"""Plans made ready for one batch: every row may have its own, and all of them are carried out together.

Interventions of all rows that sit at the same site, at the same place in their row's plan, and do the same kind of
arithmetic form a lane: their vectors and strengths are stacked, and one call edits the selected states of the
whole batch, each with the numbers of its own row. The work on the hot path does not grow with the number of plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentlens.access.editing.latch import Latch
from latentlens.access.editing.selector import Frame, Selector
from latentlens.access.hooks import Callback, Tap
from latentlens.access.layout import Layout
from latentlens.errors import HookNeverFired
from latentlens.values.gates import Condition
from latentlens.values.interventions import Intervention, Plan
from latentlens.values.rows import TokenRow
from latentlens.values.schedules import Schedule
from latentlens.values.sites import Site


class Edits:
    """The interventions of a batch of rows, each with its own plan (prepared by `plans.prepare`).

    `announce` a forward before it runs, and let it run under `hooked(edits.calls())`.

    Args: plans: one per row. rows: the rows; what is before `n_prompt` is their prompt.
    Raises: WhereNotValid: a gate's condition selects nothing in some prompt.
    """

    def __init__(self, layout: Layout, plans: Sequence[Plan], rows: Sequence[TokenRow]) -> None:
        self.layout = layout
        slots: dict[tuple[Site, int, Hashable], list[Intervention | None]] = {}
        for row, plan in enumerate(plans):
            placed: dict[Site, int] = {}
            for item in plan:
                slot = placed[item.site] = placed.get(item.site, -1) + 1
                lane = slots.setdefault((item.site, slot, item.lane), [None] * len(plans))
                lane[row] = item
        self.readers = _readers(plans, rows)
        ordered = sorted(slots.items(), key=lambda one: (one[0][0].depth, one[0][1]))
        self.lanes = [Lane(key[0], items, rows, self.readers) for key, items in ordered]
        readers = [(reader.site, reader.look) for reader in self.readers.values()]
        self._placed: list[tuple[Site, Callback]] = [*readers, *((lane.site, lane.apply) for lane in self.lanes)]
        self._at: dict[Site, list[Callback]] = {}
        for site, call in self._placed:
            self._at.setdefault(site, []).append(call)

    @property
    def reads_special(self) -> bool:
        """Whether somebody asks which generated tokens are special."""
        return any(one.selector.reads_special for one in [*self.lanes, *self.readers.values()])

    @property
    def sentence_ends(self) -> frozenset[int]:
        """Token ids that end a sentence, as the schedules know them."""
        return frozenset(token for lane in self.lanes for s in lane.schedules for token in s.ends)

    def announce(self, frame: Frame) -> None:
        """Say what the next forward holds."""
        for reader in self.readers.values():
            reader.announce(frame, self.layout.device)
        for lane in self.lanes:
            lane.announce(frame, self.layout.device)

    def calls(self) -> list[tuple[Tap, Callback]]:
        """Callbacks for `hooked`, in order: conditions are read before the edits at their site."""
        return [(self.layout.tap(site), call) for site, call in self._placed]

    def at(self, site: Site) -> list[Callback]:
        """Callbacks at one site, in order."""
        return self._at.get(site, [])

    def acted(self) -> Counter[Intervention]:
        """How many states of all rows each intervention was applied to so far (gates counted as open)."""
        counts: Counter[Intervention] = Counter()
        for lane in self.lanes:
            counts.update(dict(zip(lane.items, lane.fired.tolist(), strict=True)))  # keeps zeros, unlike +
        return counts


def require_acted(counts: Mapping[Intervention, int]) -> None:
    """Refuse interventions that selected no position of any row in any forward.

    Raises: HookNeverFired: names them.
    """
    silent = [item for item, n in counts.items() if n == 0]
    if silent:
        raise HookNeverFired(
            f"{', '.join(map(repr, silent[:3]))} never acted: no position of any row was selected at a step where its "
            "schedule acts. Look at where= and schedule=, or pass allow_idle=True."
        )


class Lane:
    """Interventions of one kind at one site, at most one per row, evaluated together."""

    def __init__(
        self,
        site: Site,
        of_row: Sequence[Intervention | None],
        rows: Sequence[TokenRow],
        readers: dict[Condition, _Reader],
    ) -> None:
        self.site = site
        self.items = list(dict.fromkeys(item for item in of_row if item is not None))
        index = {item: i for i, item in enumerate(self.items)}
        self.which = np.array([-1 if item is None else index[item] for item in of_row])
        self.selector = Selector([None if item is None else item.where for item in of_row], rows)
        self.schedules = list(dict.fromkeys(item.schedule for item in self.items))
        place = {schedule: i for i, schedule in enumerate(self.schedules)}
        self._schedule_of = np.array([-1 if item is None else place[item.schedule] for item in of_row])
        self._factors = _FactorTable(self.schedules)
        self.edit = type(self.items[0]).stacked(self.items)
        self.gates = [readers[condition] for condition in self.items[0].conditions]
        self._latch = None  # of edits that decide once per row
        if self.items[0].reads is not None:
            reads = [None if item is None else item.reads for item in of_row]
            self._latch = Latch(reads, rows, type(self.items[0].bare).__name__)
        self._seen: Tensor | None = None  # what they decide on, (all rows, d)
        self.fired = np.zeros(len(self.items), dtype=np.int64)
        self.record: list[_Change] | None = None
        self._now: _Selected | None = None
        self._rows: np.ndarray | None = None  # of the forward before, to reuse its tensors

    def announce(self, frame: Frame, device: torch.device) -> None:
        """Work out which states the next forward's edit takes, with which numbers."""
        if self._latch is not None:
            self._latch.announce(frame, device)
        mask = self.selector.mask(frame)
        factor = None
        if not self._factors.constant:
            steps = np.maximum(frame.positions - self.selector.n_prompt[frame.rows][:, None] + 1, 0)
            factor = self._factors(self._schedule_of[frame.rows], steps, frame.sentences)
            mask = mask & (factor != 0)
        chosen = np.flatnonzero(mask)
        self._count(frame, mask)
        if not len(chosen):
            self._now = None
            return
        everything = len(chosen) == mask.size
        if everything and factor is None and self._now is not None and self._now.repeats and self._rows is frame.rows:
            return  # one more token for the same rows: the tensors of the step before serve again
        batch_row, many = chosen // mask.shape[1], len(self.items) > 1
        which = torch.from_numpy(self.which[frame.rows[batch_row]]).to(device) if many else None
        positional = self.items[0].positional
        order = torch.from_numpy(self.selector.order(frame).ravel()[chosen]).to(device) if positional else None
        scale = None
        if factor is not None and not (factor.ravel()[chosen] == 1).all():
            scale = torch.from_numpy(factor.ravel()[chosen]).to(device)[:, None]
        rows = torch.from_numpy(frame.rows[batch_row]).to(device) if self.gates or self._latch is not None else None
        flat = None if everything else torch.from_numpy(chosen).to(device)
        repeats = everything and mask.shape[1] == 1 and not positional and scale is None
        self._now = _Selected(flat, which, order, scale, rows, repeats, frame, chosen)
        self._rows = frame.rows

    def _count(self, frame: Frame, mask: np.ndarray) -> None:
        counted = mask if frame.open is None else mask & frame.open[:, None]
        per_row = counted.sum(1)
        np.add.at(self.fired, self.which[frame.rows][per_row > 0], per_row[per_row > 0])

    def apply(self, states: Tensor) -> Tensor | None:
        """The states with the selected ones edited: float32 inside, one cast at the end."""
        now, flat = self._now, states.reshape(-1, states.shape[-1])
        if self._latch is not None:
            self._keep(self._latch.means(flat))
        if now is None:
            return None
        index = None if now.flat is None else now.flat.to(states.device)
        old = (flat if index is None else flat.index_select(0, index)).float()
        which, order = _on(now.which, states), _on(now.order, states)
        if self._seen is None or now.rows is None:
            new = self.edit(old, which, order)
        else:
            new = self.edit(old, which, order, self._seen[now.rows.to(self._seen.device)])
        if now.scale is not None:
            scale = now.scale.to(states.device)
            new = torch.where(scale == 1, new, old + scale * (new - old))
        for gate in self.gates:
            new = torch.where(gate.open(now, states.device)[:, None], new, old)
        new = new.to(states.dtype)
        if self.record is not None:
            self.record.append(_Change.of(now, self.which, old, new))
        if index is None:
            return new.reshape(states.shape)
        return flat.index_copy(0, index, new).reshape(states.shape)

    def _keep(self, read: tuple[Tensor, Tensor] | None) -> None:
        if read is None or self._latch is None:
            return
        rows, means = read
        if self._seen is None:
            self._seen = torch.zeros(len(self._latch), means.shape[-1], device=means.device)
        self._seen[rows] = means


@dataclass(frozen=True)
class _Selected:
    """What of the running forward is edited; tensors on the device of the model.

    flat: indices into (row * width + column), None for everything. repeats: whether the next token of the same rows
    can use it again. chosen: `flat` on the host.
    """

    flat: Tensor | None
    which: Tensor | None
    order: Tensor | None
    scale: Tensor | None
    rows: Tensor | None
    repeats: bool
    frame: Frame
    chosen: np.ndarray


@dataclass(frozen=True)
class _Change:
    """Sizes of what one edit did in one forward: per state its row, its position, |delta|, |h|, and which item."""

    rows: np.ndarray
    positions: np.ndarray
    items: np.ndarray
    delta: np.ndarray
    norm: np.ndarray

    @classmethod
    def of(cls, now: _Selected, which: np.ndarray, old: Tensor, new: Tensor) -> _Change:
        rows = now.frame.rows[now.chosen // now.frame.positions.shape[1]]
        delta, norm = (new.float() - old).norm(dim=-1), old.norm(dim=-1)
        return cls(
            rows,
            now.frame.positions.ravel()[now.chosen],
            which[rows],
            delta.cpu().double().numpy(),
            norm.cpu().double().numpy(),
        )


class _FactorTable:
    """Factors of several schedules by step, tabulated as far as needed."""

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self.schedules = schedules
        self.constant = all(schedule.constant for schedule in schedules)
        self._table = np.zeros((len(schedules), 0), dtype=np.float32)

    def __call__(self, which: np.ndarray, steps: np.ndarray, sentences: np.ndarray | None) -> np.ndarray:
        """(b, t) float32 from the schedule of each row (b,) and the steps (b, t)."""
        need = int(steps.max()) + 1
        if need > self._table.shape[1]:
            known = np.arange(max(need, 2 * self._table.shape[1], 64))
            self._table = np.stack([schedule.factors(known) for schedule in self.schedules])
        factor = self._table[which[:, None], steps]
        for i, schedule in enumerate(self.schedules):
            if schedule.per_sentence is not None and sentences is not None:
                mine = which == i
                factor[mine] = schedule.factors(steps[mine], sentences[mine])
        return factor


class _Reader:
    """Reads a condition in every forward, for the rows that have it."""

    def __init__(self, condition: Condition, has: Sequence[bool], rows: Sequence[TokenRow]) -> None:
        self.condition, self.site = condition, condition.site
        where = [condition.where if mine and condition.latched else None for mine in has]
        self._latch = Latch(where, rows, "the condition of a gate")
        self.selector = self._latch.selector
        self._decision: Tensor | None = None  # latched: (all rows,)
        self._tokens: Tensor | None = None  # per token: (b * t,) of the running forward

    def announce(self, frame: Frame, device: torch.device) -> None:
        """Find the positions to read in the next forward."""
        if self.condition.latched:
            self._latch.announce(frame, device)

    def look(self, states: Tensor) -> None:
        """Decide."""
        flat = states.reshape(-1, states.shape[-1])
        if not self.condition.latched:
            self._tokens = self.condition.holds(flat)
        elif (read := self._latch.means(flat)) is not None:
            rows, means = read
            if self._decision is None:
                self._decision = torch.zeros(len(self._latch), dtype=torch.bool, device=flat.device)
            self._decision[rows] = self.condition.holds(means)

    def open(self, now: _Selected, device: torch.device) -> Tensor:
        """(n,) bool: whether the gate is open for each selected state."""
        if self.condition.latched:
            assert self._decision is not None
            assert now.rows is not None
            return self._decision[now.rows].to(device)
        assert self._tokens is not None
        return self._tokens.to(device) if now.flat is None else self._tokens.to(device)[now.flat.to(device)]


def _readers(plans: Sequence[Plan], rows: Sequence[TokenRow]) -> dict[Condition, _Reader]:
    has: dict[Condition, list[bool]] = {}
    for i, plan in enumerate(plans):
        for condition in (condition for item in plan for condition in item.conditions):
            has.setdefault(condition, [False] * len(plans))[i] = True
    found = {condition: _Reader(condition, mine, rows) for condition, mine in has.items()}
    return dict(sorted(found.items(), key=lambda one: one[0].site.depth))


def _on(tensor: Tensor | None, states: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(states.device)
