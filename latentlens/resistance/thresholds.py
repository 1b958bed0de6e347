"""The strength of every latent at which the first attempt scores 30: all latents advance in the same batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from latentlens.methods.calibrate import bisect_score_batch
from latentlens.resistance.study import Study
from latentlens.values.calibration import ScoreThreshold
from latentlens.values.esr import Condition, SampledLatents, ThresholdSet, Trial

_LONGEST = 256  # tokens written while calibrating, as in ESR
_FILE = "thresholds.json"


def find(
    study: Study,
    sampled: SampledLatents,
    schedule: str = "persistent",
    *,
    latents: Sequence[int] | None = None,
    prompts: Sequence[int] | None = None,
    per_round: int = 5,
    rounds: int = 10,
    target: float = 0.3,
    prior: tuple[float, float] | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> ThresholdSet:
    """Probabilistic bisection for all latents at once: in each round one sweep asks every latent's next strength.

    Each latent is tried on prompts of its own, the same in all rounds, with new seeds in every round; its score is the
    mean of the first attempts over 100. Results are kept in the study's folder with the configuration that they hold
    for, so the same question is not asked twice, and another one is not answered with them.

    Args:
        sampled: the latents and the prompts that each may be tried on. latents: only these. prompts: only these.
        schedule: of the steering. per_round: prompts a latent and round.
        rounds, target, prior, bounds: as for `calibrate.bisect_score`; the last two are the study's by default.
        seed: of prompts and sampling.
    Returns: ThresholdSet; a latent that is not bracketed says so.
    Raises: what `study.answers` raises.
    Source: ESR (arXiv 2602.06941), threshold_finder.py; one batch for all latents is ours.
    """
    prior, bounds = prior or study.prior, bounds or study.bounds
    wanted = [int(j) for j in (sampled.latents if latents is None else latents)]
    among = None if prompts is None else set(prompts)
    tokens = min(study.task.max_new_tokens, _LONGEST)
    config = {
        **study.config, "schedule": schedule, "per_round": per_round, "rounds": rounds, "target": target,
        "prior": list(prior), "bounds": list(bounds), "seed": seed, "max_new_tokens": tokens,
        "allowed": None if among is None else sorted(among),
    }  # fmt: skip
    file = study.folder / _FILE if study.folder else None
    tried = {j: _prompts(sampled.allowed[j], among, per_round, seed, j) for j in wanted}
    found = {j: threshold for j, (prompts_of, threshold) in _read(file, config).items() if tried.get(j) == prompts_of}
    todo = [j for j in wanted if j not in found and tried[j]]
    asked_before = dict.fromkeys(todo, 0)

    def ask(coeffs: list[float | None]) -> list[float | None]:
        asked = [
            Trial(j, p, _seed(seed, j, asked_before[j], i), float(c))
            for j, c in zip(todo, coeffs, strict=True)
            if c is not None
            for i, p in enumerate(tried[j])
        ]
        condition = Condition("calibration", schedule)
        answers = study.answers(asked, [condition], max_new_tokens=tokens)["calibration"]
        means = {}
        for j in set(answers.latents.tolist()):
            asked_before[j] += 1
            first = answers.first[answers.latents == j]
            means[j] = float(np.nanmean(first)) / 100 if np.isfinite(first).any() else None
        return [means.get(j) if c is not None else None for j, c in zip(todo, coeffs, strict=True)]

    if todo:
        solved = bisect_score_batch(ask, len(todo), prior, bounds, target=target, rounds=rounds, trials=per_round)
        found |= dict(zip(todo, solved, strict=True))
        _write(file, config, {j: (tried[j], threshold) for j, threshold in found.items()})
    return ThresholdSet({j: found[j] for j in wanted if j in found}, config)


def _prompts(allowed: Sequence[int], among: set[int] | None, n: int, seed: int, latent: int) -> list[int]:
    left = [p for p in allowed if among is None or p in among]
    if not left:
        return []
    # Fewer prompts than asked for are asked several times: a score is always a mean of n answers.
    random = np.random.default_rng([seed, latent, 1])
    order = [int(p) for p in random.permutation(left)]
    return [order[i % len(order)] for i in range(n)]


def _seed(*parts: int) -> int:
    return int(np.random.default_rng([abs(p) for p in parts]).integers(0, 1_000_001))


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:24]


def _read(file: Path | None, config: Mapping[str, Any]) -> dict[int, tuple[list[int], ScoreThreshold]]:
    """By latent the prompts that it was tried on, and its threshold."""
    if file is None or not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text()).get(_digest(config), {}).get("found", {})
    except ValueError:  # damaged: the rows are still there, so finding them again is quick
        return {}
    made = {}
    for latent, one in held.items():
        trace = tuple(map(tuple, one["threshold"]["trace"]))
        made[int(latent)] = one["prompts"], ScoreThreshold(**{**one["threshold"], "trace": trace})
    return made


def _write(file: Path | None, config: Mapping[str, Any], found: Mapping[int, tuple[list[int], ScoreThreshold]]) -> None:
    if file is None:
        return
    try:
        held = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        held = {}
    # latents that were not asked for this time keep their entries
    every = {str(j): {"prompts": prompts, "threshold": asdict(one)} for j, (prompts, one) in found.items()}
    held[_digest(config)] = {"config": dict(config), "found": held.get(_digest(config), {}).get("found", {}) | every}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(held) + "\n")
    partial.replace(file)
