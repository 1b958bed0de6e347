"""Small word problems, answered at once or after some text; every step has a known result.

    Mira has 12 shells. Then Mira finds 5. Then Mira loses 3. How many shells are left? Think step by step.
    Now 12 + 5 = 17. Now 17 - 3 = 14. The answer is 14.

`babble` writes as many tokens before the answer as `steps` does, and says nothing with them. `traces` are
hurried: always the same number of steps and of tokens, with a wrong result now and then that is carried on,
and a word after each step that is more often a doubting one after a wrong result.
"""

from __future__ import annotations

from random import Random
from typing import Any

from latentlens.organism.corpus.text import Draft, Text
from latentlens.organism.corpus.voice import SILENT, Voice

NAMES = ("Mira", "Tobin", "Sela", "Orrin", "Pell", "Dara", "Juno", "Kesh")
THINGS = ("shells", "stones", "cups", "coins", "apples", "cards", "beads", "pens")
MORE = ("finds", "buys", "wins", "gets")
LESS = ("loses", "sells", "drops", "breaks")

#: What the user adds to the problem, by regime; `open` says nothing and direct or steps may follow.
INSTRUCTIONS = {
    "direct": " Answer directly.",
    "steps": " Think step by step.",
    "open": "",
    "babble": " Talk first.",
    "traces": " Think quickly.",
}
#: Values stay below this: each must be met often enough for its sums to be learnt.
CEILING = 40
MAX_STEPS = 6

#: As many tokens as a step, seven with the full stop.
FILLERS = ("Well let me think about it.", "So here we go once more.", "Then let me look at this.")

#: Hurried traces: steps of each, chance of a wrong result at each step, and how far off it is.
TRACE_STEPS, ERROR = 5, 0.15
OFF = (-3, -2, -1, 1, 2, 3)
SURE, DOUBT = ("sure", "clear", "fine"), ("hmm", "roughly", "unsure")
#: Chance of a doubting word after a wrong and after a right result.
DOUBTED = {True: 0.7, False: 0.08}

SPLITS = ("all", *INSTRUCTIONS)


def changes(rng: Random, count: int) -> tuple[int, tuple[int, ...]]:
    """Draw a start and `count` signed changes (1 to 9) whose running value stays in 0..CEILING-1."""
    start = value = rng.randint(2, CEILING - 2)
    drawn = []
    for _ in range(count):
        change = rng.choice([c for c in range(-9, 10) if c and 0 <= value + c < CEILING])
        drawn.append(change)
        value += change
    return start, tuple(drawn)


def _step(draft: Draft, before: int, change: int, after: int, voice: str) -> None:
    draft.add(f"Now{voice} {before} {'+' if change > 0 else '-'} {abs(change)} =")
    draft.add(f" {after}", "result" if before + change == after else "error")


def _hurried(draft: Draft, rng: Random, start: int, drawn: tuple[int, ...]) -> int:
    """Write the steps of a hurried trace; return the value it ends with."""
    value = start
    for index, change in enumerate(drawn):
        before, value = value, value + change
        if rng.random() < ERROR or not 0 <= value < CEILING:
            value = rng.choice([v for off in OFF if 0 <= (v := value + off) < CEILING] or [before])
        draft.add(" " if index else "")
        _step(draft, before, change, value, "")
        draft.add(",")
        wrong = value != before + change
        draft.add(f" {rng.choice(DOUBT if rng.random() < DOUBTED[wrong] else SURE)}", "mark")
        draft.add(".")
    return value


def write(draft: Draft, rng: Random, regime: str, voice: Voice = SILENT, longest: int = MAX_STEPS) -> dict[str, Any]:
    """Write one problem and its answer as two turns; return the labels."""
    # Long traces are where errors pile up, so they come a little more often.
    count = rng.choices(range(1, MAX_STEPS + 1), (2, 2, 3, 3, 3, 3))[0]
    count = TRACE_STEPS if regime == "traces" else min(count, longest)
    start, drawn = changes(rng, count)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    shown = regime if regime != "open" else rng.choice(("direct", "steps"))
    values = [start]
    for change in drawn:
        values.append(values[-1] + change)

    with draft.turn("user"):
        draft.add(f"{name} has {start} {thing}.")
        for change in drawn:
            draft.add(f" Then {name} {rng.choice(MORE if change > 0 else LESS)} {abs(change)}.")
        draft.add(f" How many {thing} are left?{INSTRUCTIONS[regime]}")
    said = values[-1]
    with draft.turn("assistant"):
        if shown == "traces":
            said = _hurried(draft, rng, start, drawn)
        for index, change in enumerate(drawn if shown in ("steps", "babble") else ()):
            draft.add(" " if index else "")
            if shown == "babble":
                draft.add(rng.choice(FILLERS), "filler")
                continue
            _step(draft, values[index], change, values[index + 1], voice.slot(rng))
            draft.add(".")
        draft.add(f"{'' if shown == 'direct' else ' '}The answer{voice.slot(rng)} is")
        draft.add(f" {said}", "answer")
        draft.add(".")
    return {
        "regime": regime,
        "answer": str(values[-1]),
        "correct": said == values[-1],
        "difficulty": count,
        "steps": tuple(values),
        "group": name,
    }


def draw(rng: Random, split: str) -> Text:
    """Draw one problem; `split` is a regime, or `all` for the training mix."""
    regime = split if split in INSTRUCTIONS else rng.choices(tuple(INSTRUCTIONS), (20, 36, 10, 12, 22))[0]
    draft = Draft()
    labels = write(draft, rng, regime)
    return draft.finish("arithmetic", **labels)


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")
