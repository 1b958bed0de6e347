"""What a training will do, and what it did, along a trait vector.

    projection_difference(train, own, v)   training answers against the model's own, before any training
    finetune_shift(base, tuned, v)         the same prompts read by two models

Source: Persona Vectors (arXiv 2507.21509), sections on finetuning shift and on data screening.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.column_means import column_means
from latentlens.values.directions import Direction
from latentlens.values.monitoring import Shift
from latentlens.values.text_means import text_means


def projection_difference(
    train: Any, own: Any, direction: Direction, *, groups: Sequence[Any] | None = None, seed: int = 0
) -> Shift:
    """How far training answers lie from the model's own answers to the same prompts, along a trait.

        dP_i = (a(x_i, y_train_i) - a(x_i, y_own_i)) . v / |v|,      dP = mean_i dP_i

    a: mean state over the answer's tokens, by the model BEFORE training. Rows with a large dP_i are those to look at.

    Args:
        train, own: Activations of the two sets, a text a prompt in the same order; or states (n, d); or projections
            (n,), such as the columns that `ll.screen` writes.
        direction: at the site of the states.
        groups: what intervals resample together.
    Raises: BadInput: different numbers of rows. TooFewExamples: none.
    """
    return _shift(own, train, direction, "training answers minus own answers", groups, seed)


def finetune_shift(
    base: Any, tuned: Any, direction: Direction, *, groups: Sequence[Any] | None = None, seed: int = 0
) -> Shift:
    """How far a training moved a model along a trait, on prompts that are not about it.

        shift = mean_i (a_tuned(x_i) - a_base(x_i)) . v / |v|

    Both models must read the same tokens: the same template, tokenizer and prompts.

    Args: base, tuned: as in `projection_difference`, at the last prompt token or over each model's own answers.
        direction: of the BASE model.
    Raises: BadInput: different numbers of rows. TooFewExamples: none.
    """
    return _shift(base, tuned, direction, "tuned minus base", groups, seed)


def _shift(before: Any, after: Any, direction: Direction, what: str, groups: Sequence[Any] | None, seed: int) -> Shift:
    one, two = _projected(before, direction), _projected(after, direction)
    if len(one) != len(two):
        raise BadInput(f"{len(one)} rows on one side, {len(two)} on the other: the same prompts, in one order")
    if not len(one):
        raise TooFewExamples("no rows to compare")
    values = two - one
    (mean,) = column_means(values, groups=groups, seed=seed)
    return Shift(mean, values, what, {"direction": direction.name, "site": str(direction.site)})


def _projected(states: Any, direction: Direction) -> NDArray[np.float64]:
    if isinstance(states, Activations):
        return direction.project(text_means(states, direction.site)).double().numpy()
    found = np.asarray(states, dtype=np.float64)
    if found.ndim == 1:
        return found
    if found.ndim != 2 or found.shape[1] != direction.vector.numel():
        raise BadInput(f"states of shape {found.shape} for {direction}: give (n, {direction.vector.numel()}), or (n,)")
    return found @ direction.unit.double().numpy()
