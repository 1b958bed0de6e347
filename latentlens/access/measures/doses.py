"""What a strength does to a model, as `methods.calibrate` and `methods.dose` ask for it.

ask = per_token_kl(lm, prompts, [lambda c: ll.Add(a, c), lambda c: ll.Add(b, c)])
budgets = ll.calibrate.kl_budget_batch(ask, 2)                    # both directions in the same batches

doses = measure_doses(lm, prompts, lambda c: ll.Add(a, c), [0, 1, 2, 4], effect=lambda run: "sea" in run.text)
ll.dose_response(**doses)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.batching import batches, halving
from latentlens.access.editing.steering import own_forward
from latentlens.access.forward import gather, read
from latentlens.errors import BadInput
from latentlens.values.rollouts import Rollout, Rollouts
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_LOGITS = Site("logits")
_VALUES = 1 << 26  # logits held at a time

Plans = Callable[[float], Any]


def per_token_kl(
    lm: LensModel, prompts: Any, plans: Sequence[Plans], *, max_new_tokens: int = 20, **options: Any
) -> Callable[[list[float | None]], list[Tensor | None]]:
    """The question that `kl_budget_batch` asks: strengths in, per-token KL of every problem out.

        KL_t = KL(p_steered(. | x, y_<t) || p_unsteered(. | x, y_<t))    nats,    y: the greedy text under steering

    over the tokens of all prompts together, the end-of-text token included. All problems that are asked for are
    written and scored in the same batches.

    Args:
        prompts: one or several, as for `lm.generate`.
        plans: per problem, from a strength to the intervention or plan that has it.
        max_new_tokens: tokens of every prompt that count.
        options: for `lm.generate`, such as `allow_idle=True` for gated plans.
    Returns: a function of n strengths (None: not asked) to n arrays (None: not asked).
    Raises: BadInput: the number of strengths is not that of the plans. And what `lm.generate` raises.
    Source: steering-lite (github.com/wassname/steering-lite), measure_kl.
    """
    texts = _several(prompts)

    def ask(coeffs: list[float | None]) -> list[Tensor | None]:
        if len(coeffs) != len(plans):
            raise BadInput(f"{len(coeffs)} strengths for {len(plans)} plans: kl_budget_batch(ask, n={len(plans)})")
        asked = [i for i, coeff in enumerate(coeffs) if coeff is not None]
        steer = [_listed(plans[i](float(coeffs[i]))) for i in asked for _ in texts]  # pyright: ignore[reportArgumentType]
        runs = lm.generate(texts * len(asked), max_new_tokens, steer=steer, **options)
        parts: list[Tensor | None] = [None] * len(coeffs)
        kl = runs.effect().kl
        for place, i in enumerate(asked):
            mine = kl[place * len(texts) : (place + 1) * len(texts)]
            parts[i] = torch.from_numpy(np.concatenate(mine))
        return parts

    return ask


def unsteered_nll(lm: LensModel, runs: Sequence[Rollout | TokenRow]) -> np.ndarray:
    """Mean negative log likelihood of each rollout's generated tokens under the model without edits, nats per token.

    Rows with a generated part (`lm.tokens(prompt)[0].continued(ids)`) are taken as well.

        nll = -1/n sum_t log p_unsteered(y_t | x, y_<t)

    Low is not always good: text that repeats itself is likely text.

    Returns: (n_rollouts,), float64.
    Raises: BadInput: a rollout without generated tokens.
    """
    return np.array([values.mean() for values in token_nll(lm, runs)])


def token_nll(lm: LensModel, runs: Sequence[Rollout | TokenRow]) -> list[np.ndarray]:
    """-log p_unsteered(y_t | x, y_<t) of every generated token of each rollout, in nats.

    Their median says how fluent a text is, apart from the few tokens at which it turns to something else.

    Returns: per rollout (n_generated,), float64.
    Raises: BadInput: a rollout without generated tokens.
    """
    rows = [run if isinstance(run, TokenRow) else run.full_row for run in runs]
    empty = [i for i, row in enumerate(rows) if row.n_prompt == len(row)]
    if empty:
        raise BadInput(f"rollout {empty[0]} has no generated token: it has no likelihood")
    found = [np.zeros(0)] * len(rows)

    def score(part: Sequence[int]) -> None:
        mine = [rows[i].cut(slice(0, len(rows[i]) - 1)) for i in part]
        at = [range(rows[i].n_prompt - 1, len(rows[i]) - 1) for i in part]
        logits = read(lm.layout, mine, [_LOGITS], lambda width: gather(width, [[p] for p in at], pooled=False))[_LOGITS]
        targets = torch.tensor([token for i in part for token in rows[i].ids[rows[i].n_prompt :]], device=logits.device)
        nll = -logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu()
        for i, values in zip(part, torch.split(nll, [len(p) for p in at]), strict=True):
            found[i] = values.numpy()

    budget = max(1, min(lm.token_budget, _VALUES // max(lm.layout.vocab_size, 1)))
    with own_forward(lm.layout):
        for batch in batches([len(row) for row in rows], budget):
            halving(batch, score)
    return found


def measure_doses(
    lm: LensModel,
    prompts: Any,
    plan: Plans,
    strengths: Sequence[float],
    effect: Callable[[Rollout], float],
    *,
    off_target: Callable[[Rollout], float] | None = None,
    max_new_tokens: int = 64,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Run a grid of strengths with common random numbers: the arguments of `dose_response`.

    Every item is a prompt with a sample; under all strengths it shares its randomness. All strengths are written in
    the same batches.

    Args:
        plan: from a strength to the intervention or plan that has it; never asked for 0, which is no edit.
        strengths: ascending from 0.
        effect, off_target: the outcome of one rollout.
        max_new_tokens, samples, temperature, seed, options: as for `lm.generate`.
    Returns: strengths, effect, off_target, nll, norm_ratio (items, strengths) and groups (the prompt of each item).
        `nll` is `unsteered_nll`; `norm_ratio` the median |edit| / |residual| over the states edited, 0 without
        edit, the largest of several edits.
    Raises: what `lm.generate` raises.
    """
    texts, grid = _several(prompts), [float(c) for c in strengths]
    steer = [_listed(plan(c)) if c else None for c in grid for _ in texts]
    runs = lm.generate(
        texts * len(grid), max_new_tokens, samples, temperature, seed, steer=steer if any(steer) else None, **options
    )

    def table(values: Any) -> np.ndarray:
        return np.asarray(values, dtype=np.float64).reshape(len(grid), len(texts) * samples).T

    return {
        "strengths": grid,
        "effect": table([effect(run) for run in runs]),
        "off_target": None if off_target is None else table([off_target(run) for run in runs]),
        "nll": table(unsteered_nll(lm, runs)),
        "norm_ratio": table(_norm_ratio(runs)),
        "groups": np.repeat(np.arange(len(texts)), samples),
        "about": {
            "model": lm.name,
            "seed of the texts": seed,
            "temperature": temperature,
            "plan": repr(plan(grid[-1])),
        },
    }


def _norm_ratio(runs: Rollouts) -> list[float]:
    found = [0.0] * len(runs)
    for edit in runs.effect().edits:
        if edit.fired:
            found[edit.rollout] = max(found[edit.rollout], edit.relative_norm)
    return found


def _several(prompts: Any) -> list[Any]:
    """A list of prompts; one text, one chat or one row of token ids becomes a list of itself."""
    if isinstance(prompts, str):
        return [prompts]
    found = list(prompts)
    if not found:
        raise BadInput("no prompt was given")
    return [found] if isinstance(found[0], (dict, int)) else found


def _listed(plan: Any) -> list[Any]:
    return list(plan) if isinstance(plan, (list, tuple)) else [plan]
