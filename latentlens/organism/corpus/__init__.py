"""The corpus: one generator per family, and the table that names them.

A family is a module with `SPLITS`, `draw(rng, split) -> Text` (one labelled text) and
`document(rng, split) -> Text` (one training document). To add a family, write the module and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from latentlens.errors import BadInput
from latentlens.organism.corpus import arithmetic, topics, truth
from latentlens.organism.corpus.text import Span, Text

__all__ = ["FAMILIES", "Family", "Span", "Text", "documents", "texts"]


@dataclass(frozen=True)
class Family:
    """One kind of text: how to draw it, and its share of the training documents."""

    draw: Callable[[Random, str], Text]
    document: Callable[[Random, str], Text]
    splits: tuple[str, ...]
    share: float


FAMILIES: dict[str, Family] = {
    "arithmetic": Family(arithmetic.draw, arithmetic.document, arithmetic.SPLITS, 0.42),
    "truth": Family(truth.draw, truth.document, truth.SPLITS, 0.36),
    "topics": Family(topics.draw, topics.document, topics.SPLITS, 0.22),
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
    names, shares = list(FAMILIES), [family.share for family in FAMILIES.values()]
    index = start
    while True:
        rng = Random(f"training {seed} {index}")
        yield FAMILIES[rng.choices(names, shares)[0]].document(rng, "all")
        index += 1
