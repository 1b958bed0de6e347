"""Do the off-topic latents cause the restarts? The same steered replies, with other latents ablated in each arm.

Replies are steered to another topic while their first tokens are predicted, as in `organism/evaluation/steering.py`.
Every arm has the same prompts and the same seeds, so arms are compared reply by reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentlens.access.model import LensModel
from latentlens.access.saes.sae import encode
from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import cluster_bootstrap, wilson
from latentlens.methods import latents
from latentlens.organism.corpus import draw
from latentlens.organism.corpus.topics import TOPICS
from latentlens.organism.evaluation.rows import TESTING, TUNING
from latentlens.organism.evaluation.steering import SHIFT, TOPIC
from latentlens.organism.evaluation.topics import MAX_NEW, asked
from latentlens.organism.judges import restarts
from latentlens.organism_saes.concepts import OFF_TOPIC, codes, detectors, ends
from latentlens.values.directions import Direction
from latentlens.values.latents import ablate
from latentlens.values.operations import Add
from latentlens.values.results import Estimate
from latentlens.values.sae import SAE
from latentlens.values.schedules import Schedule

#: From which AUROC on a latent is an off-topic one; how many of them are ablated at most; how many random sets stand
#: beside them. Filling up a fixed number with latents that do not tell does other harm, and restarts come back.
TELLS, MOST, N_SETS = 0.9, 6, 5


@dataclass(frozen=True)
class Ablated:
    """One arm: which latents were ablated, the share of replies with a restart, and its change against no ablation."""

    name: str
    latents: tuple[int, ...]
    share: Estimate
    change: Estimate | None


def topic_directions(lm: LensModel, block: int, n: int = 400) -> dict[str, Direction]:
    """Return mean(reply tokens on the topic) - mean of the topics' means at one block, for every topic."""
    drawn = draw("topics", n, TUNING, split="plain")
    acts = lm.activations([t.messages() for t in drawn], f"resid_post[{block}]", "role:assistant", "mean")
    site = acts.sites[0]
    means = {one: acts[site][[t.topic == one for t in drawn]].mean(0) for one in TOPICS}
    centre = torch.stack(list(means.values())).mean(0)
    return {one: Direction(mean - centre, site, one) for one, mean in means.items()}


def off_topic_latents(lm: LensModel, sae: SAE, n: int = 1200) -> tuple[list[int], list[list[int]]]:
    """Return the latents that tell off-topic sentences at their full stop, on TUNING texts, and sets of others.

    The others fire as often and as strongly over all tokens of replies; none of them tells off-topic sentences better
    than chance.

    Raises: TooFewExamples: no latent tells them.
    """
    given = ends(lm, n, TUNING)
    told = detectors(codes(lm, sae, given), given.labels[OFF_TOPIC])
    them = told.best(min(MOST, int((told.auroc >= TELLS).sum())))
    if not them:
        most = float(told.auroc.max())
        raise TooFewExamples(
            f"no latent of {sae.name} has an AUROC of {TELLS} for {OFF_TOPIC!r}; the best has {most:.2f}"
        )
    replies = [t.messages() for t in draw("topics", n // 2, TUNING)]
    firing = latents.firing(encode(lm, sae, replies, "role:assistant"))
    others = [latents.matched(firing, them, exclude=told.beyond_chance, n=8, seed=seed) for seed in range(N_SETS)]
    return them, others


def ablation(lm: LensModel, sae: SAE, n: int = 200, n_seeds: int = 2, seed: int = TESTING + 3) -> list[Ablated]:
    """Return the arms: unsteered, steered, off-topic latents ablated, and each set of random ones ablated.

    Args: n: prompts. n_seeds: replies to each. seed: of the prompts (`TUNING` ones to choose by).
    Returns: the arms; intervals resample prompts, changes are paired.
    Raises: BadInput: the SAE reads before the block that is steered.
    """
    block, strength, steps = TOPIC
    if sae.site.block is None or sae.site.block < block:
        raise BadInput(f"{sae.site} lies before the steered block {block}: its latents cannot answer to the steering")
    chosen, vectors = asked(n, seed), topic_directions(lm, block)
    them, others = off_topic_latents(lm, sae)
    arms: dict[str, tuple[int, ...]] = {"no ablation": (), "off-topic latents": tuple(them)}
    arms |= {f"matched random latents {i}": tuple(one) for i, one in enumerate(others, 1)}
    how = {"where": "last_prompt+response", "schedule": Schedule(stop=steps)}
    moves = [Add(vectors[TOPICS[(TOPICS.index(str(t.topic)) + SHIFT) % len(TOPICS)]], strength, **how) for t in chosen]

    def restarted(plans: list[list[Any]]) -> np.ndarray:
        """1 for every reply with a restart, [prompts, seeds]."""
        runs = lm.generate(
            [t.prompt() for t in chosen], MAX_NEW, n_seeds, 0.7, steer=plans if any(plans) else None, allow_idle=True
        )
        return np.array([restarts(text) > 0 for text in runs.texts], dtype=float).reshape(len(chosen), n_seeds)

    plain = restarted([[] for _ in moves])
    found = [Ablated("not steered", (), _share(plain), None)]
    steered = np.zeros_like(plain)
    for name, off in arms.items():
        edits = [ablate(sae, off, where="last_prompt+response")] if off else []
        outcome = restarted([[move, *edits] for move in moves])
        if not off:
            steered = outcome
        found.append(Ablated(name, off, _share(outcome), _change(outcome, steered) if off else None))
    return found


def _share(outcome: np.ndarray) -> Estimate:
    value = float(outcome.mean())
    low, high = cluster_bootstrap(lambda x: float(x.mean()), outcome.mean(1))
    if low == high:
        low, high = wilson(round(value * len(outcome)), len(outcome))
    return Estimate(value, low, high, outcome.size)


def _change(outcome: np.ndarray, steered: np.ndarray) -> Estimate:
    difference = (outcome - steered).mean(1)
    low, high = cluster_bootstrap(lambda x: float(x.mean()), difference)
    return Estimate(float(difference.mean()), low, high, outcome.size)
