"""Every steering method fitted to one concept, as arms of one comparison.

fits = concept_arms(lm, concept, 3, kept=KeptNumbers("runs/numbers"))
doses = dose_arms(lm, concept.prompts[:8], fits.found, kept, ll.calibrate.kl_budget_batch)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentlens.access.measures.cold import cold_gradients, cold_states
from latentlens.access.measures.likelihood import answer_positions
from latentlens.access.measures.reft import train_reft
from latentlens.access.measures.refusal import measure_refusal, refusal_tokens
from latentlens.access.measures.steering_arms import best_arm
from latentlens.access.saes.steered_codes import measure_effects
from latentlens.access.store.kept_numbers import KeptNumbers
from latentlens.errors import BadInput
from latentlens.methods import calibrate, directions, latents, probe
from latentlens.methods.directions.arms import adding, control_arms, direction_arms
from latentlens.values.activations import Activations
from latentlens.values.concepts import Concept
from latentlens.values.schedules import Schedule
from latentlens.values.steering_arms import ArmFits, SteeringArm
from latentlens.values.where import PerRow

if TYPE_CHECKING:
    from latentlens.access.model import LensModel
    from latentlens.values.sae import SAE

#: Vectors whose effects on latents are measured: four a dimension, beyond a thousand they cost more than they tell.
EFFECT_VECTORS = 1024


def how_to_act(concept: Concept) -> dict[str, Any]:
    """`where` and `schedule` of every intervention towards a concept."""
    return {"where": concept.act, "schedule": Schedule(stop=concept.steps) if concept.steps else None}


def pair_states(lm: LensModel, concept: Concept, sites: Any) -> tuple[Activations, NDArray[np.bool_], NDArray[np.intp]]:
    """States of the concept's texts, which rows show it, and which pair each row belongs to."""
    texts, n = [*concept.positive, *concept.negative], len(concept.positive)
    acts = lm.activations(texts, sites=sites, where=concept.read, pool=concept.pool)
    return acts, np.repeat([True, False], n), np.tile(np.arange(n), 2)


def concept_arms(
    lm: LensModel,
    concept: Concept,
    block: int,
    *,
    kept: KeptNumbers,
    sae: SAE | None = None,
    quick: bool = False,
    tuning: int = 8,
) -> ArmFits:
    """Every method fitted to a concept at the output of a block, its controls last, and why some could not be.

    Args:
        kept: where the effects of steering on latents are kept, which cost most.
        sae: for the decoder row of the latent that tells the concept best, SAE-TS and FGAA; None leaves them out.
        quick: leave out what runs or trains the model, and the probe.
        tuning: the first so many prompts may be looked at.
    Raises: what `lm.activations` raises.
    """
    site, how, fits = f"resid_post[{block}]", how_to_act(concept), ArmFits()
    acts, y, pair = pair_states(lm, concept, ["resid_post[*]", "z[*]"])
    other = lm.activations(lm.reference_texts, sites=site, where="content", pool="mean", truncate="right")[site]
    direction_arms(fits, acts, y, pair, site, reference=other, **how)
    if not quick:
        test = {"groups": pair.tolist(), "sites": site, "n_controls": 1, "n_bootstrap": 20}
        fits.add("probe normal", lambda: adding(probe.fit(acts, y, **test).best().direction, **how))
        _run_arms(fits, lm, concept, site, tuning)
    if sae is not None:
        _latent_arms(fits, lm, concept, sae, kept, str(acts.about["context_digest"]))
    control_arms(fits, acts, y, site, **how)
    return fits


def best_block(
    lm: LensModel, concept: Concept, blocks: Sequence[int], kept: KeptNumbers, *, tuning: int = 8, **options: Any
) -> int:
    """Where the mean difference scores best at the KL budget and at 1.41 times it, on the prompts for tuning.

    Args: options: as for `scored_answers`.
    """
    acts, y, _ = pair_states(lm, concept, [f"resid_post[{b}]" for b in blocks])
    along = [adding(directions.mean_difference(acts, y, site=s), **how_to_act(concept)) for s in acts.sites]
    tried = [SteeringArm(str(block), plan) for block, plan in zip(blocks, along, strict=True)]
    return int(best_arm(lm, concept, slice(0, tuning), tried, kept, calibrate.kl_budget_batch, **options))


def _run_arms(fits: ArmFits, lm: LensModel, concept: Concept, site: str, tuning: int) -> None:
    """ActAdd, refusal selection, ReFT-r1 and COLD."""
    how, few = how_to_act(concept), list(concept.examples[:10])

    def one_pair() -> Callable[[float], Any]:
        a, b = (lm.activations(x[0], sites=site)[site] for x in (concept.asked or concept.positive, concept.prompts))
        m = min(len(a), len(b))
        return lambda c: directions.act_add(a[:m], b[:m], coeff=c, site=site)

    def refusal_style() -> Callable[[float], Any]:
        if not concept.begins or concept.read != "last":
            raise BadInput("needs pairs of prompts, and a word that begins an answer with the concept")
        half, begins = len(concept.positive) // 2, refusal_tokens(lm, concept.begins)
        train = [*concept.positive[:half], *concept.negative[:half]]
        last = lm.activations(train, sites="resid_post[*]", where="last-3")
        them = directions.refusal_candidates(last, [True] * half + [False] * half)
        found = measure_refusal(lm, them, concept.positive[half:][:24], concept.negative[half:][:24], begins)
        measured = found["ablation"], found["kl"], found["induce"]
        return adding(directions.select_refusal(them, *measured, n_blocks=lm.layout.n_blocks).direction, **how)

    def trained() -> Callable[[float], Any]:
        examples = list(concept.examples[:80])
        begins = PerRow([answer_positions(row)[0] - 1 for row in lm.tokens(examples)])
        # Trained where it will be added: at the answer's beginning, or everywhere.
        where = begins if concept.act == "last_prompt" else "content"
        return adding(train_reft(lm, examples, site, where=where), **how)

    def cold() -> Callable[[float], Any]:
        rejected = concept.rejected[:10]
        states = cold_states(lm, few, concept.prompts[:tuning], site, rejected=rejected, where="last")
        return adding(directions.cold_direction(*states), **how)

    def kernel() -> Callable[[float], Any]:
        return adding(directions.unit_kernel(cold_gradients(lm, few, site, rejected=concept.rejected[:10])), **how)

    fits.add("ActAdd, one pair", one_pair)
    fits.add("refusal-style selection", refusal_style)
    fits.add("ReFT-r1", trained)
    fits.add("COLD, finite difference", cold)
    fits.add("COLD, unit kernel", kernel)


def _latent_arms(fits: ArmFits, lm: LensModel, concept: Concept, sae: SAE, kept: KeptNumbers, context: str) -> None:
    """The decoder row of the latent that tells the concept best, SAE-TS and FGAA."""
    how = how_to_act(concept)
    codes = [lm.latents(sae, side, where=concept.read) for side in (concept.positive, concept.negative)]
    best = int(latents.detectors(*map(latents.pooled, codes)).auroc.argmax())
    count = min(4 * sae.d_in, EFFECT_VECTORS)
    vectors = torch.randn(count, sae.d_in, generator=torch.Generator().manual_seed(0))
    prompts, more = list(concept.prompts[:2]), {"max_new_tokens": 24, "where": concept.act}
    key = ["effects", context, sae.fingerprint, prompts, more, len(vectors)]
    effects = kept.tensor(key, lambda: measure_effects(lm, sae, prompts, vectors, 1.0, **more))
    model = directions.EffectFit(sae.site).update(vectors, effects).finish()
    fits.add("SAE decoder row", lambda: adding(directions.latent_direction(sae, best), **how))
    fits.add("SAE-TS", lambda: adding(model.latent(best), **how))
    fits.add("FGAA", lambda: adding(directions.feature_guided(codes[0], codes[1], model, densest=0.5), **how))
