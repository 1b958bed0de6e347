"""Two things easily taken for one: the model says that it went wrong, and it does better while it is still pushed.

A restart can be said without being done, and an answer can come back to its question without a word. And an answer that
recovers after the steering has stopped has resisted nothing. So both are counted, among answers that began off topic,
and apart by whether the steering still acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import BadInput
from latentlens.methods.esr import clustered_share, paired, rates
from latentlens.resistance import sampling, thresholds
from latentlens.resistance.detectors import detect
from latentlens.resistance.study import Study
from latentlens.values.attempts import RESTART, clauses
from latentlens.values.esr import SCHEDULES, Answers, Condition, EsrRates, PairedEffect, SampledLatents, ThresholdSet
from latentlens.values.esr_parts import Detection
from latentlens.values.judging import Case
from latentlens.values.off_topic import OffTopicDetectors


@dataclass(frozen=True)
class HeldOut:
    """Rates on prompts that neither thresholds nor detectors have seen, and the paired change under ablation."""

    prompts: tuple[int, ...]
    detectors: tuple[int, ...]
    rates: tuple[EsrRates, ...]
    changes: tuple[PairedEffect, ...]
    answers: dict[str, Answers]


def halves(text: str) -> tuple[str, str]:
    """A text in two, at the restart if one is said, else at the clause nearest to the middle; the second may lack."""
    spans = clauses(text)
    said = [s for s, e in spans[1:] if RESTART.match(text, s, e)]
    starts = said[:1] or [s for s, _ in spans[1:]]
    if not starts:
        return text.strip(), ""
    at = min(starts, key=lambda s: abs(s - len(text) / 2))
    return text[:at].strip(), text[at:].strip()


def separate(
    study: Study, answers: Answers, detectors: OffTopicDetectors, *, margin: float = 25.0, off_topic: float = 50.0
) -> Detection:
    """Among answers whose first half scores below `off_topic`: in how many do the detectors fire, is a restart said,
    does the second half score at least `margin` more?

    The first detector counts as firing above the middle between its means with right and with wrong answers, in the
    answer read without steering. An answer without a second half has not recovered.

    Args: answers: of one steered condition. detectors: the strongest is read. margin: points.
    """
    parts = [halves(text) for text in answers.texts]
    first, second = (_scores(study, answers, [p[k] for p in parts]) for k in (0, 1))
    says = np.array([any(RESTART.match(t, s, e) for s, e in clauses(t)[1:]) for t in answers.texts], dtype=float)
    began = np.nan_to_num(first, nan=100.0) < off_topic
    better = (np.nan_to_num(second) - np.nan_to_num(first) >= margin).astype(float)
    notices = _notices(study, answers, detectors)
    groups = answers.latents[began]
    goes_on = SCHEDULES[str(answers.about.get("schedule") or "persistent")][1].stop is None
    columns = [x[began] for x in (notices, says, better, says * better)]
    said = says[began] > 0
    return Detection(
        answers.condition, goes_on, int(began.sum()), len(answers),
        *(clustered_share(column, groups) for column in columns),
        clustered_share(better[began][said], groups[said]), clustered_share(better[began][~said], groups[~said]),
        margin,
    )  # fmt: skip


def held_out(
    study: Study,
    baseline: Answers,
    sampled: SampledLatents,
    schedule: str,
    *,
    k: int | None = None,
    per_latent: int = 5,
    seed: int = 0,
    found: ThresholdSet | None = None,
    **options: int,
) -> HeldOut:
    """Half of the groups of prompts choose thresholds and detectors, the other half is asked.

    Args:
        k: how many detectors to ablate at most. per_latent: prompts for each latent. seed: of the split and the trials.
        found: thresholds, if they were found on these very prompts before. options: for `thresholds.find`.
    Raises: BadInput: fewer than four groups of prompts.
    """
    names = list(dict.fromkeys(study.task.groups))
    if len(names) < 4:
        raise BadInput(f"{len(names)} groups of prompts: at least 4 are needed to hold out half of them")
    shown = set(np.random.default_rng(seed).permutation(len(names))[: len(names) // 2].tolist())
    choosing = [p for p, g in enumerate(study.task.groups) if names.index(g) in shown]
    asked = [p for p, g in enumerate(study.task.groups) if names.index(g) not in shown]
    detected = detect(study, baseline, seed=seed, keep=choosing)
    detectors = detected.chosen(k=k)
    found = found or thresholds.find(study, sampled, schedule, prompts=choosing, seed=seed, **options)
    drawn = sampling.trials(sampled, found.bracketed, per_latent, seed=seed + 2, prompts=asked)
    controls = detected.controls(detectors, n_sets=2)
    made = [Condition("steered, held-out prompts", schedule)]
    made.append(Condition("detectors ablated, held-out prompts", schedule, ablated=detectors.latents))
    made += [
        Condition(f"{name} ablated, held-out prompts", schedule, ablated=them)
        for name, them in controls.items()
        if name.startswith("matched")
    ]
    answers = study.answers(drawn, made)
    steered, ablated, *others = answers.values()
    changes = [paired(steered, ablated, outcome) for outcome in ("multi", "resisted")]
    if others:
        changes.append(paired(steered, others, "multi", name="matched random, held-out prompts"))
    every = tuple(rates(a) for a in answers.values())
    return HeldOut(tuple(asked), detectors.latents, every, tuple(changes), answers)


def _scores(study: Study, answers: Answers, texts: Sequence[str]) -> NDArray[np.float64]:
    """Score of a text as one attempt, NaN for an empty one."""
    cases = [replace(case, response=text) for case, text in zip(study.cases(answers), texts, strict=True)]
    some = [i for i, case in enumerate(cases) if case.response]
    found = np.full(len(cases), np.nan)
    asked: list[Case] = [cases[i] for i in some]
    for i, parts in zip(some, study.task.judge.attempts(asked), strict=True):
        scores = [part.score for part in parts or () if part.score is not None]
        if scores:
            found[i] = float(np.mean(scores))
    return found


def _notices(study: Study, answers: Answers, detectors: OffTopicDetectors) -> NDArray[np.float64]:
    one = detectors.latents[0]
    codes = study.codes(study.conversations(answers), "response")
    values, text = codes.dense([one])[:, 0].double().cpu().numpy(), np.asarray(codes.labels["text"])
    largest = np.zeros(len(answers))
    np.maximum.at(largest, text, values)
    middle = (detectors.normal_mean[one] + detectors.shuffled_mean[one]) / 2
    return (largest > middle).astype(float)
