"""Do the detectors carry the restarts? Clamped to 0 in replays of the same trials; raised where nothing is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentlens.errors import TooFewExamples
from latentlens.methods.esr import clustered_share, paired, rates
from latentlens.resistance.detectors import Detected, moved
from latentlens.resistance.study import Study
from latentlens.values.attempts import RESTART, clauses
from latentlens.values.esr import Answers, Condition, PairedEffect, Trial
from latentlens.values.esr_parts import Dose, Raised
from latentlens.values.latents import EditLatents
from latentlens.values.off_topic import OffTopicDetectors


def conditions(
    detectors: Mapping[str, Sequence[int]], controls: Mapping[str, Sequence[int]], schedule: str
) -> list[Condition]:
    """Unsteered, steered, each set of detectors ablated, the first without steering too, and every control set.

    Args: detectors: name -> latents, the headline set first. controls: name -> latents.
    """
    made = [Condition("unsteered", schedule, steer=False), Condition("steered", schedule)]
    made += [Condition(f"{name} ablated", schedule, ablated=tuple(them)) for name, them in detectors.items()]
    first = tuple(next(iter(detectors.values())))
    made.append(Condition("ablated, unsteered", schedule, steer=False, ablated=first))
    return made + [Condition(f"{name} ablated", schedule, ablated=tuple(them)) for name, them in controls.items()]


def effects(
    answers: Mapping[str, Answers], detectors: Sequence[str], controls: Mapping[str, Any]
) -> list[PairedEffect]:
    """Paired tests against the steered condition: sets of detectors, each control set, controls of a kind pooled.

    Args: answers: by condition. detectors: names of the detector sets, without "ablated". controls: by name; the kind
        is the name without its number.
    """
    steered = answers["steered"]
    found = [paired(steered, answers[f"{name} ablated"], "multi") for name in detectors]
    found += [paired(steered, answers[f"{name} ablated"], "resisted") for name in detectors[:1]]
    found += [paired(steered, answers[f"{name} ablated"], "first") for name in detectors[:1]]
    kinds: dict[str, list[str]] = {}
    for name in controls:
        kinds.setdefault(name.rsplit(" ", 1)[0], []).append(name)
    for kind, names in kinds.items():
        sets = [answers[f"{name} ablated"] for name in names]
        found.append(paired(steered, sets, "multi", name=f"{kind} random, {len(sets)} sets"))
        # the sharpest question: the detectors against random latents, trial by trial
        ablated = answers[f"{detectors[0]} ablated"]
        found.append(paired(ablated, sets, "multi", name=f"{kind} random, {len(sets)} sets"))
    found += [paired(steered, answers[f"{name} ablated"], "multi") for name in controls]
    return found


def doses(
    study: Study, trials: Sequence[Trial], detectors: OffTopicDetectors, schedule: str, ks: Sequence[int] | None = None
) -> list[Dose]:
    """Rates with the k strongest detectors ablated, k = 0 to all of them, on the same trials.

    Args: ks: which; by default 0 and every k.
    """
    counts = list(range(len(detectors) + 1)) if ks is None else sorted({0, *ks})
    some = [Condition(f"{k} ablated", schedule, ablated=detectors.latents[:k]) for k in counts]
    answers = study.answers(trials, some)
    none = answers["0 ablated"]
    return [
        Dose(k, rates(answers[f"{k} ablated"]), paired(none, answers[f"{k} ablated"]) if k else None) for k in counts
    ]


def raised(
    study: Study,
    baseline: Answers,
    detected: Detected,
    sets: Mapping[str, Sequence[int]],
    *,
    levels: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    seed: int = 0,
) -> list[Raised]:
    """Sufficiency: after a first sentence that is on topic, latents are raised at its last token; is it broken off?

        f_j := max(f_j, level * t_j)       t_j: mean of j's largest value in conversations with a wrong answer

    Two references stand beside them: nothing raised, and a first sentence that really belongs to another question.

    Args:
        baseline: unsteered answers; those without a second sentence are left out.
        detected: where typical values come from. sets: name -> latents. levels: multiples of the typical values.
        seed: of the sampling.
    Raises: TooFewExamples: no answer has a sentence end.
    """
    ends = study.lm._sentence_ends()
    cut = [next((i + 1 for i, t in enumerate(ids[:-1]) if t in ends), 0) for ids in baseline.tokens]
    keep = [i for i, n in enumerate(cut) if n]
    if not keep:
        raise TooFewExamples("no unsteered answer goes on after a first sentence: nothing can be raised at its end")
    whole = study.conversations(baseline), study.conversations(baseline, moved(baseline, study.task.groups, seed))
    own, other = ([rows[i].cut(slice(0, rows[i].n_prompt + cut[i])) for i in keep] for rows in whole)
    groups = [study.task.groups[int(baseline.prompt_indices[i])] for i in keep]
    typical = next(iter(detected.by_rule.values())).shuffled_mean
    plans: dict[tuple[str, int, float], Any] = {}
    for name, members in sets.items():
        for level in levels:
            low = {int(j): level * float(typical[j]) for j in members if typical[j] > 0}
            if low:
                edit = EditLatents(study.sae, low=low, site=study.hook, where="last")
                plans[name, len(low), float(level)] = edit
    calm = {("nothing", 0, 0.0): None}
    real = {("nothing, sentence of another answer", 0, 0.0): None}
    found = []
    for rows, some in ((own, calm | plans), (other, real)):
        texts = study.continued(rows, some, seed)
        for (name, k, level), written in texts.items():
            says = [[RESTART.match(text, s) is not None for s, _ in clauses(text)] for text in written]
            at_once = clustered_share([any(s[:1]) for s in says], groups)
            found.append(Raised(name, k, level, at_once, clustered_share(map(any, says), groups)))
    return found
