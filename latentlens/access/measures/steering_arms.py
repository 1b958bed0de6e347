"""Many steering methods side by side: dosed to one KL, written, scored and timed, each in the same batches.

arms = [SteeringArm("mean difference", lambda c: ll.Add(v, c, unit="norm")), ...]
doses = dose_arms(lm, prompts, arms, kept)
frame = scored_answers(lm, concept, prompts, arms, doses, (0.5, 1, 2), folder=..., kept=kept)
ll.method_bench(frame, slowdown=time_arms(lm, prompts, arms, doses, kept))
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentlens.access.generation.sweep import sweep
from latentlens.access.identity import context_digest
from latentlens.access.judging.judge import LocalJudge, RuleJudge
from latentlens.access.measures.doses import per_token_kl, token_nll
from latentlens.access.store.kept_numbers import KeptNumbers
from latentlens.errors import BadInput
from latentlens.maths.answer_grades import fluency, harmonic_mean
from latentlens.values.concepts import Concept, Rule
from latentlens.values.judging import Case, Rubric
from latentlens.values.results import Estimate
from latentlens.values.steering_arms import Dose, SteeringArm

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from latentlens.access.model import LensModel

PLAIN, ASKED = "no edit", "asked in words"


def dose_arms(
    lm: LensModel,
    prompts: Sequence[Any],
    arms: Sequence[SteeringArm],
    kept: KeptNumbers,
    search: Callable[[Callable[[list[float | None]], list[Any]], int], Sequence[Any]],
    *,
    length: int = 20,
) -> list[Dose]:
    """The strength of every arm that spends the KL budget, all arms in the same batches.

    Args:
        prompts: of the calibration; score others.
        search: `ll.calibrate.kl_budget_batch`, or a function with its first two arguments.
        length: greedy tokens of every prompt that count.
    Returns: a Dose an arm; one that is not bracketed has the strength that came nearest.
    Raises: what `lm.generate` raises.
    """

    def solve() -> list[list[Any]]:
        plans = [arm.plan for arm in arms]
        ask = per_token_kl(lm, list(prompts), plans, max_new_tokens=length, allow_idle=True)
        return [[b.coeff, b.achieved, b.bracketed, b.converged] for b in search(ask, len(plans))]

    prints = [arm.fingerprint() for arm in arms]
    return [Dose(*found) for found in kept.of(["dose", _model(lm), list(prompts), length, *prints], solve)]


def scored_answers(
    lm: LensModel,
    concept: Concept,
    at: slice,
    arms: Sequence[SteeringArm],
    doses: Sequence[Dose],
    factors: Sequence[float],
    *,
    kept: KeptNumbers,
    judge: LensModel | None = None,
    seeds: Sequence[int] = (0,),
    temperature: float = 1.0,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Every answer with its scores: the frame that `ll.method_bench` takes.

    Beside the arms stand the answers without edit and those to the prompts that ask for the concept in words. Changes
    are to the unedited answer with the same prompt and seed. The likelihood is read after the plain prompt whatever was
    asked, by the unedited model; equal answers are read once.

    Args:
        at: which prompts of the concept are answered.
        factors: multiples of each arm's dose; 1 must be among them.
        judge: the model that answers rubrics; lm by default.
        seeds, temperature, folder: as for `ll.sweep`.
    Raises: BadInput: 1 is not among the factors. What `ll.sweep` raises.
    """
    import pandas as pd

    if 1 not in factors:
        raise BadInput(f"factors={tuple(factors)} must hold 1, the strength of the budget")
    prompts = list(concept.prompts[at])
    how: dict[str, Any] = {"max_new_tokens": concept.length, "temperature": temperature, "folder": folder}
    plans: dict[str, Any] = {_label(PLAIN, 1, 0): None}
    for arm, dose in zip(arms, doses, strict=True):
        plans |= {_label(arm.name, f, arm.draw): arm.plan(dose.coeff * f) for f in factors}
    parts = [sweep(lm, prompts, plans, seeds, **how)]
    if concept.asked is not None:
        parts.append(sweep(lm, list(concept.asked[at]), {_label(ASKED, 1, 0): None}, seeds, **how))
    written = sum(part.attrs["rows_run"] for part in parts)
    frame: Any = pd.concat(parts, ignore_index=True).rename(columns={"prompt": "prompt text"})
    labels = [plan.split(_CUT) for plan in frame["plan"]]
    roles = {arm.name: arm.role for arm in arms}
    frame["method"], frame["factor"] = [m for m, _, _ in labels], [float(f) for _, f, _ in labels]
    frame["draw"], frame["role"] = [int(d) for _, _, d in labels], [roles.get(m, "control") for m, _, _ in labels]
    frame["concept"], frame["prompt"] = concept.name, frame["prompt_index"]
    for name, values in _likelihood(lm, prompts, frame, kept).items():
        frame[name] = values
    own = frame["method"].isin([PLAIN, ASKED])
    frame["fluency"] = fluency(frame["middle nll"], list(frame["text"]), frame["middle nll"][own])
    cases = [Case(p, t, concept.name) for p, t in zip(frame["prompt text"], frame["text"], strict=True)]
    reader = judge or lm
    frame["score"] = grades(reader, concept.score, cases)
    frame["task"] = np.nan if concept.task is None else grades(reader, concept.task, cases)
    changes = {f"off {name}": grades(reader, rule, cases) for name, rule in concept.others.items()}
    before = _unedited(frame)
    for name, values in {"nll": frame["mean nll"].to_numpy(), **changes}.items():
        frame[name] = values - values[before]
    frame.attrs["rows_run"] = written
    return frame


def best_arm(
    lm: LensModel,
    concept: Concept,
    at: slice,
    arms: Sequence[SteeringArm],
    kept: KeptNumbers,
    search: Callable[[Callable[[list[float | None]], list[Any]], int], Sequence[Any]],
    *,
    factors: Sequence[float] = (1, 1.41),
    **options: Any,
) -> str:
    """Name of the arm with the highest harmonic mean of concept, task and fluency, the first of equals.

    Such as the block to steer at: arms that are one method at several sites. What is chosen here is chosen for this
    method, so it favours it over others that are then compared at the same place.

    Args: at: prompts of the concept that are dosed and answered on; score others. search: as for `dose_arms`.
        factors: multiples of the dose that count alike. options: as for `scored_answers`.
    """
    doses = dose_arms(lm, list(concept.prompts[at]), arms, kept, search)
    frame = scored_answers(lm, concept, at, arms, doses, factors, kept=kept, **options)
    frame["harmonic"] = harmonic_mean(frame["score"], frame["task"], frame["fluency"])
    means = [float(frame.loc[frame["method"] == arm.name, "harmonic"].mean()) for arm in arms]
    return arms[int(np.argmax(means))].name


def grades(lm: LensModel, rule: Rule | Rubric, cases: Sequence[Case]) -> NDArray[np.float64]:
    """Scores from 0 to 2 of a rule, or of a rubric put to a model; NaN where there is no judgement."""
    rubric = isinstance(rule, Rubric)
    judge = LocalJudge(lm, rule) if rubric else RuleJudge(rule, "rule")
    scores = [score.value for score in judge.scores(cases)]
    return np.array([np.nan if value is None else value / (50 if rubric else 1) for value in scores])


def time_arms(
    lm: LensModel, prompts: Sequence[Any], arms: Sequence[SteeringArm], doses: Sequence[Dose], kept: KeptNumbers
) -> dict[str, Estimate]:
    """Seconds a token over those without edit, by method: median, least and most of three runs, each after a plain one.

    The ends are those of three runs and no confidence interval; on a busy machine they spread.
    """

    def seconds(plan: Any) -> float:
        start = time.perf_counter()
        lm.generate(list(prompts), 24, steer=plan, stop_ids=[], allow_idle=True)
        return time.perf_counter() - start

    found = {}
    for arm, dose in zip(arms, doses, strict=True):
        if arm.name not in found:
            plan = arm.plan(dose.coeff)
            three = lambda plan=plan: sorted(1 / (seconds(None) / seconds(plan)) for _ in range(3))
            low, middle, high = kept.of(["time", _model(lm), list(prompts), arm.fingerprint(dose.coeff)], three)
            found[arm.name] = Estimate(middle, low, high, 3)
    return found


_CUT = "\x1f"


def _label(method: str, factor: float, draw: int) -> str:
    return _CUT.join((method, f"{factor:g}", str(draw)))


def _model(lm: LensModel) -> str:
    return context_digest(lm._identity.context(hash_weights=True))


def _likelihood(lm: LensModel, prompts: Sequence[Any], frame: Any, kept: KeptNumbers) -> dict[str, list[float]]:
    """Mean and median of the tokens' -log p after the plain prompt."""
    rows = [lm.tokens([prompt])[0] for prompt in prompts]
    keys = [(i, tuple(ids)) for i, ids in zip(frame["prompt_index"], frame["generated"], strict=True)]
    once = list(dict.fromkeys(keys))

    def read() -> list[list[float]]:
        values = token_nll(lm, [rows[i].continued(ids) for i, ids in once])
        return [[float(one.mean()), float(np.median(one))] for one in values]

    found = dict(zip(once, kept.of(["nll", _model(lm), list(prompts), once], read), strict=True))
    return {name: [found[key][i] for key in keys] for i, name in enumerate(("mean nll", "middle nll"))}


def _unedited(frame: Any) -> NDArray[np.intp]:
    """For every row the place of the unedited answer with its prompt and seed."""
    plain = np.flatnonzero((frame["method"] == PLAIN).to_numpy())
    pairs = list(zip(frame["prompt"], frame["seed"], strict=True))
    place = {pairs[i]: i for i in plain}
    return np.array([place[pair] for pair in pairs])
