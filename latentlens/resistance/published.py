"""The published run of ESR (arXiv 2602.06941, Llama-3.3-70B) and its settings, to stand beside one's own.

Its table cannot be reproduced exactly: the list of 26 ablated latents is not published (the list in its repository has
25, made by another rule), and the analysis pools runs with 22, 25 and 26 of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentlens.methods.esr import two_proportions
from latentlens.values.esr import EsrRates

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """Settings of one published run. prior, bounds: of thresholds, in raw units of the SAE; n: trials."""

    model: str
    sae: str
    sae_layer: int
    hook_layer: int
    prior: tuple[float, float]
    bounds: tuple[float, float]
    n: int


RUNS = (
    Run("meta-llama/Llama-3.3-70B-Instruct", "Goodfire, block 50", 50, 33, (7, 5), (0, 100), 4877),
    Run("meta-llama/Llama-3.1-8B-Instruct", "Goodfire, block 19", 19, 19, (10, 10), (0, 50), 4512),
    Run("google/gemma-2-27b-it", "GemmaScope 131k", 22, 22, (1500, 1500), (0, 5000), 4914),
    Run("google/gemma-2-9b-it", "GemmaScope 16k", 26, 26, (280, 280), (0, 560), 4668),
    Run("google/gemma-2-2b-it", "GemmaScope 16k", 16, 16, (150, 75), (0, 300), 4948),
)

#: Condition of ours -> (condition of the 70B run, n, first score, multi-attempt rate, ESR rate).
TABLE: dict[str, tuple[str, int | None, float | None, float, float]] = {
    "steered": ("steered", 4877, 26.3, 0.074, 0.038),
    "detectors ablated": ("26 off-topic detectors ablated", 4875, 27.4, 0.055, 0.028),
    "random ablated": ("26 random latents ablated, 3 sets", 14450, 27.1, 0.079, 0.042),
    "self_monitor": ("meta-prompt to monitor itself", None, None, 0.317, 0.148),
    "unsteered": ("unsteered, five models", 13118, None, 0.0, 0.0),
}

SOURCE = "Endogenous Steering Resistance in Language Models, arXiv 2602.06941, and its code"
METHOD = (
    "Latents that are silent on every prompt are added to the residual stream, each at the strength at which the first "
    "attempt at an answer scores 30 of 100. Answers are cut where they say that they start over. The same trials "
    "(latent, prompt, strength, seed) are replayed with off-topic detectors, and with random latents, held at 0; "
    "changes are paired."
)
CAUTION = (
    "The published column is Llama-3.3-70B judged by Claude Haiku 4.5; other models stay below 1.1% multi-attempt. Its "
    "later version adds held-out prompts and tells detection from sustained resistance; an independent attempt with a "
    "difference-of-means vector found 1 of 760. Nothing on the embedded model, where corrections were planted, is "
    "evidence about another one."
)


def beside(own: Mapping[str, Sequence[EsrRates]]) -> pd.DataFrame:
    """Published rates and one's own, one row a published condition.

    Args: own: schedule -> rates of its conditions, those with meta-prompts included.
    """
    import pandas as pd

    rows = []
    for name, (title, n, first, multi, resisted) in TABLE.items():
        line: dict[str, Any] = {"condition": title, "published n": n, "first": first, "multi": multi, "ESR": resisted}
        for schedule, rates in own.items():
            found = _matching(name, rates)
            line[f"{schedule}: first"] = found.first if found else None
            line[f"{schedule}: multi"] = found.multi if found else None
            line[f"{schedule}: ESR"] = found.resisted if found else None
        rows.append(line)
    return pd.DataFrame(rows)


def tests() -> pd.DataFrame:
    """The z and p of the published differences, as two independent shares: condition, against, rate, z, p."""
    import pandas as pd

    rows = []
    for one, other in (("detectors ablated", "steered"), ("random ablated", "steered"),
                       ("detectors ablated", "random ablated")):  # fmt: skip
        (_, n1, _, *first), (_, n2, _, *second) = TABLE[one], TABLE[other]
        assert n1 is not None
        assert n2 is not None
        for rate, p1, p2 in zip(("multi-attempt", "ESR"), first, second, strict=True):
            z, p = two_proportions(round(p1 * n1), n1, round(p2 * n2), n2)
            rows.append({"condition": TABLE[one][0], "against": TABLE[other][0], "rate": rate, "z": z, "p": f"{p:.2g}"})
    return pd.DataFrame(rows)


def _matching(name: str, rates: Sequence[EsrRates]) -> EsrRates | None:
    wanted = {"random ablated": "matched 1 ablated"}.get(name, name)
    return next((r for r in rates if r.condition == wanted), None)
