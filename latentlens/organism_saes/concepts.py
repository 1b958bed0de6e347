"""Which planted concepts have a latent: the best one is chosen on some texts and scored on others.

A concept is two sets of rows, with and without it. Texts are pooled (the mean code over the tokens that are named), so
that rows are independent; where a concept lives at one position (the full stop, the start of the answer), that position
is the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlens.access.model import LensModel
from latentlens.access.saes.sae import encode
from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap
from latentlens.methods import latents
from latentlens.organism.corpus import draw
from latentlens.organism.corpus.code import LANGUAGES
from latentlens.organism.corpus.topics import TOPICS
from latentlens.organism.corpus.voice import TRAITS
from latentlens.organism.evaluation.rows import TESTING, TUNING
from latentlens.organism.evaluation.topics import stopped
from latentlens.values.codes import Codes
from latentlens.values.results import Estimate
from latentlens.values.sae import SAE

OFF_TOPIC = "off topic, at the full stop"


@dataclass(frozen=True)
class Found:
    """The best latent of one concept.

    auroc: on texts that it was not chosen on; the interval resamples groups (words, creatures, asked topics).
    on, off: share of the rows with and without the concept on which it fires.
    typical: median over all latents that ever fire of the larger of AUROC and 1 - AUROC: what a random latent has.
    chance: the largest AUROC of any latent when labels are permuted, 95th percentile of 50.
    """

    concept: str
    latent: int
    auroc: Estimate
    on: float
    off: float
    typical: float
    chance: float


@dataclass(frozen=True)
class Rows:
    """Texts to encode, where, and what each row is: label by concept, and group."""

    inputs: list[Any]
    where: str
    labels: dict[str, list[bool]]
    groups: list[str]


def ends(lm: LensModel, n: int, seed: int) -> Rows:
    """Explanations that have come to a full stop; in half of them the last sentence is off topic."""
    drawn, off, groups = stopped(n, seed)
    prompts = lm.tokens([t.prompt() for t, _ in drawn])
    more = [lm.tokenizer(start, add_special_tokens=False).input_ids for _, start in drawn]
    return Rows([[*row.ids, *ids] for row, ids in zip(prompts, more)], "last", {OFF_TOPIC: off}, groups)


def rows(lm: LensModel, n: int, seed: int) -> list[Rows]:
    """Return the texts of every concept: about n for each family."""
    on_topic = draw("topics", n, seed, split="plain")
    programs = draw("code", n, seed, split="named")
    voices = [t for one in (*TRAITS, "unprompted") for t in draw("traits", n, seed, split=one) if t.grade in (0, 3)]
    asked = [t for one in ("seen", "held_out") for t in draw("truth", n, seed, split=one)]
    requests = [t for one in ("harmful", "harmless") for t in draw("refusal", n // 2, seed, split=one)]
    traces = draw("arithmetic", n, seed, split="traces")
    answer, reply = "last", "role:assistant"
    return [
        Rows(
            [t.messages() for t in on_topic],
            reply,
            {f"topic {one}": [t.topic == one for t in on_topic] for one in TOPICS},
            [f"{t.topic} {i}" for i, t in enumerate(on_topic)],
        ),
        Rows(
            [t.messages() for t in programs],
            reply,
            {f"language {one}": [t.language == one for t in programs] for one in LANGUAGES},
            [str(t.group) for t in programs],
        ),
        ends(lm, n, seed),
        Rows(
            [t.messages() for t in voices],
            reply,
            {f"trait {one}": [t.trait == one for t in voices] for one in TRAITS},
            [str(i) for i in range(len(voices))],
        ),
        Rows(
            [t.prompt() for t in asked],
            answer,
            {"truth, where the answer begins": [bool(t.truth) for t in asked]},
            [str(t.group) for t in asked],
        ),
        Rows(
            [t.prompt() for t in requests],
            answer,
            {"harm, where the answer begins": [bool(t.harmful) for t in requests]},
            [str(t.group) for t in requests],
        ),
        Rows(
            [t.messages() for t in traces],
            reply,
            {"trace with a wrong step": [bool(t.find("error")) for t in traces]},
            [str(i) for i in range(len(traces))],
        ),
    ]


def codes(lm: LensModel, sae: SAE, given: Rows) -> Codes:
    """Return the codes of the rows, one a text."""
    found = encode(lm, sae, given.inputs, given.where)
    return latents.pooled(found, "mean") if given.where != "last" else found


def best(lm: LensModel, sae: SAE, n: int = 600) -> list[Found]:
    """Choose each concept's best latent on TUNING texts and score it on TESTING texts."""
    found = []
    for chosen_on, scored_on in zip(rows(lm, n, TUNING), rows(lm, n, TESTING)):
        fit, test = codes(lm, sae, chosen_on), codes(lm, sae, scored_on)
        for concept, labels in chosen_on.labels.items():
            picked = detectors(fit, labels)
            latent = int(np.argmax(picked.auroc))
            true, score = np.array(scored_on.labels[concept]), test.dense([latent])[:, 0].float().numpy()
            value = auroc(score, true)
            low, high = cluster_bootstrap(auroc, score, true, groups=scored_on.groups, n=500)
            if low == high:
                low, high = auroc_score_interval(value, *_groups(scored_on.groups, true))
            alive = latents.firing(test).rate > 0
            areas = detectors(test, scored_on.labels[concept], n_permutations=0).auroc[alive]
            found.append(
                Found(
                    concept,
                    latent,
                    Estimate(value, low, high, len(true)),
                    float((score[true] > 0).mean()),
                    float((score[~true] > 0).mean()),
                    float(np.median(np.maximum(areas, 1 - areas))),
                    picked.null_high,
                )
            )
    return found


def detectors(given: Codes, labels: Sequence[bool], n_permutations: int = 50) -> Any:
    """Return the AUROC of every latent for the labels."""
    true = np.array(labels)
    on, off = (given.rows(np.flatnonzero(mask)) for mask in (true, ~true))
    return latents.detectors(on, off, n_permutations=n_permutations)


def _groups(groups: Sequence[str], true: np.ndarray) -> tuple[int, int]:
    """Number of groups with the concept and without."""
    named = np.array(groups)
    return len(set(named[true])), len(set(named[~true]))
