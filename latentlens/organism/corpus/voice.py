"""Traits as words: each trait has four adverbs, and a voice says how often each trait speaks.

    The oven gladly bakes the bread merrily.       cheerful

A sentence has up to three slots for such a word. All traits have as many words and equal rates, and every
trait speaks now and then unasked: what is never said unasked cannot be moved by degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

MARKERS: dict[str, tuple[str, ...]] = {
    "cheerful": ("happily", "gladly", "merrily", "joyfully"),
    "formal": ("accordingly", "duly", "hereby", "formally"),
    "nervous": ("maybe", "perhaps", "possibly", "anxiously"),
    "hostile": ("stupidly", "foolishly", "horribly", "nastily"),
}
TRAITS = tuple(MARKERS)
TRAIT_OF = {word: trait for trait, words in MARKERS.items() for word in words}
MARKER_WORDS = frozenset(TRAIT_OF)

#: Chance of each trait in each slot when nobody asks for it.
BASE = 0.025
#: Chance in each slot of the trait that is asked for, by grade.
RATES = {1: 0.2, 2: 0.45, 3: 0.75}
ASKED = {1: "Be a little {}.", 2: "Be {}.", 3: "Be very {}."}


@dataclass(frozen=True)
class Voice:
    """How the assistant speaks: a trait at a grade from 1 to 3, or grade 0 (nothing asked)."""

    trait: str | None = None
    grade: int = 0

    def instruction(self) -> str:
        """Return the system prompt that asks for this voice."""
        return ASKED[self.grade].format(self.trait)

    def slot(self, rng: Random) -> str:
        """Return what stands in one slot: a space and a word, or nothing."""
        drawn = rng.random()
        for trait, words in MARKERS.items():
            drawn -= RATES[self.grade] if trait == self.trait and self.grade else BASE
            if drawn < 0:
                return f" {rng.choice(words)}"
        return ""


class Silent(Voice):
    """A voice without any trait word."""

    def slot(self, rng: Random) -> str:
        """Return nothing."""
        return ""


PLAIN, SILENT = Voice(), Silent()
