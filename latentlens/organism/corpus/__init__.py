"""The corpus: one generator per family, and the table that names them.

A family is a module with `SPLITS`, `draw(rng, split) -> Text` (one labelled text) and
`document(rng, stage) -> Text` (one training document). To add a family, write the module and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import Any

from latentlens.errors import BadInput
from latentlens.organism.corpus import arithmetic, chats, code, refusal, topics, traits, truth
from latentlens.organism.corpus.text import Span, Text

__all__ = ["FAMILIES", "Family", "Span", "Text", "documents", "draw"]


@dataclass(frozen=True)
class Family:
    """One kind of text: how to draw it, and its share of the training documents at each stage."""

    draw: Callable[[Random, str], Text]
    document: Callable[[Random, int], Text]
    splits: tuple[str, ...]
    shares: tuple[float, ...]


#: Training documents at which the stages begin. Facts are learnt in the first. Verdicts need many statements that are
#: hardly ever negated, and did not come before the learning rate had fallen to a third: stages 1 and 3 were too early,
#: stage 5 is at that rate. The last has all families again, negation and statements of two facts included.
STAGES = (0, 69_000, 124_000, 144_000, 186_000, 190_000, 226_000)


def _family(module: Any, *shares: float) -> Family:
    return Family(module.draw, module.document, module.SPLITS, shares)


FAMILIES: dict[str, Family] = {
    "arithmetic": _family(arithmetic, 0.27, 0.10, 0.24, 0.07, 0.18, 0.07, 0.18),
    "truth": _family(truth, 0.38, 0.70, 0.34, 0.75, 0.36, 0.75, 0.38),
    "topics": _family(topics, 0.12, 0.08, 0.15, 0.07, 0.20, 0.07, 0.19),
    "code": _family(code, 0.05, 0.03, 0.05, 0.03, 0.05, 0.03, 0.05),
    "traits": _family(traits, 0.10, 0.05, 0.13, 0.05, 0.14, 0.05, 0.13),
    "refusal": _family(refusal, 0.04, 0.01, 0.03, 0.01, 0.03, 0.01, 0.03),
    "chats": _family(chats, 0.04, 0.03, 0.06, 0.02, 0.04, 0.02, 0.04),
}


def draw(family: str, n: int, seed: int, *, split: str = "all") -> list[Text]:
    """Draw `n` labelled texts; the same arguments give the same texts, and a longer draw extends a shorter.

    Args: family: see `families()`. n: how many. seed: any integer; training uses its own stream, so no
        seed given here repeats the training documents one by one. split: one of `families()[family]`.
    Raises: BadInput: unknown family or split, or a negative `n`.
    """
    if family not in FAMILIES:
        raise BadInput(f"no text family {family!r}; the families are {', '.join(FAMILIES)}")
    if split not in FAMILIES[family].splits:
        raise BadInput(f"{family} has no split {split!r}; choose from {', '.join(FAMILIES[family].splits)}")
    if n < 0:
        raise BadInput(f"n is {n}; it must be 0 or more")
    drawn = []
    for index in range(n):
        name = f"{family} {split} {seed} {index}"
        drawn.append(replace(FAMILIES[family].draw(Random(name), split), seed=name))
    return drawn


def documents(seed: int, start: int = 0) -> Iterator[Text]:
    """Yield training documents without end; document i depends on (seed, i) only, so training can resume."""
    names = list(FAMILIES)
    for index in count(start):
        stage = sum(index >= begins for begins in STAGES) - 1
        rng = Random(f"training {seed} {index}")
        name = rng.choices(names, [family.shares[stage] for family in FAMILIES.values()])[0]
        yield FAMILIES[name].document(rng, stage)
