"""From a plan as a person writes it to one that a model can carry out: one site each, raw numbers, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from latentlens.access.layout import Layout
from latentlens.errors import BadInput
from latentlens.values.gates import Condition, Gate
from latentlens.values.interventions import Intervention, Plan
from latentlens.values.sites import Site

# Editing here would not reach the stream: both are read by something after the sum was already taken.
_READ_ONLY = {"resid_mid": "attn_out or resid_post", "logits": "final_norm"}


def prepare(
    layout: Layout, plan: Plan, norm: Callable[[Site], float], sentence_ends: Callable[[], frozenset[int]]
) -> Plan:
    """Expand sites, turn units into raw numbers, give schedules their sentence ends, and check that all of it fits.

    Args: norm: median norm of the states at a site. sentence_ends: token ids that end a sentence.
    Raises: SiteNotFound, BadInput: no such site, a site that cannot be edited, another width or frame, or a gate whose
        condition is read after it acts.
    """
    ready: list[Intervention] = []
    for item in plan:
        if isinstance(item, Gate):
            item = _with_conditions(layout, item)
        if item.schedule.per_sentence is not None and not item.schedule.ends:
            item = item.scaled(replace(item.schedule, ends=sentence_ends()))
        for site in layout.sites(item.site):
            one = item.at(site).in_raw_units(norm)
            _check(layout, one)
            ready.append(one)
    return tuple(ready)


def check_fit(layout: Layout, item: Any) -> None:
    """Refuse an intervention or condition whose width or frame is not that of the model at its site.

    Raises: BadInput.
    """
    width = layout.width(item.site)
    mine = item.direction.vector.numel() if isinstance(item, Condition) else item.width
    if mine is not None and mine != width:
        raise BadInput(f"{item!r} has {mine} entries, {item.site} of this model {width}")
    frames = {item.direction.frame} if isinstance(item, Condition) else item.frames()
    if frames - {"raw"}:
        raise BadInput(
            f"{item!r} holds a direction in the {' and '.join(frames)} frame, the model's stream is raw: "
            "convert it with direction.to_raw()"
        )


def _check(layout: Layout, item: Intervention) -> None:
    if item.site.point in _READ_ONLY:
        raise BadInput(
            f"{item.site} can be read but not edited: use {_READ_ONLY[item.site.point]} of the same block instead"
        )
    layout.tap(item.site)
    check_fit(layout, item)
    for condition in item.conditions:
        if condition.site.depth > item.site.depth:
            raise BadInput(f"{item!r} acts at {item.site}, before its condition is read at {condition.site}")


def _with_conditions(layout: Layout, gate: Gate) -> Gate:
    """The same gate with each condition at one site of this model."""
    inner = _with_conditions(layout, gate.inner) if isinstance(gate.inner, Gate) else gate.inner
    sites = layout.sites(gate.condition.site)
    if len(sites) != 1:
        raise BadInput(f"the condition of a gate is read at one site, not at {len(sites)} ({gate.condition.site!r})")
    condition = gate.condition.at(sites[0])
    check_fit(layout, condition)
    return Gate(inner, condition)


def prepare_all(plans: Sequence[Plan], ready: Callable[[Plan], Plan]) -> list[Plan]:
    """Prepare one plan per row, each distinct plan once."""
    done = {plan: ready(plan) for plan in dict.fromkeys(plans)}
    return [done[plan] for plan in plans]
