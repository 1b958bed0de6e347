"""Latents that have nothing to do with the prompts and are about something concrete, and trials for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from latentlens.errors import BadInput
from latentlens.methods import latent_sampling
from latentlens.methods.latents import pooled
from latentlens.resistance.study import Study
from latentlens.values.esr import Answers, SampledLatents, Trial
from latentlens.values.judging import Case

Relevance = Literal["silent", "top-100"]


def sample(
    study: Study,
    n: int,
    *,
    seed: int = 0,
    relevance: Relevance = "silent",
    baseline: Answers | None = None,
    exclude: Sequence[int] = (),
) -> SampledLatents:
    """The first n latents of a random order that are labelled, concrete and unrelated to every prompt.

    Args:
        study: labels are read or made here, and stay in `study.labels`.
        n: wanted; fewer are returned when no more pass.
        seed: of the order; a larger n begins with the same latents.
        relevance: "silent": fires on no token of any prompt; "top-100": outside every prompt's hundred strongest.
        baseline: unsteered answers; then a latent is allowed only on prompts whose answers it is silent on as well:
            where prompts and answers share no words, silence on the prompt alone says little.
        exclude: latents never to draw.
    Raises: BadInput: unknown relevance. TooFewExamples: no latent passes.
    Source: ESR (arXiv 2602.06941): 3 n candidates, labelled, concreteness 65, silent on all prompts; the answers are
        ours.
    """
    if relevance not in ("silent", "top-100"):
        raise BadInput(f"relevance={relevance!r}: allowed are 'silent' and 'top-100'")
    task = study.task
    chats = [task.chat(p) for p in range(len(task.prompts))]
    on_prompts = study.codes(chats)
    unrelated = (
        latent_sampling.silent(on_prompts) if relevance == "silent" else latent_sampling.outside_top(pooled(on_prompts))
    )
    name_latents(study, baseline)
    free = np.ones((len(chats), study.sae.d_sae), dtype=bool)
    if baseline is not None:
        answers = study.codes(study.conversations(baseline), "response")
        free = latent_sampling.silent_on(answers, baseline.prompt_indices, len(chats))
    concreteness: dict[int, float] = {}
    funnel: dict[str, int] = dict.fromkeys(
        ("looked at", "labelled", "silent on prompts", "concrete", "with a prompt"), 0
    )
    barred = {int(j) for j in exclude}

    def keep(candidates: Sequence[int]) -> list[bool]:
        candidates = [int(j) for j in candidates]
        labelled = [j for j in candidates if j in study.labels and j not in barred]
        quiet = [j for j in labelled if unrelated[j]]
        concrete = _concrete(study, quiet, concreteness)
        passed = {j for j in concrete if free[:, j].any()}
        for name, left in zip(funnel, (candidates, labelled, quiet, concrete, passed), strict=True):
            funnel[name] += len(left)
        return [j in passed for j in candidates]

    found = latent_sampling.draw(study.sae.d_sae, n, keep, seed=seed)
    allowed = {j: tuple(int(p) for p in np.flatnonzero(free[:, j])) for j in found}
    return SampledLatents(tuple(found), {j: study.labels[j] for j in found}, concreteness, allowed, funnel)


def name_latents(study: Study, baseline: Answers | None = None) -> None:
    """Give the study labels where the task has none: the words around their strongest tokens in the task's texts."""
    if study.labels:
        return
    rows = study.task.texts
    if rows is None:
        rows = study.conversations(study.baseline(2) if baseline is None else baseline)
    study.labels.update(latent_sampling.context_labels(study.codes(rows, "content")))


def trials(
    sampled: SampledLatents,
    thresholds: Mapping[int, float],
    per_latent: int,
    *,
    seed: int = 0,
    prompts: Sequence[int] | None = None,
) -> list[Trial]:
    """Trials for every latent that has a threshold: prompts without replacement, each with a seed of its own.

    Args: thresholds: latent -> strength. per_latent: prompts for each. seed: of both. prompts: only these.
    """
    among = None if prompts is None else set(prompts)

    def allowed(latent: int) -> list[int]:
        return [p for p in sampled.allowed[latent] if among is None or p in among]

    drawn = latent_sampling.assign([j for j in sampled.latents if j in thresholds], allowed, per_latent, seed=seed)
    return [Trial(latent, prompt, at, thresholds[latent]) for latent, prompt, at in drawn]


def _concrete(study: Study, latents: Sequence[int], found: dict[int, float]) -> list[int]:
    """Those whose label is concrete enough; what the judge says is noted in `found`."""
    judge = study.task.concreteness
    if judge is None or not latents:
        return list(latents)
    for latent, score in zip(latents, judge.scores([Case("", study.labels[j], "") for j in latents]), strict=True):
        if score.value is not None:
            found[latent] = score.value
    return [j for j in latents if found.get(j, -1.0) >= study.task.least_concrete]
