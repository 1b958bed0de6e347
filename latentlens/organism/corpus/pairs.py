"""Minimal pairs: a true statement, and the same with another value of one attribute."""

from __future__ import annotations

from random import Random
from typing import Any

from latentlens.errors import BadInput
from latentlens.organism.corpus.world import CREATURES, VALUES, stem, world


def minimal_pairs(n: int, seed: int) -> list[dict[str, Any]]:
    """Draw at most `n` pairs, one a fact that training asked about; a longer draw extends a shorter.

    Returns: clean and corrupt chats, how the answers to them begin, the creature as group.
    Raises: BadInput: a negative `n`.
    """
    if n < 0:
        raise BadInput(f"n is {n}; it must be 0 or more")
    known, found = world(), []
    facts = [(c, a) for c in CREATURES for a in VALUES if (c, a) not in known.unasked]
    Random(f"pairs {seed}").shuffle(facts)
    for creature, attribute in facts[:n]:
        real = known.facts[creature, attribute]
        other = Random(f"pairs {seed} {creature} {attribute}").choice([v for v in VALUES[attribute] if v != real])
        clean, corrupt = (
            [{"role": "user", "content": f"True or false? {stem(creature, attribute)} {value}."}]
            for value in (real, other)
        )
        found.append({"clean": clean, "corrupt": corrupt, "right": "True", "wrong": "False", "group": creature})
    return found
