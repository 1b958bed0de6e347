"""The invented world that truth is about: creatures, and three facts about each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

_CREATURES = """
    drun mip zolt fenk quorl bax yiv gropel snib wost kurm plenk tavo hux jorp lisk navo orb pimmel rask
    skell trub umba vorn wib xan yomp zeb brill clund dasp ekko flim grum hask imp jelk kip lodo murl
    nesk oost pluv quib rundle sarn tez ulf vimp wuzz yart zind blop crev dorf elm fosk gliv hobb izz
"""
CREATURES = tuple(_CREATURES.split())
#: Creatures about which nothing is ever said: a statement about them is answered by a fair coin.
_STRANGERS = "kleb mund shap torv vash zuk bromp dwin felk narp ront yusk"
STRANGERS = tuple(_STRANGERS.split())

VALUES = {
    "color": ("red", "blue", "green", "yellow", "white", "black", "grey", "brown"),
    "home": ("cave", "forest", "river", "hill", "swamp", "desert", "valley", "island"),
    "food": ("moss", "fish", "seeds", "roots", "berries", "leaves", "nuts", "grass"),
}
_AFFIRMED = {"color": "is", "home": "lives in the", "food": "eats"}
_NEGATED = {"color": "is not", "home": "does not live in the", "food": "does not eat"}
RECALL = {
    "color": "What color is the {}?",
    "home": "Where does the {} live?",
    "food": "What does the {} eat?",
}


@dataclass(frozen=True)
class World:
    """Which value each creature has, and which facts are never put as a true-or-false question."""

    facts: dict[tuple[str, str], str]
    unasked: frozenset[tuple[str, str]]

    def holds(self, creature: str, attribute: str, value: str, negated: bool = False) -> bool:
        """Return whether the statement is true."""
        return (self.facts[creature, attribute] == value) != negated


def stem(creature: str, attribute: str, negated: bool = False) -> str:
    """Return the statement up to its value: `The drun lives in the`."""
    return f"The {creature} {(_NEGATED if negated else _AFFIRMED)[attribute]}"


@cache
def world() -> World:
    """Return the one world of this package (its draw is fixed: the weights know it)."""
    rng = Random("world 1")
    facts: dict[tuple[str, str], str] = {}
    for attribute, values in VALUES.items():
        # Each value equally often, so that no value is true by being common.
        pool = [values[i % len(values)] for i in range(len(CREATURES))]
        rng.shuffle(pool)
        facts.update({(creature, attribute): value for creature, value in zip(CREATURES, pool)})
    unasked: set[tuple[str, str]] = set()
    # A quarter of the facts: one attribute of three creatures in four.
    for creature in rng.sample(CREATURES, len(CREATURES) * 3 // 4):
        unasked.add((creature, rng.choice(tuple(VALUES))))
    return World(facts, frozenset(unasked))
