"""Rates around the threshold: too weak and nothing is to be corrected, too strong and nothing can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentlens.methods.esr import boost_levels, rates
from latentlens.resistance.sampling import trials
from latentlens.resistance.study import Study
from latentlens.values.esr import Condition, SampledLatents, ThresholdSet
from latentlens.values.esr_parts import BoostPoint


def curve(
    study: Study,
    sampled: SampledLatents,
    thresholds: ThresholdSet,
    schedule: str,
    *,
    n_latents: int = 25,
    per_latent: int = 10,
    levels: int = 8,
    width: float = 3.0,
    seed: int = 0,
) -> list[BoostPoint]:
    """Every latent at the same strengths, from `width` standard deviations below the mean threshold to as many above.

    Args: thresholds: their mean and standard deviation (of the population) set the strengths. n_latents, per_latent:
        the first latents, and prompts for each. levels: how many strengths. seed: of the trials.
    Raises: BadInput: fewer than two thresholds.
    Source: ESR (arXiv 2602.06941), experiment 2: 25 latents, 10 prompts, 8 levels.
    """
    values = thresholds.bracketed
    mean, sd = float(np.mean(list(values.values()))), float(np.std(list(values.values())))
    strengths: Sequence[float] = [float(s) for s in boost_levels(list(values.values()), levels, width)]
    some = {j: values[j] for j in list(values)[:n_latents]}
    drawn = trials(sampled, some, per_latent, seed=seed + 1)
    names = [f"level {i}" for i in range(len(strengths))]
    answers = study.answers(drawn, [Condition(n, schedule, strength=s) for n, s in zip(names, strengths, strict=True)])
    return [
        BoostPoint(s, (s - mean) / sd if sd else 0.0, rates(answers[name]))
        for name, s in zip(names, strengths, strict=True)
    ]
