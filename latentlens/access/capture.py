"""From rows to values: what the cache holds is read, the rest is computed once, and stored as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from latentlens.access.batching import batches, halving
from latentlens.access.courier import Courier
from latentlens.access.forward import gather, read
from latentlens.access.identity import context_digest
from latentlens.access.layout import Layout
from latentlens.access.store.cache import ActivationCache, RowKey, Selection
from latentlens.errors import BadInput, CacheCorrupt, CacheError, NonFiniteActivations
from latentlens.values.interventions import Plan as Steered
from latentlens.values.interventions import plan_fingerprint
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

NonFinite = Literal["raise", "skip", "flag"]

_COMMIT_BYTES, _COMMIT_SECONDS = 64 << 20, 20.0


@dataclass(frozen=True)
class Plan:
    """What to capture: rows, sites, and per row its selections, all pooled alike.

    pool: "" keeps every position as a row of the result; "mean" makes one row of each selection. plans: the prepared
    interventions of each row; empty when no row has any.
    """

    rows: tuple[TokenRow, ...]
    sites: tuple[Site, ...]
    selections: tuple[tuple[Selection, ...], ...]
    pool: str
    plans: tuple[Steered, ...] = ()

    @property
    def counts(self) -> list[int]:
        """Rows of the result that each input row makes."""
        return [sum(1 if self.pool else len(s.positions) for s in chosen) for chosen in self.selections]


def select(
    positions: Sequence[tuple[int, ...]], rows: Sequence[TokenRow], pool: Any
) -> tuple[str, list[tuple[Selection, ...]]]:
    """Turn chosen positions and a pool into selections.

    pool: None, "last" (the last chosen position), "mean", "span" (one mean per run of neighbouring positions),
    or ("segments", k) (one mean per k positions; the last segment may be shorter).

    Raises: BadInput: any other pool.
    """
    match pool:
        case None | "mean":
            groups = [[p] for p in positions]
        case "last":
            groups = [[p[-1:]] for p in positions]
        case "span":
            groups = [_runs(p) for p in positions]
        case ("segments", int(size)) if size > 0:
            groups = [[p[i : i + size] for i in range(0, len(p), size)] for p in positions]
        case _:
            raise BadInput(f"pool={pool!r}: allowed are None, 'last', 'mean', 'span' and ('segments', k) with k >= 1")
    kind = "" if pool in (None, "last") else "mean"
    chosen = [
        tuple(Selection(kind, tuple(p), len(row)) for p in group) for group, row in zip(groups, rows, strict=True)
    ]
    return kind, chosen


def _runs(positions: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Maximal runs of neighbouring positions.

    >>> _runs((1, 2, 5, 6, 7))
    [(1, 2), (5, 6, 7)]
    """
    cuts = [i for i in range(1, len(positions)) if positions[i] != positions[i - 1] + 1]
    bounds = [0, *cuts, len(positions)]
    return [positions[a:b] for a, b in pairwise(bounds)]


@dataclass
class Outcome:
    """Values per site (n_rows, width) in the order of the plan, and what it took.

    nonfinite: how many values were NaN or infinite, by site.
    """

    values: dict[Site, Tensor]
    nonfinite: dict[Site, int] = field(default_factory=dict)
    forwards: int = 0
    computed_rows: int = 0
    cached_rows: int = 0
    seconds: float = 0.0


def capture(
    layout: Layout,
    plan: Plan,
    cache: ActivationCache | None,
    context: Mapping[str, Any],
    *,
    token_budget: int,
    progress: Any,
    nonfinite: NonFinite = "raise",
) -> Outcome:
    """Fill the values of a plan from the cache and, for what it lacks, from forward passes.

    Identical rows are computed once. A row that is held for some sites is run for the others only.

    Raises: NonFiniteActivations: NaN or infinity came out of the model and `nonfinite` is "raise". A batch with
        such values is never stored.
    """
    started = time.perf_counter()
    out = Outcome({})
    sequences = row_sequences(plan.rows, plan.plans)
    owners = _unique(plan, sequences)
    missing = {first: list(plan.sites) for first in owners}
    spans = _spans(plan.counts)
    store = None
    if cache is not None:
        key = context_digest(context)
        missing = _from_cache(plan, cache, key, sequences, owners, spans, out)
        if missing and not cache.readonly:
            cache.require_room(forecast_bytes(plan, layout, missing))
            store = _Store(cache, context, key, sequences)
    out.computed_rows = len(missing)
    out.cached_rows = len(owners) - len(missing)
    courier: Courier[list[int]] = Courier()

    def receive(arrived: list[tuple[list[int], dict[Site, Tensor]]]) -> None:
        for which, values in arrived:
            broken = _count_nonfinite(values)
            if broken and nonfinite == "raise":
                raise _refusal(broken, values, which)
            for site, n in broken.items():
                out.nonfinite[site] = out.nonfinite.get(site, 0) + n
            _place(out, values, which, owners, spans)
            if store is not None and not broken:
                store.add(plan, values, which)
            bar.update(sum(len(plan.rows[i]) for i in which))

    with progress(sum(len(plan.rows[i]) for i in missing)) as bar:
        try:
            for sites, members in _by_sites(missing):

                def run(part: Sequence[int], sites: tuple[Site, ...] = sites, members: list[int] = members) -> None:
                    which = [members[i] for i in part]
                    rows = [plan.rows[i] for i in which]
                    chosen = [[s.positions for s in plan.selections[i]] for i in which]
                    keep = lambda width: gather(width, chosen, plan.pool != "")
                    values = read(layout, rows, sites, keep, [plan.plans[i] for i in which] if plan.plans else None)
                    out.forwards += 1
                    receive(courier.send(which, values))

                for batch in batches([len(plan.rows[i]) for i in members], token_budget):
                    halving(batch, run)
            receive(courier.flush())
        except (CacheError, NonFiniteActivations):
            raise
        except BaseException:  # an interrupt, say: what has been computed need not be computed again
            if store is not None:
                store.commit()
            raise
    if store is not None:
        store.commit()
    out.seconds = time.perf_counter() - started
    return out


def forecast_bytes(plan: Plan, layout: Layout, missing: Mapping[int, Sequence[Site]] | None = None) -> int:
    """Bytes of the values of a plan, or of those that are missing."""
    weight = next(p for p in layout.decoder.parameters() if p.dtype.is_floating_point)
    itemsize = 4 if plan.pool else weight.element_size()
    wanted = dict.fromkeys(range(len(plan.rows)), plan.sites) if missing is None else missing
    counts = plan.counts
    width = {site: layout.width(site) for site in plan.sites}
    return itemsize * sum(counts[i] * width[site] for i, sites in wanted.items() for site in sites)


def row_sequences(rows: Sequence[TokenRow], plans: Sequence[Steered]) -> list[str]:
    """Content key of every row: its token ids, and, for a steered row, its labels and what is done to it.

    Where an edit acts depends on the prompt's length and the labels of a row, not on its token ids alone.

    Args: plans: one a row, or none at all.
    """
    if not any(plans):
        return [row.digest for row in rows]
    marks = {steer: plan_fingerprint(steer) for steer in dict.fromkeys(plans)}
    return [
        f"{row.labelled_digest}|{marks[steer]}" if steer else row.digest for row, steer in zip(rows, plans, strict=True)
    ]


def _unique(plan: Plan, sequences: Sequence[str]) -> dict[int, list[int]]:
    """First index of every distinct (sequence, selections), with all indices that share it."""
    seen: dict[Any, int] = {}
    owners: dict[int, list[int]] = {}
    for i, key in enumerate(zip(sequences, plan.selections, strict=True)):
        first = seen.setdefault(key, i)
        owners.setdefault(first, []).append(i)
    return owners


def _spans(counts: Sequence[int]) -> list[slice]:
    spans, at = [], 0
    for count in counts:
        spans.append(slice(at, at + count))
        at += count
    return spans


def _from_cache(
    plan: Plan,
    cache: ActivationCache,
    context: str,
    sequences: Sequence[str],
    owners: Mapping[int, list[int]],
    spans: list[slice],
    out: Outcome,
) -> dict[int, list[Site]]:
    """Place what the cache holds; return per first index the sites that it lacks."""
    missing: dict[int, list[Site]] = {}
    asked = [(first, selection) for first in owners for selection in plan.selections[first]]
    for site in plan.sites:
        name = str(site)
        hits = cache.lookup([(RowKey(context, sequences[first], name), selection) for first, selection in asked])
        lacking = {first for (first, _), hit in zip(asked, hits, strict=True) if hit is None}
        if not lacking and len(owners) == len(plan.rows):  # everything held, in order: one sequential read
            try:
                out.values[site] = cache.read_stacked([hit for hit in hits if hit is not None])
                continue
            except CacheCorrupt:  # some of it turned out damaged: find out what is left, row by row
                hits = cache.lookup([(RowKey(context, sequences[f], name), selection) for f, selection in asked])
                lacking = {first for (first, _), hit in zip(asked, hits, strict=True) if hit is None}
        held = [(first, hit) for (first, _), hit in zip(asked, hits, strict=True) if hit and first not in lacking]
        parts: dict[int, list[Tensor]] = {}
        for (first, _), value in zip(held, cache.read([hit for _, hit in held]), strict=True):
            if value is None:
                lacking.add(first)
            else:
                parts.setdefault(first, []).append(value)
        for first, values in parts.items():
            if first not in lacking:
                _write(out, site, torch.cat(values), owners[first], spans)
        for first in lacking:
            missing.setdefault(first, []).append(site)
    return dict(sorted(missing.items()))


def _by_sites(missing: Mapping[int, list[Site]]) -> Iterator[tuple[tuple[Site, ...], list[int]]]:
    groups: dict[tuple[Site, ...], list[int]] = {}
    for first, sites in missing.items():
        groups.setdefault(tuple(sites), []).append(first)
    yield from groups.items()


def _count_nonfinite(values: Mapping[Site, Tensor]) -> dict[Site, int]:
    """How many values are NaN or infinite, for the sites that have any."""
    found = {}
    for site, value in values.items():
        if not bool(torch.isfinite(value.sum(dtype=torch.float32))):  # a sum keeps NaN and infinity, in one pass
            found[site] = int((~torch.isfinite(value)).sum())
    return {site: n for site, n in found.items() if n}


def _refusal(broken: Mapping[Site, int], values: Mapping[Site, Tensor], which: Sequence[int]) -> NonFiniteActivations:
    site, n = next(iter(broken.items()))
    half = values[site].dtype == torch.float16
    advice = " float16 overflows at 65504: load with dtype='bfloat16'." if half else ""
    return NonFiniteActivations(
        f"{n} of {values[site].numel()} values at {site} are NaN or infinite in a batch of texts "
        f"{', '.join(map(str, which[:8]))}{', ...' if len(which) > 8 else ''}.{advice} "
        "nonfinite='skip' leaves such rows out, nonfinite='flag' keeps and marks them."
    )


def _place(
    out: Outcome,
    values: Mapping[Site, Tensor],
    which: Sequence[int],
    owners: Mapping[int, list[int]],
    spans: list[slice],
) -> None:
    for site, value in values.items():
        at = 0
        for first in which:
            count = spans[first].stop - spans[first].start
            _write(out, site, value[at : at + count], owners[first], spans)
            at += count


def _write(out: Outcome, site: Site, value: Tensor, indices: Sequence[int], spans: list[slice]) -> None:
    if site not in out.values:
        n = spans[-1].stop
        out.values[site] = torch.empty(n, *value.shape[1:], dtype=value.dtype)
    for i in indices:
        out.values[site][spans[i]] = value


class _Store:
    """Collects computed values and commits them to the cache in large, atomic pieces."""

    def __init__(self, cache: ActivationCache, context: Mapping[str, Any], key: str, sequences: Sequence[str]) -> None:
        self.cache, self.context, self.key, self.sequences = cache, dict(context), key, sequences
        self.pending: list[tuple[RowKey, Selection, Tensor]] = []
        self.size, self.since = 0, time.monotonic()

    def add(self, plan: Plan, values: Mapping[Site, Tensor], which: Sequence[int]) -> None:
        for site, value in values.items():
            at = 0
            for first in which:
                key = RowKey(self.key, self.sequences[first], str(site))
                for selection in plan.selections[first]:
                    count = 1 if plan.pool else len(selection.positions)
                    self.pending.append((key, selection, value[at : at + count]))
                    at += count
            self.size += value.numel() * value.element_size()
        if self.size >= _COMMIT_BYTES or time.monotonic() - self.since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        if self.pending:
            self.cache.put(self.context, self.pending)
        self.pending, self.size, self.since = [], 0, time.monotonic()
