"""Can self-correction be taught? Tuned on corrections mixed with plain answers, by the share of corrections.

The texts come from the model's own unsteered answers: a correction is the beginning of an answer to another question,
which is read and not learnt, an acknowledgement, and the answer to the question asked. No other model writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentlens.access.measures.finetune import Lora, Tuned, tune
from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.esr import rates
from latentlens.resistance import sampling, thresholds
from latentlens.resistance.core import Core
from latentlens.resistance.detectors import moved
from latentlens.resistance.study import Study
from latentlens.values.esr import Answers, Condition
from latentlens.values.esr_parts import Induced
from latentlens.values.masked_rows import MaskedRow, masked, mix

SHARES = (0.1, 0.5, 0.9)


def corrections(study: Study, baseline: Answers, *, seed: int = 0) -> list[MaskedRow]:
    """A wrong beginning that is not learnt, an acknowledgement and the right answer that are; one for each answer.

    Raises: TooFewExamples: no answer has a sentence end.
    """
    rows = []
    for prompt, wrong, cut, own, index in _pairs(study, baseline, seed):
        spoken = study.lm.tokenizer(" " + study.task.acknowledge(index), add_special_tokens=False)["input_ids"]
        right = study.lm.tokenizer(" " + own.strip(), add_special_tokens=False)["input_ids"]
        rows.append(masked(prompt, wrong[:cut], (*spoken, *right, *_end(study))))
    return rows


def plain(study: Study, baseline: Answers) -> list[MaskedRow]:
    """Answers to their own questions, learnt throughout."""
    rows = study.conversations(baseline)
    return [masked(row.ids[: row.n_prompt], (), row.ids[row.n_prompt :]) for row in rows]


def uncorrected(study: Study, baseline: Answers, *, seed: int = 0) -> list[MaskedRow]:
    """A wrong beginning that is not learnt, then the rest of the wrong answer, learnt: what unteaches correction."""
    return [masked(prompt, wrong[:cut], wrong[cut:]) for prompt, wrong, cut, _, _ in _pairs(study, baseline, seed)]


def untaught(study: Study, baseline: Answers, *, folder: Path | None = None, seed: int = 0, **options: Any) -> Tuned:
    """The study's model after texts in which no wrong beginning is corrected: a start for models that correct already.

    Args: folder: where it is kept. seed: of the texts and the order. options: for `tune`.
    """
    rows = mix(uncorrected(study, baseline, seed=seed), plain(study, baseline), 0.7, 2 * len(baseline), seed)
    return tune(study.lm, rows, folder=folder, seed=seed, name=f"{study.lm.name}, unlearnt", **options)


def by_share(
    core: Core,
    schedule: str,
    *,
    shares: Sequence[float] = SHARES,
    n_rows: int | None = None,
    n_latents: int = 20,
    per_latent: int = 5,
    rounds: int = 6,
    lora: Lora | None = None,
    unlearn: bool = False,
    **options: Any,
) -> list[Induced]:
    """Rates of the study's model, of the start where it is another, and of models tuned on each share of corrections.

    Thresholds are found anew on every model: a tuned model is not to be judged at a strength that was right for
    another.

    Args:
        core: study, unsteered answers and latents.
        shares: of corrections among the training rows. n_rows: how many rows; by default twice the answers.
        n_latents, per_latent, rounds: latents, prompts for each, and rounds of the bisection.
        lora: adapters instead of all weights. unlearn: tuned from `untaught`, for a model that corrects itself
            already; without it there is nothing to teach.
        options: for `tune`.
    Returns: in that order; one that has no bracketed threshold is left out.
    Raises: BadInput: `unlearn` of a quantised model.
    Source: ESR (arXiv 2602.06941), experiment 4: LoRA on an 8B model, 10 to 90% corrections.
    """
    study, baseline, seed = core.study, core.baseline, core.seed
    if unlearn and study.lm.quantization:
        raise BadInput(f"unlearn=True tunes twice, and adapters of a {study.lm.quantization} model cannot be merged")
    teaching, keeping = corrections(study, baseline, seed=seed), plain(study, baseline)
    how = {**core.how, "rounds": rounds, "latents": core.sampled.latents[:n_latents], "seed": seed}
    found = [_measured(core, study, None, None, schedule, per_latent, how)]
    start = study.lm
    if unlearn:
        unlearnt = untaught(study, baseline, folder=_place(study, "untaught"), seed=seed, lora=lora, **options)
        start = unlearnt.lm
        found.append(_measured(core, study.of_model(start), unlearnt, None, schedule, per_latent, how))
    for share in shares:
        rows = mix(teaching, keeping, share, n_rows or 2 * len(baseline), seed)
        what = {"folder": _place(study, f"share-{share:g}"), "name": f"tuned, {share:.0%}", "seed": seed, "lora": lora}
        tuned = tune(start, rows, **what, **options)
        found.append(_measured(core, study.of_model(tuned.lm), tuned, share, schedule, per_latent, how))
        tuned.close()  # one tuned model at a time: a large one does not fit twice, a quantised one shares its weights
        del tuned
    return [one for one in found if one is not None]


def _measured(
    core: Core, study: Study, tuned: Tuned | None, share: float | None, schedule: str, per_latent: int, how: Any
) -> Induced | None:
    """Thresholds of a model and rates at them; None where no threshold is bracketed."""
    values = thresholds.find(study, core.sampled, schedule, **how).bracketed
    drawn = sampling.trials(core.sampled, values, per_latent, seed=core.seed + 3)
    if not drawn:
        return None
    made = [Condition("steered", schedule), Condition("unsteered", schedule, steer=False)]
    steered, calm = map(rates, study.answers(drawn, made).values())
    losses = tuned.losses if tuned else ()
    last = losses[-1] if losses else float("nan")
    return Induced(study.lm.name, share, len(losses), last, float(np.mean(list(values.values()))), steered, calm)


def _place(study: Study, name: str) -> Path | None:
    return study.folder / "tuned" / name if study.folder else None


def _pairs(study: Study, baseline: Answers, seed: int) -> list[tuple[Any, ...]]:
    """For every answer: another prompt's ids, the answer's, where its first sentence or two end, a right text."""
    ends = study.lm._sentence_ends()
    random = np.random.default_rng(seed)
    asked = study.conversations(baseline)
    below = moved(baseline, study.task.groups, seed)
    found = []
    for i, prompt in enumerate(below):
        ids = baseline.tokens[i]
        stops = [at + 1 for at, token in enumerate(ids[:-1]) if token in ends]
        right = [at for at, p in enumerate(baseline.prompt_indices) if p == prompt]
        if not stops or not right:
            continue
        cut = stops[min(int(random.integers(2)), len(stops) - 1)]
        own = baseline.texts[int(random.choice(right))]
        # the wrong answer is the one at hand; it stands below another prompt, whose right answer follows
        found.append((asked[right[0]].ids[: asked[right[0]].n_prompt], ids, cut, own, int(prompt)))
    if not found:
        raise TooFewExamples("no unsteered answer has a sentence end before its last token")
    return found


def _end(study: Study) -> tuple[int, ...]:
    end = getattr(study.lm.tokenizer, "eos_token_id", None)
    return () if end is None else (int(end),)
