"""Small word problems, answered at once or step by step; every step has a known result.

Mira has 12 shells. Then Mira finds 5. Then Mira loses 3. How many shells are left? Think step by step.
12 + 5 = 17. 17 - 3 = 14. The answer is 14.
"""

from __future__ import annotations

from random import Random

from latentlens.organism.corpus.text import Draft, Text

NAMES = ("Mira", "Tobin", "Sela", "Orrin", "Pell", "Dara", "Juno", "Kesh")
THINGS = ("shells", "stones", "cups", "coins", "apples", "cards", "beads", "pens")
MORE = ("finds", "buys", "wins", "gets")
LESS = ("loses", "sells", "drops", "breaks")

#: What the user adds to the problem, by regime; `open` says nothing and either may follow.
INSTRUCTIONS = {"direct": " Answer directly.", "steps": " Think step by step.", "open": ""}
#: Values stay below this: each must be met often enough for its sums to be learnt.
CEILING = 40
MAX_STEPS = 6


def changes(rng: Random, count: int) -> tuple[int, tuple[int, ...]]:
    """Draw a start and `count` signed changes (1 to 9) whose running value stays in 0..CEILING-1."""
    start = value = rng.randint(2, CEILING - 2)
    drawn = []
    for _ in range(count):
        change = rng.choice([c for c in range(-9, 10) if c and 0 <= value + c < CEILING])
        drawn.append(change)
        value += change
    return start, tuple(drawn)


def draw(rng: Random, split: str) -> Text:
    """Draw one problem; `split` is a regime, or `all` for the training mix."""
    regime = split if split in INSTRUCTIONS else rng.choices(("direct", "steps", "open"), (30, 55, 15))[0]
    # Long traces are where errors pile up, so they come a little more often.
    count = rng.choices(range(1, MAX_STEPS + 1), (2, 2, 3, 3, 3, 3))[0]
    start, drawn = changes(rng, count)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    shown = regime if regime != "open" else rng.choice(("direct", "steps"))

    draft = Draft()
    with draft.turn("user"):
        draft.add(f"{name} has {start} {thing}.")
        for change in drawn:
            draft.add(f" Then {name} {rng.choice(MORE if change > 0 else LESS)} {abs(change)}.")
        draft.add(f" How many {thing} are left?{INSTRUCTIONS[regime]}")
    value, values = start, [start]
    with draft.turn("assistant"):
        for change in drawn:
            value += change
            values.append(value)
            if shown == "steps":
                draft.add(f"{' ' if len(values) > 2 else ''}Now {values[-2]} {'+' if change > 0 else '-'}")
                draft.add(f" {abs(change)} =")
                draft.add(f" {value}", "result")
                draft.add(".")
        draft.add(f"{' ' if shown == 'steps' else ''}The answer is")
        draft.add(f" {value}", "answer")
        draft.add(".")
    return draft.finish(
        "arithmetic", regime=regime, answer=str(value), difficulty=count, steps=tuple(values), group=name
    )


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")


SPLITS = ("all", "direct", "steps", "open")
