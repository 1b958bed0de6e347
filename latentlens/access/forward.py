"""One forward pass over one right-padded batch, with edits and readings, and nothing computed in vain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlens.access.editing.edits import Edits
from latentlens.access.editing.selector import Frame
from latentlens.access.hooks import Callback, StopForward, Tap, hooked, require_fired
from latentlens.access.layout import Layout
from latentlens.values.interventions import Plan
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site


@dataclass(frozen=True)
class Gather:
    """Which positions of a padded batch (row, token) are kept, and how they are pooled.

    flat: indices into the flattened batch (row * width + position).
    segment: for pooled readings, the output row of each index; None keeps every index as a row.
    """

    flat: Tensor
    segment: Tensor | None
    n_out: int

    def __call__(self, states: Tensor) -> Tensor:
        """(batch, token, d) to (n_out, d); means are taken in float32 on the device of the states."""
        kept = states.reshape(-1, states.shape[-1]).index_select(0, self.flat.to(states.device))
        if self.segment is None:
            return kept
        segment = self.segment.to(states.device)
        total = torch.zeros(self.n_out, kept.shape[-1], dtype=torch.float32, device=kept.device)
        total.index_add_(0, segment, kept.float())
        return total / torch.bincount(segment, minlength=self.n_out).unsqueeze(1)


def gather(width: int, chosen: Sequence[Sequence[Sequence[int]]], pooled: bool) -> Gather:
    """Build a Gather from, per row, its selections, each a sequence of positions."""
    flat: list[int] = []
    segment: list[int] = []
    n = 0
    for row, selections in enumerate(chosen):
        for positions in selections:
            flat.extend(row * width + p for p in positions)
            segment.extend([n] * len(positions))
            n += 1
    index = torch.tensor(flat, dtype=torch.long)
    return Gather(index, torch.tensor(segment) if pooled else None, n if pooled else len(flat))


def last_positions(rows: Sequence[TokenRow], width: int) -> Gather:
    """The Gather of the last position of every row."""
    return gather(width, [[(len(row) - 1,)] for row in rows], pooled=False)


def inputs_of(layout: Layout, rows: Sequence[TokenRow], width: int) -> dict[str, Any]:
    """Arguments of a forward over rows padded on the right to a width."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.ids)
    inputs: dict[str, Any] = {"input_ids": ids.to(layout.device), "use_cache": False}
    if layout.accepts_position_ids:
        inputs["position_ids"] = torch.arange(width, device=layout.device)[None]
    return inputs


def picking_head(layout: Layout, picked: Gather) -> tuple[Tap, Callback]:
    """Hands the unembedding the kept positions only, as a batch of one row, so that it works on nothing else."""
    head = layout.tap(Site("logits"))

    def pick(states: Tensor) -> Tensor:
        return states.reshape(1, -1, states.shape[-1]).index_select(1, picked.flat.to(states.device))

    return Tap(head.module, "in", head.name), pick


def read(
    layout: Layout,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    keep: Callable[[int], Gather],
    plans: Sequence[Plan] | None = None,
    watch: Callable[[Edits], None] | None = None,
) -> Mapping[Site, Tensor]:
    """Values at sites for one batch of rows, read after the edits of each row's plan at the same site.

    Rows are padded on the right: under causal attention no token sees the padding, positions start at 0 in
    every row, and no attention mask is needed, which lets the fast causal kernels run. The pass stops after the
    deepest block asked for; the unembedding runs for `logits` only, and then for the kept positions only.

    Args: keep: from the padded width to the Gather of this batch. plans: prepared, one per row. watch: is handed
        the edits before the forward, to have them record what they change.
    Returns: per site (n_out, width), on the device where the model made them.
    Raises: HookNeverFired.
    """
    width = max(map(len, rows))
    picked = keep(width)
    inputs = inputs_of(layout, rows, width)
    # Edits below the deepest reading cannot change it, and an edit that is never reached would be an error.
    deepest = max(sites, key=lambda site: site.depth)
    reached = [tuple(item for item in plan if item.site.depth <= deepest.depth) for plan in plans or [()] * len(rows)]
    edits = Edits(layout, reached, rows)
    if edits.lanes:
        edits.announce(Frame.of_rows(rows, width, edits.sentence_ends))
    if watch is not None:
        watch(edits)
    found: dict[Site, Tensor] = {}

    def keep_at(site: Site) -> Callback:
        def look(states: Tensor) -> None:
            found[site] = picked(states)

        return look

    calls = edits.calls()
    calls += [(layout.tap(site), keep_at(site)) for site in sites if site.point != "logits"]
    if any(site.point == "logits" for site in sites):
        calls.append(picking_head(layout, picked))
        run = layout.model
    else:
        calls.append((_stop_at(layout, deepest), _stop))
        run = layout.decoder
    with torch.no_grad(), hooked(calls, (len(rows), width)) as fired:
        try:
            output = run(**inputs)
        except StopForward:
            output = None
    require_fired(fired)
    for site in sites:
        if site.point == "logits":
            found[site] = _pooled(picked, output.logits[0])  # type: ignore[union-attr]
    return found


def _pooled(picked: Gather, values: Tensor) -> Tensor:
    if picked.segment is None:
        return values
    everything = torch.arange(len(values))
    return Gather(everything, picked.segment, picked.n_out)(values)


def _stop_at(layout: Layout, deepest: Site) -> Tap:
    """The first tap after which nothing that was asked for is still to come."""
    if deepest.block is None or deepest.point == "resid_pre":
        return layout.tap(deepest)
    return layout.tap(Site("resid_post", deepest.block))  # blocks differ in the order of their parts


def _stop(_states: Tensor) -> None:
    raise StopForward
