"""Two forwards for COLD-Steer: states of the model as it is, and of the model one small step along a gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from latentlens.access.batching import batches
from latentlens.access.editing.steering import own_forward
from latentlens.access.layout import Layout
from latentlens.access.measures.likelihood import answer_nll
from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.rows import TokenRow
from latentlens.values.where import resolve

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


_STEP = 1e-4  # of the norm of the weights


class ColdStates(NamedTuple):
    """States before and after the step, and its size."""

    plain: Activations
    moved: Activations
    eps: float


def cold_states(
    lm: LensModel,
    examples: Sequence[Any],
    inputs: Any,
    site: Any,
    *,
    rejected: Sequence[Any] | None = None,
    where: Any = "all",
    pool: Any = None,
    eps: float | None = None,
    beta: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> ColdStates:
    """States of `inputs`, and what they become when the weights move by eps times the gradient of a loss.

        g = grad_theta L,    L = mean NLL of the examples' answers, or with `rejected`
        L = -mean log sigmoid(beta (log p(chosen) - log p(rejected) - the same before the step))         DPO

    Log probabilities are means per token, as in the published code. The gradient step is made on a COPY of the model in
    `dtype`; the model itself gets no gradient and is not changed.

    TRAP: a fixed eps is lost in rounding where gradients are small: norms and softmax run in float32 even in a float64
    model, so eps 1e-6 gave noise here. The default moves the weights by 1e-4 of their norm.

    Args:
        examples: chats that end with the wanted answer. rejected: with as many unwanted ones, for DPO.
        inputs, where, pool: whose states; as for `lm.activations`.
        site: one or several sites.
        eps: the step; None: 1e-4 |theta| / |g|, over the weights that the loss depends on.
        beta: of DPO. dtype: of the copy.

    Returns: (plain, moved, eps), the same rows of both: `directions.cold_direction(*ll.cold_states(...))`.
    Raises: TooFewExamples: no example. BadInput: a quantised model; examples without answers; counts differ.
    Source: COLD-Steer, github.com/Ksartik/cold-steer, with eps .01 there in the model's own type.
    """
    from latentlens.access.model import load

    if lm.quantization:
        raise BadInput(f"{lm.name} is quantised ({lm.quantization}) and has no gradients: load it in full precision")
    if not beta > 0 or not (eps is None or eps > 0):
        raise BadInput(f"eps={eps} and beta={beta}: both are positive")
    twin = copy.deepcopy(lm.model).to(dtype)
    other = load(twin, tokenizer=lm.tokenizer, cache=False)
    plain = other.activations(inputs, sites=site, where=where, pool=pool)
    gradients = _gradient(other, examples, rejected, beta)
    with torch.no_grad():
        if eps is None:
            theta, g = (_length(side) for side in zip(*gradients, strict=True))
            eps = _STEP * theta / max(g, 1e-300)
        for parameter, gradient in gradients:
            parameter += eps * gradient
    return ColdStates(plain, other.activations(inputs, sites=site, where=where, pool=pool), eps)


def cold_gradients(
    lm: LensModel,
    examples: Sequence[Any],
    site: Any,
    *,
    rejected: Sequence[Any] | None = None,
    where: Any = "all",
    beta: float = 0.1,
) -> Activations:
    """Gradient of each example's loss with respect to its states at one site: for `directions.unit_kernel`.

    Args: as `cold_states`. With `rejected`, rows of the chosen examples come first, then those of the rejected ones.
    Returns: Activations with the labels `text` and `position`; rows are gradients.
    Raises: as `cold_states`; BadInput: several sites.
    """
    chosen, other = _rows(lm, examples, rejected)
    found = lm.layout.sites(site)
    if len(found) != 1:
        raise BadInput(f"{site!r} names {len(found)} sites: give one")
    # At the start of DPO the derivative of the loss along log p(chosen) - log p(rejected) is -beta / 2.
    signed = [(row, 1.0 if rejected is None else beta / 2) for row in chosen] + [(row, -beta / 2) for row in other]
    positions = resolve(where, [row for row, _ in signed])
    values, text, position = [], [], []
    for i, (row, weight) in enumerate(signed):
        moved: list[Tensor] = []

        def leaf(states: Tensor, moved: list[Tensor] = moved) -> Tensor:
            moved.append(torch.zeros_like(states, requires_grad=True))
            return states.detach() + moved[0]

        with own_forward(lm.layout):
            nll = answer_nll(lm.layout, [row], [(lm.layout.tap(found[0]), leaf)])
        (gradient,) = torch.autograd.grad(weight * nll.sum(), moved)
        at = list(positions[i])
        values.append(gradient.reshape(len(row), -1)[at].float().cpu())
        text += [i] * len(at)
        position += at
    return Activations(
        {found[0]: torch.cat(values)}, {"text": np.array(text), "position": np.array(position)}, {"model": lm.name}
    )


def _gradient(
    lm: LensModel, examples: Sequence[Any], rejected: Sequence[Any] | None, beta: float
) -> list[tuple[Tensor, Tensor]]:
    """(parameter, gradient of the mean loss) of every weight that the loss depends on."""
    chosen, other = _rows(lm, examples, rejected)
    weights = [p for p in lm.model.parameters() if p.requires_grad]
    total: list[Tensor | None] = [None] * len(weights)
    lengths = [len(row) + (len(other[i]) if other else 0) for i, row in enumerate(chosen)]
    with own_forward(lm.layout):
        for part in batches(lengths, lm.token_budget):
            nll = _nll(lm.layout, [chosen[i] for i in part])
            if other:
                margin = _nll(lm.layout, [other[i] for i in part]) - nll
                nll = -logsigmoid(beta * (margin - margin.detach()))
            parts = torch.autograd.grad(nll.sum() / len(chosen), weights, allow_unused=True)
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, parts, strict=True)]
    return [(w, g) for w, g in zip(weights, total, strict=True) if g is not None]


def _length(tensors: Sequence[Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


def _nll(layout: Layout, rows: Sequence[TokenRow]) -> Tensor:
    return answer_nll(layout, rows)


def _rows(
    lm: LensModel, examples: Sequence[Any], rejected: Sequence[Any] | None
) -> tuple[list[TokenRow], list[TokenRow]]:
    if not len(examples):
        raise TooFewExamples("no examples: give at least one chat that ends with the wanted answer")
    if rejected is not None and len(rejected) != len(examples):
        raise BadInput(f"{len(examples)} examples and {len(rejected)} rejected ones: give as many of each")
    return lm.tokens(list(examples)), [] if rejected is None else lm.tokens(list(rejected))
