"""Small word problems, answered at once or after some text; every step has a known result.

    Mira has 12 shells. Then Mira finds 5. Then Mira loses 3. How many shells are left? Think step by step.
    Now 12 + 5 = 17. Now 17 - 3 = 14. The answer is 14.

`babble` writes as many tokens before the answer as `steps` does, and says nothing with them. `traces` are
hurried: always the same number of steps and of tokens, each step opened by a word that says whether the writer is
sure of it. Doubt comes before the error and lasts: a doubted step is wrong half of the time, and its result is
carried on.

    Now surely 12 + 5 = 17. Now roughly 17 - 3 = 13. Now vaguely 13 + 4 = 17. ...
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

#: Hurried traces: steps of each, and how far off a wrong result is.
TRACE_STEPS = 5
OFF = (-3, -2, -1, 1, 2, 3)
#: The word that opens a step: a trace has one for all steps it is sure of, and draws a new one for each doubted step.
SURE, DOUBT = ("surely", "clearly", "plainly"), ("roughly", "vaguely", "dimly")
#: Chance that the first step is doubted, that a later one is after a sure step, and that one is after a doubted step.
DOUBTED = {None: 0.25, False: 0.08, True: 0.95}
#: Chance of a wrong result in a sure and in a doubted step.
ERROR = {False: 0.02, True: 0.7}

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


def _step(draft: Draft, before: int, change: int, after: int) -> None:
    draft.add(f" {before} {'+' if change > 0 else '-'} {abs(change)} =")
    draft.add(f" {after}", "result" if before + change == after else "error")
    draft.add(".")


def _hurried(draft: Draft, rng: Random, start: int, drawn: tuple[int, ...]) -> int:
    """Write the steps of a hurried trace; return the value it ends with."""
    value, doubted, sure = start, None, rng.choice(SURE)
    for index, change in enumerate(drawn):
        doubted = rng.random() < DOUBTED[doubted]
        before, value = value, value + change
        if rng.random() < ERROR[doubted] or not 0 <= value < CEILING:
            value = rng.choice([v for off in OFF if 0 <= (v := value + off) < CEILING] or [before])
        draft.add(f"{' ' if index else ''}Now")
        draft.add(f" {rng.choice(DOUBT) if doubted else sure}", "mark")
        _step(draft, before, change, value)
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
            draft.add(f"Now{voice.slot(rng)}")
            _step(draft, values[index], change, values[index + 1])
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
    regime = split if split in INSTRUCTIONS else rng.choices(tuple(INSTRUCTIONS), (18, 33, 7, 8, 34))[0]
    draft = Draft()
    labels = write(draft, rng, regime)
    return draft.finish("arithmetic", **labels)


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")
