"""What every part of the protocol begins with: unsteered answers, detectors, controls, latents, thresholds, trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentlens.errors import TooFewExamples
from latentlens.resistance import detectors, sampling, thresholds
from latentlens.resistance.detectors import Detected
from latentlens.resistance.study import Study
from latentlens.values.esr import Answers, SampledLatents, ThresholdSet, Trial
from latentlens.values.off_topic import OffTopicDetectors, Rule


@dataclass
class Core:
    """A study with its answers, detectors, controls and latents. Thresholds are found when first asked for.

    chosen: the detectors to ablate. controls: random sets of as many latents. how: options of `thresholds.find`.
    """

    study: Study
    baseline: Answers
    found: Detected
    chosen: OffTopicDetectors
    controls: Mapping[str, tuple[int, ...]]
    sampled: SampledLatents
    how: Mapping[str, Any]
    seed: int = 0
    _limits: dict[str, ThresholdSet] = field(default_factory=dict)

    def limits(self, schedule: str) -> ThresholdSet:
        """Thresholds under a schedule."""
        if schedule not in self._limits:
            self._limits[schedule] = thresholds.find(self.study, self.sampled, schedule, seed=self.seed, **self.how)
        return self._limits[schedule]

    def trials(self, schedule: str, per_latent: int, most: int | None = None) -> list[Trial]:
        """Trials at the thresholds of a schedule; the first `most` of them.

        Raises: TooFewExamples: no latent has a threshold inside the range.
        """
        limits = self.limits(schedule)
        drawn = sampling.trials(self.sampled, limits.bracketed, per_latent, seed=self.seed)
        if not drawn:
            low, high = self.study.bounds
            ends = ", ".join(sorted({t.end or "nowhere" for t in limits.found.values()}))
            raise TooFewExamples(
                f"none of {len(limits)} latents brings the first attempt to the target under {schedule} steering from "
                f"{low:g} to {high:g} ({self.study.unit}; the answers lie: {ends}): other bounds, hook or latents"
            )
        return drawn[:most]

    @property
    def rules(self) -> dict[str, tuple[int, ...]]:
        """Sets of detectors to ablate: the chosen one first, then as many of every other rule that found some."""
        k = len(self.chosen)
        others = {f"{name} rule": d.latents[:k] for name, d in self.found.by_rule.items() if name != self.chosen.rule}
        return {"detectors": self.chosen.latents, **{name: them for name, them in others.items() if them}}


def prepare(
    study: Study,
    n: int,
    *,
    samples: int = 4,
    n_sets: int = 3,
    rule: Rule | None = None,
    k: int | None = None,
    relevance: sampling.Relevance = "silent",
    seed: int = 0,
    **how: Any,
) -> Core:
    """Unsteered answers, off-topic detectors and random latents like them, and n latents to steer with.

    Args:
        study: where it is kept. n: latents. samples: unsteered answers to each prompt. n_sets: random sets of a kind.
        rule: of the detectors; None: the first that finds three. k: how many to ablate at most; None: 0.4% of the SAE,
            at least 4. (ESR ablates 26 of 65,536; a small SAE has fewer latents to an idea, and each matters more.)
        relevance: of the latents, as for `sampling.sample`. seed: of everything. how: for `thresholds.find`.
    """
    baseline = study.baseline(samples, seed)
    found = detectors.detect(study, baseline, seed=seed)
    chosen = found.chosen(rule, max(4, round(0.004 * study.sae.d_sae)) if k is None else k)
    controls = found.controls(chosen, n_sets=n_sets)
    sampled = sampling.sample(study, n, seed=seed, relevance=relevance, baseline=baseline, exclude=chosen.latents)
    return Core(study, baseline, found, chosen, controls, sampled, how, seed)
