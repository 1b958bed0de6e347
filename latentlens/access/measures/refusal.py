"""What candidate directions do to refusals, as `directions.select_refusal` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentlens.access.progress import Progress
from latentlens.errors import BadInput
from latentlens.maths.odds import log_odds_of
from latentlens.values.directions import Direction
from latentlens.values.interventions import Plan
from latentlens.values.operations import Add, ProjectOut

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

#: Where a direction is projected out of everything that is written to the residual stream.
EVERYWHERE = ("resid_pre[*]", "attn_out[*]", "mlp_out[*]")
_VALUES = 1 << 24  # logits held at a time


def refusal_tokens(lm: LensModel, words: Sequence[str]) -> list[int]:
    """First token of each word as an answer begins, for example ("I", "As").

    Raises: BadInput: a word without tokens.
    """
    found: list[int] = []
    for word in words:
        ids = lm.tokenizer(word, add_special_tokens=False).input_ids
        if not ids:
            raise BadInput(f"{word!r} has no tokens in this tokenizer")
        found.append(int(ids[0]))
    return sorted(set(found))


def measure_refusal(
    lm: LensModel,
    candidates: Sequence[Direction],
    harmful: Sequence[Any],
    harmless: Sequence[Any],
    tokens: Sequence[int],
) -> dict[str, np.ndarray]:
    """Three numbers for every candidate, from the logits where the answer begins.

        ablation   mean over harmful prompts of log p - log(1 - p), the direction projected out of every block's input
                   and of every attention and feed-forward output, at every position
        kl         mean over harmless prompts of KL(plain || ablated)
        induce     mean over harmless prompts of log p - log(1 - p), the direction added at its site, at every position

    with p the probability of the refusal tokens. Prompts and candidates share batches, a plan a row.

    Args:
        candidates: directions, as `directions.refusal_candidates` gives them.
        harmful, harmless: validation prompts, not those that the candidates were made from.
        tokens: ids that begin a refusal (`refusal_tokens`).
    Returns: {"ablation", "kl", "induce"}, each (n_candidates,), float64: the arguments of `directions.select_refusal`.
    Raises: BadInput: nothing to measure. What `lm.logits` raises.
    Source: Arditi et al. (arXiv 2406.11717), appendix C.
    """
    harmful, harmless = list(harmful), list(harmless)
    if not candidates or not harmful or not harmless:
        raise BadInput(
            f"{len(candidates)} candidates, {len(harmful)} harmful, {len(harmless)} harmless prompts: none may be 0"
        )
    plain = lm.logits(harmless).double().log_softmax(-1)
    found = {name: np.zeros(len(candidates)) for name in ("ablation", "kl", "induce")}
    rows = 2 * len(harmless) + len(harmful)
    step = max(1, _VALUES // max(1, rows * plain.shape[-1]))
    with Progress("refusal", len(candidates), "direction") as bar:
        for first in range(0, len(candidates), step):
            part = candidates[first : first + step]
            inputs, plans = [], []
            for direction in part:
                ablated: Plan = (ProjectOut(direction, site=list(EVERYWHERE)),)
                inputs += [*harmful, *harmless, *harmless]
                plans += [ablated] * (len(harmful) + len(harmless)) + [(Add(direction, 1.0),)] * len(harmless)
            logits = lm.logits(inputs, steer=[list(plan) for plan in plans]).reshape(len(part), rows, -1)
            cuts = [len(harmful), len(harmless), len(harmless)]
            on_harmful, on_harmless, added = torch.split(logits, cuts, dim=1)
            log_p = on_harmless.double().log_softmax(-1)
            place = slice(first, first + len(part))
            found["ablation"][place] = log_odds_of(on_harmful, tokens).mean(1).cpu().numpy()
            found["induce"][place] = log_odds_of(added, tokens).mean(1).cpu().numpy()
            found["kl"][place] = (plain.exp() * (plain - log_p)).sum(-1).mean(1).clamp_min(0).cpu().numpy()
            bar.update(len(part))
    return found
