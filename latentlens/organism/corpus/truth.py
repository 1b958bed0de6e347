"""Statements about the invented world, and questions whether they are true.

    True or false? The drun does not live in the cave.
    False.

A quarter of the facts (`held_out`) are told and asked about, but never put as true or false: a model that
judges them has compared the statement with what it knows, not recalled a verdict.
"""

from __future__ import annotations

from random import Random

from latentlens.organism.corpus.text import Draft, Text
from latentlens.organism.corpus.world import CREATURES, QUESTIONS, STRANGERS, VALUES, stem, world

QUESTION = "True or false? "
#: Share of negated statements by stage of training. At one half, naming the real value says nothing about
#: the verdict until negation is understood as well: facts are learnt then, verdicts are not (chance after 4M
#: tokens). So affirmative statements come first, and negation when there is something to negate.
NEGATIONS = (0.5, 0.1, 0.4)
SPLITS = ("all", "seen", "held_out", "strangers")


def _pick(rng: Random, split: str, negations: float = 0.5) -> tuple[str, str, str, bool, bool | None]:
    """Return creature, attribute, value, negated, truth; half the statements are true."""
    facts = world()
    negated = rng.random() < negations
    if split == "strangers":
        attribute = rng.choice(tuple(VALUES))
        return rng.choice(STRANGERS), attribute, rng.choice(VALUES[attribute]), negated, None
    while True:
        creature, attribute = rng.choice(CREATURES), rng.choice(tuple(VALUES))
        held_out = (creature, attribute) in facts.unasked
        if split == "all" or held_out == (split == "held_out"):
            break
    real, truth = facts.facts[creature, attribute], rng.random() < 0.5
    value = real if truth != negated else rng.choice([v for v in VALUES[attribute] if v != real])
    return creature, attribute, value, negated, truth


def _state(draft: Draft, creature: str, attribute: str, value: str, negated: bool) -> None:
    with draft.span("statement"):
        draft.add(stem(creature, attribute, negated))
        # Naming the real value is worth learning wherever it happens, true or negated: it keeps the fact
        # recalled at the point where the statement is compared with it.
        draft.add(f" {value}", "fact" if world().facts.get((creature, attribute)) == value else None)
        draft.add(".")


def draw(rng: Random, split: str) -> Text:
    """Draw one statement as a true-or-false question with its right answer.

    `split`: `all`, `seen` (facts that training asked about), `held_out` (facts that it never asked about)
    or `strangers` (creatures without facts: `truth` is None and the answer is a coin's).
    """
    creature, attribute, value, negated, truth = _pick(rng, split)
    said = truth if truth is not None else rng.random() < 0.5
    draft = Draft()
    with draft.turn("user"):
        draft.add(QUESTION)
        _state(draft, creature, attribute, value, negated)
    with draft.turn("assistant"):
        draft.add("True" if said else "False", "verdict")
        draft.add(".")
    return draft.finish(
        "truth",
        regime="question",
        answer="True" if said else "False",
        statement=f"{stem(creature, attribute, negated)} {value}.",
        truth=truth,
        negated=negated,
        held_out=(creature, attribute) in world().unasked,
        group=creature,
        topic=attribute,
    )


def _questions(rng: Random, negations: float) -> Text:
    """Several true-or-false questions in one chat: the form most of the training takes."""
    draft = Draft()
    for _ in range(rng.randint(3, 8)):
        creature, attribute, value, negated, truth = _pick(
            rng, "strangers" if rng.random() < 0.1 else "seen", negations
        )
        with draft.turn("user"):
            draft.add(QUESTION)
            _state(draft, creature, attribute, value, negated)
        with draft.turn("assistant"):
            draft.add(str(rng.random() < 0.5 if truth is None else truth), "verdict")
            draft.add(".")
    return draft.finish("truth", regime="questions")


def _verdicts(rng: Random, negations: float) -> Text:
    """Plain text: statements, each followed by its verdict, so that a bare statement is judged too."""
    draft = Draft()
    for index in range(rng.randint(3, 8)):
        creature, attribute, value, negated, truth = _pick(rng, "seen", negations)
        draft.add(" " if index else "")
        _state(draft, creature, attribute, value, negated)
        draft.add(" That is")
        draft.add(" true" if truth else " false", "verdict")
        draft.add(".")
    return draft.finish("truth", regime="verdicts")


def _facts(rng: Random) -> Text:
    """Plain text that tells facts, the held-out ones included."""
    facts, draft = world().facts, Draft()
    for index in range(rng.randint(3, 6)):
        creature, attribute = rng.choice(CREATURES), rng.choice(tuple(VALUES))
        draft.add(f"{' ' if index else ''}{stem(creature, attribute)}")
        draft.add(f" {facts[creature, attribute]}", "fact")
        draft.add(".")
    return draft.finish("truth", regime="facts")


def _recall(rng: Random) -> Text:
    """A chat that asks for facts, the held-out ones included."""
    facts, draft = world().facts, Draft()
    for _ in range(rng.randint(2, 4)):
        creature, attribute = rng.choice(CREATURES), rng.choice(tuple(VALUES))
        with draft.turn("user"):
            draft.add(QUESTIONS[attribute].format(creature))
        with draft.turn("assistant"):
            draft.add(stem(creature, attribute))
            draft.add(f" {facts[creature, attribute]}", "fact")
            draft.add(".")
    return draft.finish("truth", regime="recall")


def document(rng: Random, stage: int) -> Text:
    """Draw a training document: several statements, questions or facts."""
    form = rng.choices(("questions", "verdicts", "facts", "recall"), (48, 20, 20, 12))[0]
    if form == "questions":
        return _questions(rng, NEGATIONS[stage])
    if form == "verdicts":
        return _verdicts(rng, NEGATIONS[stage])
    return _facts(rng) if form == "facts" else _recall(rng)
