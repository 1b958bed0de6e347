"""Endogenous steering resistance: does a model that is steered off topic notice, start over, and what carries that?

The protocol of arXiv 2602.06941 over any model with an SAE; `steering/esr.py` runs all of it.

    study = ll.open_study()                         # the embedded model, its SAE, its questions
    core = ll.resistance.prepare(study, 16)         # unsteered answers, detectors, controls, latents to steer with
    trials = core.trials("transient", 4)            # at the threshold of every latent
    ll.resistance.ablation.conditions(core.rules, core.controls, "transient")

    task         what is asked, who judges, what latents are called; the embedded model's own
    study        a model, an SAE and a task: conditions in, judged answers out, resumable
    sampling     latents that have nothing to do with the prompts, and trials for them
    thresholds   the strength of every latent, all found in the same batches
    detectors    off-topic latents by three rules, and random ones like them
    ablation     detectors clamped to 0, dose by dose, and raised where nothing is wrong
    boosts       rates around the threshold
    meta_prompts asking for it in words
    corrections  latents before, during and after a correction, aligned on it
    inducing     fine-tuning a model to correct itself, by mixing ratio
    detection    saying that it went wrong against doing better while the steering goes on
"""

from latentlens.resistance import (
    ablation,
    boosts,
    corrections,
    detection,
    detectors,
    inducing,
    meta_prompts,
    sampling,
    thresholds,
)
from latentlens.resistance.core import Core, prepare

__all__ = [
    "Core",
    "ablation",
    "boosts",
    "corrections",
    "detection",
    "detectors",
    "inducing",
    "meta_prompts",
    "prepare",
    "sampling",
    "thresholds",
]
