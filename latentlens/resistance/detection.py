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
from latentlens.resistance.core import Core
from latentlens.resistance.detectors import detect
from latentlens.resistance.study import Study
from latentlens.values.attempts import RESTART, clauses
from latentlens.values.esr import SCHEDULES, Answers, Condition, EsrRates, PairedEffect
from latentlens.values.esr_parts import Detection
from latentlens.values.judging import Case
from latentlens.values.off_topic import OffTopicDetectors


@dataclass(frozen=True)
class HeldOut:
    """Rates on prompts that neither thresholds nor detectors have seen, and the paired change under ablation.

    chosen: the detectors that the other prompts gave; `separate` of these answers is to read them and no others.
    """

    prompts: tuple[int, ...]
    chosen: OffTopicDetectors
    rates: tuple[EsrRates, ...]
    changes: tuple[PairedEffect, ...]
    answers: dict[str, Answers]


def halves(text: str) -> tuple[str, str]:
    """A text in two, at the restart if one is said, else at the clause nearest to the middle; the second may lack."""
    spans = clauses(text)
    said = [s for s, _ in spans[1:] if RESTART.match(text, s)]
    starts = said[:1] or [s for s, _ in spans[1:]]
    if not starts:
        return text.strip(), ""
    at = min(starts, key=lambda s: abs(s - len(text) / 2))
    return text[:at].strip(), text[at:].strip()


def separate(
    study: Study,
    answers: Answers,
    detectors: OffTopicDetectors,
    *,
    name: str = "",
    margin: float = 25.0,
    off_topic: float = 50.0,
) -> Detection:
    """Among answers whose first half scores below `off_topic`: in how many does the strongest detector fire, is a
    restart said, does the second half score at least `margin` more?

    It counts as firing above the middle between its means with right and with wrong answers, in the answer read
    without steering. An answer without a second half has not recovered.

    Args: answers: of one steered condition. detectors: the strongest is read. name: in tables. margin: points.
    """
    parts = [halves(text) for text in answers.texts]
    first, second = (_scores(study, answers, [p[k] for p in parts]) for k in (0, 1))
    says = np.array([any(RESTART.match(t, s) for s, _ in clauses(t)[1:]) for t in answers.texts], dtype=float)
    began = np.nan_to_num(first, nan=100.0) < off_topic
    better = (np.nan_to_num(second) - np.nan_to_num(first) >= margin).astype(float)
    notices = _notices(study, answers, detectors)
    groups = answers.latents[began]
    goes_on = SCHEDULES[str(answers.about.get("schedule") or "persistent")][1].stop is None
    fires, spoke, did = notices[began], says[began], better[began]
    said = spoke > 0
    return Detection(
        condition=name or answers.condition,
        steering_goes_on=goes_on,
        n=int(began.sum()),
        of=len(answers),
        notices=clustered_share(fires, groups),
        says=clustered_share(spoke, groups),
        recovers=clustered_share(did, groups),
        both=clustered_share(spoke * did, groups),
        recovers_if_said=clustered_share(did[said], groups[said]),
        recovers_if_not=clustered_share(did[~said], groups[~said]),
        margin=margin,
    )


def held_out(core: Core, schedule: str, *, per_latent: int = 5) -> HeldOut:
    """Half of the groups of prompts choose thresholds and detectors, the other half is asked.

    Conditions: "steered", "detectors ablated", and two matched random sets ablated.

    Args: core: study, unsteered answers and latents. schedule: of the steering. per_latent: prompts for each latent.
    Raises: BadInput: fewer than four groups of prompts.
    """
    study, seed = core.study, core.seed
    names = list(dict.fromkeys(study.task.groups))
    if len(names) < 4:
        raise BadInput(f"{len(names)} groups of prompts: at least 4 are needed to hold out half of them")
    shown = set(np.random.default_rng(seed).permutation(len(names))[: len(names) // 2].tolist())
    choosing = [p for p, g in enumerate(study.task.groups) if names.index(g) in shown]
    asked = [p for p, g in enumerate(study.task.groups) if names.index(g) not in shown]
    detected = detect(study, core.baseline, seed=seed, keep=choosing)
    detectors = detected.chosen(k=len(core.chosen))
    limits = thresholds.find(study, core.sampled, schedule, prompts=choosing, seed=seed, **core.how)
    drawn = sampling.trials(core.sampled, limits.bracketed, per_latent, seed=seed + 2, prompts=asked)
    sets = {name: them for name, them in detected.controls(detectors, n_sets=2).items() if name.startswith("matched")}
    made = [Condition("steered", schedule), Condition("detectors ablated", schedule, ablated=detectors.latents)]
    made += [Condition(f"{name} ablated", schedule, ablated=them) for name, them in sets.items()]
    answers = study.answers(drawn, made)
    steered, ablated, *others = answers.values()
    changes = [paired(steered, ablated, outcome) for outcome in ("multi", "resisted")]
    if others:
        changes.append(paired(steered, others, "multi", name=f"matched random, {len(others)} sets"))
    return HeldOut(tuple(asked), detectors, tuple(map(rates, answers.values())), tuple(changes), answers)


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
