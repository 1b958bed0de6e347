"""What latents do around a correction, read without steering from answers that were written under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import TooFewExamples
from latentlens.methods.corrections import aligned, region_means, region_test, token_regions
from latentlens.methods.latent_sampling import keyword_score
from latentlens.resistance.study import Study
from latentlens.values.esr import Answers
from latentlens.values.esr_parts import AlignedTraces, RegionTest

#: Words in the labels of latents that would be about starting over, with weights; ESR keeps labels of 5 or more.
BACKTRACKING = {
    "self-correct": 5, "backtrack": 5, "restart": 4, "correct": 3, "apolog": 3, "sorry": 3, "wait": 3, "mistake": 3,
    "oops": 3, "regret": 2, "error": 2, "return": 2, "instead": 2, "actually": 2, "again": 1, "should": 1, "let": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Corrections:
    """tests: regions compared. traces: aligned on the correction. episodes, baseline: answers read of either kind."""

    tests: tuple[RegionTest, ...]
    traces: AlignedTraces
    episodes: int
    baseline: int


def backtracking(labels: Mapping[int, str], least: float = 5.0) -> list[int]:
    """Latents whose label speaks of starting over, best first."""
    scored = {j: keyword_score(label, BACKTRACKING) for j, label in labels.items()}
    return sorted((j for j, score in scored.items() if score >= least), key=lambda j: (-scored[j], j))


def around(
    study: Study,
    steered: Answers,
    baseline: Answers,
    sets: Mapping[str, Sequence[int]],
    *,
    improving: bool = True,
    before: int = 24,
    after: int = 24,
) -> Corrections:
    """Region means, paired tests and traces of some sets of latents.

    Args:
        steered: answers written under steering; those with several attempts are the episodes.
        baseline: unsteered answers; those with one attempt and a score of 50 or more are compared with.
        sets: name -> latents. improving: only episodes whose last attempt is the better one.
        before, after: tokens of the traces.
    Raises: TooFewExamples: fewer than two episodes, or no baseline answer.
    Source: ESR (arXiv 2602.06941), experiment 9.
    """
    several = np.nan_to_num(steered.outcome("resisted" if improving else "multi")) > 0
    episodes = steered.where(several)
    plain = baseline.where((np.nan_to_num(baseline.first) >= 50) & (np.nan_to_num(baseline.outcome("multi")) == 0))
    if len(episodes) < 2 or not len(plain):
        raise TooFewExamples(f"{len(episodes)} answers with a correction and {len(plain)} without: at least 2 and 1")
    members = list(dict.fromkeys(j for them in sets.values() for j in them))
    place = {j: i for i, j in enumerate(members)}
    values = _values(study, episodes, members)
    calm = np.concatenate(_values(study, plain, members)).mean(0)
    regions = [
        token_regions(token_spans(study, ids), parts or ())
        for ids, parts in zip(episodes.tokens, episodes.attempts, strict=True)
    ]
    # (episodes, regions, latents)
    means, peaks = (
        np.stack([region_means(v, r, pool) for v, r in zip(values, regions, strict=True)]) for pool in ("mean", "max")
    )
    starts = [int(np.flatnonzero(r >= 1)[0]) if (r >= 1).any() else len(r) for r in regions]
    tests, series, reference = [], {}, {}
    for name, them in sets.items():
        at = [place[j] for j in them]
        mean, peak = means[:, :, at].mean(2), peaks[:, :, at].mean(2)  # (episodes, regions)
        each, calm_each = np.nanmean(means[:, :, at], 0), calm[at]  # (regions, latents)
        for first, second, unit, names in (
            (peak[:, 0], peak[:, 2], "episode", ("off topic, peak", "after, peak")),
            (mean[:, 0], mean[:, 2], "episode", ("off topic", "after")),
            (mean[:, 0], mean[:, 1], "episode", ("off topic", "correction")),
            (each[0], calm_each, "latent", ("off topic", "unsteered")),
            (each[2], calm_each, "latent", ("after", "unsteered")),
        ):
            tests.append(region_test(first, second, latents=name, unit=unit, names=names))
        series[name] = [v[:, at].mean(1) for v in values]
        reference[name] = float(calm[at].mean())
    traces = aligned(series, starts, episodes.latents, reference, before=before, after=after)
    return Corrections(tuple(tests), traces, len(episodes), len(plain))


def token_spans(study: Study, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Characters that each token adds to the text of an answer; tokens that show nothing have an empty span."""
    reader = study.lm._reader
    ends = [len(reader.decode(ids[: i + 1])) for i in range(len(ids))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _values(study: Study, answers: Answers, members: Sequence[int]) -> list[NDArray[np.float64]]:
    """Values of some latents at every generated token of every answer, read without steering."""
    codes = study.codes(study.conversations(answers), "response")
    dense = codes.dense(members).double().cpu().numpy()
    text = np.asarray(codes.labels["text"])
    return [dense[text == i] for i in range(len(answers))]
