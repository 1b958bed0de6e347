"""Off-topic detectors of a model, by three rules from the same pairs, and random latents that fire like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods import latents as reading
from latentlens.methods.off_topic import RULES, derangement
from latentlens.resistance.study import Study
from latentlens.values.codes import Codes
from latentlens.values.esr import Answers
from latentlens.values.latent_findings import Examples, Firing
from latentlens.values.off_topic import OffTopicDetectors, Rule

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Detected:
    """What the pairs gave.

    by_rule: detectors. firing: of all latents over every token of both kinds of pairs, for matched controls. codes: of
    the shuffled conversations, one row a token, for examples.
    """

    by_rule: Mapping[Rule, OffTopicDetectors]
    firing: Firing
    codes: Codes

    def chosen(self, rule: Rule | None = None, k: int | None = None) -> OffTopicDetectors:
        """The detectors to ablate: of a rule, or of the first that finds three; where none does, that finds any.

        The order is separability, derangement, contrast.

        Args: k: only the k strongest.
        Raises: BadInput: no such rule. TooFewExamples: the rule finds none.
        """
        if rule is not None and rule not in self.by_rule:
            raise BadInput(f"rule={rule!r}: allowed are {', '.join(_ORDER)}")

        def rank(name: Rule) -> tuple[bool, bool, int]:
            return len(self.by_rule[name]) < 3, not len(self.by_rule[name]), _ORDER[name]

        order: list[Rule] = [rule] if rule else sorted(self.by_rule, key=rank)
        found = self.by_rule[order[0]]
        if not len(found):
            raise TooFewExamples(f"no off-topic detector by {order[0]}: try another rule, more answers, or another SAE")
        k = len(found) if k is None else k
        return replace(found, latents=found.latents[:k], statistic=found.statistic[:k])

    def controls(self, detectors: OffTopicDetectors, n_sets: int = 3, seed: int = 42) -> dict[str, tuple[int, ...]]:
        """Random sets of as many latents, uniform and matched in mean activation and firing rate.

        None of them is a detector by any rule, nor related to one (a paired contrast beyond chance): a set that holds
        such latents is no control.

        Returns: by name. Matched sets are left out where too few latents are free.
        """
        barred = {j for found in self.by_rule.values() for j in found.related} | set(detectors.latents)
        size, d_sae = len(detectors), len(detectors.effect)
        sets: dict[str, tuple[int, ...]] = {}
        for i in range(n_sets):
            sets[f"uniform {i + 1}"] = tuple(reading.uniform(d_sae, size, exclude=barred, seed=seed + i))
        for i in range(n_sets):
            try:
                found = reading.matched(self.firing, detectors.latents, exclude=barred, n=5, seed=seed + i)
            except TooFewExamples:
                break
            sets[f"matched {i + 1}"] = tuple(found)
        return sets

    def examples(self, latent: int, k: int = 3) -> Examples:
        """Where a latent fires most in the shuffled conversations."""
        return reading.examples(self.codes, latent, k)

    def where(self, detectors: OffTopicDetectors, k: int = 12, texts: int = 2) -> pd.DataFrame:
        """The k strongest with the texts on which each fires most, the token in double brackets."""
        import pandas as pd

        rows = []
        for rank, latent in enumerate(detectors.latents[:k], 1):
            for one in self.examples(latent, texts):
                text = str(one).split("  ", 2)[-1].split("  ", 1)[-1]
                rows.append({"rank": rank, "latent": latent, "value": one.peak, "fires most on": text})
        return pd.DataFrame(rows)

    def frame_of(self, controls: Mapping[str, Sequence[int]]) -> pd.DataFrame:
        """Mean activation and firing rate of every set."""
        import pandas as pd

        rows = []
        for name, members in controls.items():
            at = list(members)
            rows.append(
                {
                    "set": name,
                    "latents": ", ".join(map(str, at)),
                    "mean activation": float(self.firing.mean[at].mean()),
                    "firing rate": float(self.firing.rate[at].mean()),
                }
            )
        return pd.DataFrame(rows)


_ORDER = {"separability": 0, "derangement": 1, "contrast": 2}


def detect(
    study: Study, baseline: Answers, *, seed: int = 0, k_contrast: int = 26, keep: Sequence[int] | None = None
) -> Detected:
    """Read every unsteered answer below its own prompt and below another one, and find detectors by all rules.

    Args:
        study, baseline: unsteered answers.
        seed: of the derangement; with several answers to a prompt, a new one for each.
        k_contrast: at most so many by contrast.
        keep: only answers to these prompts, moved among them: what is found has then not seen the others.
    Raises: BadInput: fewer than two groups of prompts.
    """
    if keep is not None:
        inside = set(keep)
        baseline = baseline.where([i for i, p in enumerate(baseline.prompt_indices) if int(p) in inside])
    below = moved(baseline, study.task.groups, seed)
    normal = study.codes(study.conversations(baseline))
    shuffled = study.codes(study.conversations(baseline, below))
    a, b = reading.pooled(normal), reading.pooled(shuffled)
    options: dict[str, Any] = {"contrast": {"k": k_contrast}}
    by_rule: dict[Rule, OffTopicDetectors] = {name: of(a, b, **options.get(name, {})) for name, of in RULES.items()}
    return Detected(by_rule, reading.firing(Codes.concatenated([normal, shuffled])), shuffled)


def moved(baseline: Answers, groups: Sequence[Any], seed: int = 0) -> list[int]:
    """Another prompt for every answer: one derangement for the first answers to all prompts, one for the second ...

    Args: groups: of every prompt of the task. seed: of the derangements.
    Raises: BadInput: one group holds more than half of the prompts.
    """
    below = np.full(len(baseline), -1)
    order: dict[int, list[int]] = {}
    for i, p in enumerate(baseline.prompt_indices):
        order.setdefault(int(p), []).append(i)
    for turn in range(max(map(len, order.values()))):
        prompts = [p for p, rows in order.items() if len(rows) > turn]
        turned = derangement(len(prompts), seed + turn, [groups[p] for p in prompts])
        for place, p in enumerate(prompts):
            below[order[p][turn]] = prompts[turned[place]]
    return [int(p) for p in below]
