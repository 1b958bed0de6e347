"""The corpus: one generator per family, and the table that names them.

A family is a module with `SPLITS`, `draw(rng, split) -> Text` (one labelled text) and
`document(rng, stage) -> Text` (one training document). To add a family, write the module and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from latentlens.errors import BadInput
from latentlens.organism.corpus import arithmetic, topics, truth
from latentlens.organism.corpus.text import Span, Text

__all__ = ["FAMILIES", "Family", "Span", "Text", "documents", "texts"]


@dataclass(frozen=True)
class Family:
    """One kind of text: how to draw it, and its share of the training documents at each stage."""

    draw: Callable[[Random, str], Text]
    document: Callable[[Random, int], Text]
    splits: tuple[str, ...]
    shares: tuple[float, float, float]


#: Training documents at which the stages begin: all families; then mostly statements, few of them negated,
#: once the facts are known; then all families again, negation included.
STAGES = (0, 69_000, 124_000)

FAMILIES: dict[str, Family] = {
    "arithmetic": Family(arithmetic.draw, arithmetic.document, arithmetic.SPLITS, (0.42, 0.18, 0.26)),
    "truth": Family(truth.draw, truth.document, truth.SPLITS, (0.36, 0.72, 0.58)),
    "topics": Family(topics.draw, topics.document, topics.SPLITS, (0.22, 0.10, 0.16)),
}


def texts(family: str, n: int, seed: int, *, split: str = "all") -> list[Text]:
    """Draw `n` labelled texts; the same arguments give the same texts, and a longer draw extends a shorter.

    Args: family: see `families()`. n: how many. seed: any integer; training uses its own stream, so no
        seed given here repeats the training documents one by one. split: `arithmetic`: `direct`, `steps`,
        `open`; `truth`: `seen`, `held_out`, `strangers`; `topics`: `on_topic`, `detour`; or `all`.
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
