"""What a sentence in the prompt changes: four kinds of meta-prompt, with and without steering."""

from __future__ import annotations

from collections.abc import Sequence

from latentlens.methods.esr import paired, rates
from latentlens.resistance.study import Study
from latentlens.values.esr import Answers, Condition, EsrRates, PairedEffect, Trial


def compare(
    study: Study, trials: Sequence[Trial], schedule: str
) -> tuple[list[EsrRates], list[PairedEffect], dict[str, Answers]]:
    """Rates without and with each of the task's meta-prompts, steered and unsteered, and paired changes.

    Strengths are those found without a meta-prompt. A meta-prompt changes the prompt and with it the sampling: pairs
    share latent, prompt and strength, and not their randomness.

    Returns: rates of all conditions; changes against the steered condition without a meta-prompt, of the multi-attempt
        and the ESR rate and of the first score; the answers.
    Source: ESR (arXiv 2602.06941), experiment 5.
    """
    made = [Condition("steered", schedule), Condition("unsteered", schedule, steer=False)]
    for kind in study.task.meta:
        made += [
            Condition(kind, schedule, meta=kind),
            Condition(f"{kind}, unsteered", schedule, steer=False, meta=kind),
        ]
    answers = study.answers(trials, made)
    plain = answers["steered"]
    outcomes = ("multi", "resisted", "first")
    changes = [paired(plain, answers[kind], outcome) for kind in study.task.meta for outcome in outcomes]
    return [rates(a) for a in answers.values()], changes, answers
