"""Preventative steering: a direction added while a model is trained, so that training need not learn it.

    with ll.preventing(lm, ll.Add(vector, 5.0)):
        trainer.train()                       # transformers' Trainer, PEFT, or your own loop over lm.model

A training that would push the states along a trait finds them there already, and its gradient pushes less. Afterwards
the direction is gone, and the model is left without the push.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from latentlens.access.hooks import Callback, require_fired, while_training
from latentlens.errors import BadInput
from latentlens.values.interventions import Intervention, as_plan

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


@contextmanager
def preventing(lm: LensModel, *plan: Any, allow_idle: bool = False) -> Iterator[LensModel]:
    """Edit every position of every forward of the model in training mode, while the `with` lasts.

        h' = h + c v        during training steps only; gradients flow through the edit

    Evaluation steps in between (`model.eval()`), and what `lm` reads or writes, are left alone. Steps that gradient
    checkpointing repeats are edited as they were. When the `with` ends, by an exception too, the edits are gone and the
    modules are again in the modes (training or evaluation) that they had.

    Args:
        lm: whose `lm.model`, possibly inside a PEFT wrapper, is trained.
        plan: interventions, `Add` or `ProjectOut` for instance, at one site or a pattern of sites, with where="all".
            One list, or one after the other, applied in this order.
        allow_idle: do not raise when no training step came.
    Raises: BadInput: an intervention with a selection of positions, a schedule, a condition or an order of positions: a
        training batch has no prompt and no steps. SiteNotFound, CompiledModel; HookNeverFired: no training step came.
    Source: Persona Vectors (arXiv 2507.21509): +5 v at one block, LoRA; variants at all blocks, and ablation.
    """
    given = as_plan(plan[0] if len(plan) == 1 else plan)
    ready = lm._ready(given)
    if not ready:
        raise BadInput("preventing() needs an intervention, for instance ll.Add(vector, 5.0)")
    for item in ready:
        if item.where.kind != "all" or not item.schedule.constant or item.conditions or item.positional or item.reads:
            raise BadInput(
                f"{item!r} depends on positions, steps or conditions, which a training batch does not have: use a "
                "plain intervention with where='all'"
            )
    modes = [(module, module.training) for module in lm.model.modules()]
    try:
        with while_training([(lm.layout.tap(item.site), _edit(item)) for item in ready]) as fired:
            yield lm
        if not allow_idle:
            require_fired(fired)
    finally:
        for module, training in modes:
            module.training = training


def _edit(item: Intervention) -> Callback:
    edit = type(item).stacked([item])

    def apply(states: Tensor) -> Tensor:
        flat = states.reshape(-1, states.shape[-1])
        return edit(flat.float(), None, None).to(states.dtype).reshape(states.shape)

    return apply
