"""Gradients of a number read from the last logits with respect to states at sites: the one door that runs with grad.

The pass starts from a leaf at the input of the first block, so nothing is written into the model and weights need not
ask for gradients (quantised ones cannot). Edits of a plan are part of what is differentiated; gradients are taken after
the edits at a site. Hooks are gone afterwards, after an exception too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentlens.access.batching import batches, halving
from latentlens.access.capture import row_sequences
from latentlens.access.editing.edits import Edits
from latentlens.access.editing.selector import Frame
from latentlens.access.editing.steering import own_forward
from latentlens.access.forward import inputs_of, last_positions, picking_head
from latentlens.access.hooks import Callback, hooked, require_fired
from latentlens.access.layout import Layout
from latentlens.access.patching.answer_metric import Kept, Metric, Tally, refuse_nonfinite
from latentlens.access.store.cache import Selection
from latentlens.values.interventions import Plan, plan_fingerprint
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_SHARE = 4  # a pass with gradients holds about so many times what one without does


@torch.inference_mode(False)
def slopes(
    layout: Layout,
    rows: Sequence[TokenRow],
    plans: Sequence[Plan],
    sites: Sequence[Site],
    metric: Metric,
    items: Sequence[int],
) -> dict[Site, Tensor]:
    """Gradient of the metric of each row with respect to the states at sites, (rows, width, d) float32, one batch.

    Rows are padded on the right; the gradient at padding is 0.

    Raises: HookNeverFired, NonFiniteActivations.
    """
    width = max(map(len, rows))
    edits = Edits(layout, plans, rows)
    if edits.lanes:
        edits.announce(Frame.of_rows(rows, width, edits.sentence_ends))
    found: dict[Site, Tensor] = {}

    def begin(states: Tensor) -> Tensor:
        return states.detach().clone().requires_grad_(True)

    def keep_at(site: Site) -> Callback:
        def keep(states: Tensor) -> Tensor:
            if not states.requires_grad:  # everything here was replaced by given values
                states = states.detach().requires_grad_(True)
            found[site] = states
            return states.clone()  # some blocks add to their parts in place

        return keep

    calls = [(layout.tap(Site("resid_pre", 0)), begin), *edits.calls()]
    calls += [(layout.tap(site), keep_at(site)) for site in sites]
    calls.append(picking_head(layout, last_positions(rows, width)))
    with torch.enable_grad(), hooked(calls, (len(rows), width)) as fired:
        logits = layout.model(**inputs_of(layout, rows, width)).logits[0]
        require_fired(fired)
        total = metric(logits.float(), list(items)).sum()
        made = torch.autograd.grad(total, [found[site] for site in sites], allow_unused=True)
    out = {}
    for site, gradient in zip(sites, made, strict=True):
        value = torch.zeros_like(found[site]) if gradient is None else gradient
        out[site] = value.detach().float().reshape(len(rows), width, -1)
        refuse_nonfinite(out[site], list(range(len(rows))))
    return out


def mean_slopes(
    lm: LensModel,
    rows: Sequence[TokenRow],
    paths: Sequence[Sequence[Plan]],
    sites: Sequence[Site],
    metric: Metric,
    items: Sequence[int],
    kept: Kept,
    tally: Tally,
    progress: Callable[[int], Any] = lambda n: None,
) -> list[dict[Site, Tensor]]:
    """Gradients (tokens, d) of every row at every site, averaged over the plans of its path.

    Args: paths: per row, the prepared plans under which it is run; [()] is the row as it is.
    Raises: as `slopes`. OutOfMemory.
    """
    done: list[dict[Site, Tensor]] = [{} for _ in rows]
    marks = [f"gradient of {metric.fingerprint(item)} at" if metric.fingerprint(item) else None for item in items]
    sequences = [
        f"{base}|{'|'.join(plan_fingerprint(plan) for plan in path)}" if any(path) else base
        for base, path in zip(row_sequences(rows, ()), paths, strict=True)
    ]
    asked = [(i, site) for i in range(len(rows)) for site in sites]
    name = lambda i, site: None if marks[i] is None else f"{marks[i]} {site}"
    every = [Selection.all(len(row)) for row in rows]
    held = kept.find([(sequences[i], name(i, site), every[i]) for i, site in asked])
    for (i, site), value in zip(asked, held, strict=True):
        if value is not None:
            done[i][site] = value
    missing = [i for i in range(len(rows)) if len(done[i]) < len(sites)]
    tally.cached_rows += len(rows) - len(missing)
    tally.computed_rows += len(missing)
    jobs = [(i, plan) for i in missing for plan in paths[i]]
    for i in missing:
        done[i] = {}

    def run(part: Sequence[int]) -> None:
        mine = [jobs[k] for k in part]
        which = [i for i, _ in mine]
        batch, of = [rows[i] for i in which], [items[i] for i in which]
        found = slopes(lm.layout, batch, [plan for _, plan in mine], sites, metric, of)
        tally.forwards += 1
        for place, i in enumerate(which):
            for site, value in found.items():
                share = value[place, : len(rows[i])].cpu() / len(paths[i])
                done[i][site] = done[i][site] + share if site in done[i] else share
        progress(sum(len(rows[i]) for i in which))

    with own_forward(lm.layout):
        for batch in batches([len(rows[i]) for i, _ in jobs], max(1, lm.token_budget // _SHARE)):
            halving(batch, run)
    for i in missing:
        for site in sites:
            kept.add(sequences[i], name(i, site), every[i], done[i][site])
    return done
