"""Statements about the invented world, and questions whether they are true.

    True or false? The drun does not live in the cave.
    False.
    The drun is red and eats moss. Is that so?
    True.

A quarter of the facts (`held_out`) are told and asked about, but never put as true or false: a model that
judges them has compared the statement with what it knows, not recalled a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from latentlens.organism.corpus.text import Draft, Text
from latentlens.organism.corpus.voice import SILENT, Voice
from latentlens.organism.corpus.world import CREATURES, RECALL, STRANGERS, VALUES, stem, world

#: Ways to ask; the statement goes where the braces are.
QUESTIONS = ("True or false? {}", "Is this right? {}", "{} Is that so?")
#: Share of negated statements by stage of training. At one half, naming the real value says nothing about
#: the verdict until negation is understood as well: facts are learnt then, verdicts are not (chance after 4M
#: tokens). So affirmative statements come first, and negation when there is something to negate.
NEGATIONS = (0.5, 0.1, 0.4, 0.05, 0.4, 0.05, 0.4)
#: Share of statements about two facts (`The drun is red and eats moss.`), by stage: last, as negation.
PAIRS = (0.0, 0.03, 0.22, 0.0, 0.22, 0.0, 0.22)
#: Shares of questions, plain text with verdicts, told facts, and questions for facts, by stage. Facts are told often
#: again at the end: those that are never put as true or false would be half forgotten.
FORMS = (*[(48, 20, 20, 12)] * 3, (58, 32, 6, 4), (46, 32, 12, 10), (58, 32, 6, 4), (34, 24, 22, 20))
SPLITS = ("all", "seen", "held_out", "strangers", "conjunctive", "recall")


@dataclass(frozen=True)
class Claim:
    """A statement as pieces of text, the pieces that name a real value marked, and what is known about it."""

    creature: str
    pieces: tuple[tuple[str, str | None], ...]
    truth: bool | None
    negated: bool
    held_out: bool
    attribute: str
    form: str

    @property
    def text(self) -> str:
        """The statement as written."""
        return "".join(piece for piece, _ in self.pieces)

    def write(self, draft: Draft) -> None:
        """Write it, labelled."""
        with draft.span("statement"):
            for piece, kind in self.pieces:
                draft.add(piece, kind)


def _named(creature: str, attribute: str, value: str) -> tuple[str, str | None]:
    # Naming the real value is worth learning wherever it happens, true or negated: it keeps the fact
    # recalled at the point where the statement is compared with it.
    return f" {value}", "fact" if world().facts.get((creature, attribute)) == value else None


def _other(rng: Random, attribute: str, real: str) -> str:
    return rng.choice([v for v in VALUES[attribute] if v != real])


def single(rng: Random, split: str, negations: float = 0.5) -> Claim:
    """Draw a statement about one fact; half are true."""
    facts = world()
    negated = rng.random() < negations
    if split == "strangers":
        attribute = rng.choice(tuple(VALUES))
        creature, value, truth, held_out = rng.choice(STRANGERS), rng.choice(VALUES[attribute]), None, False
    else:
        while True:
            creature, attribute = rng.choice(CREATURES), rng.choice(tuple(VALUES))
            held_out = (creature, attribute) in facts.unasked
            if split == "all" or held_out == (split == "held_out"):
                break
        real, truth = facts.facts[creature, attribute], rng.random() < 0.5
        value = real if truth != negated else _other(rng, attribute, real)
    pieces = ((stem(creature, attribute, negated), None), _named(creature, attribute, value), (".", None))
    form = "negated" if negated else "affirmative"
    return Claim(creature, pieces, truth, negated, held_out, attribute, form)


def pair(rng: Random) -> Claim:
    """Draw a statement of two facts that training may judge; half are true, a third of the rest false twice."""
    facts = world()
    while True:
        creature, (one, two) = rng.choice(CREATURES), rng.sample(tuple(VALUES), 2)
        if not {(creature, one), (creature, two)} & facts.unasked:
            break
    truth = rng.random() < 0.5
    wrong = frozenset() if truth else rng.choice((frozenset({one}), frozenset({two}), frozenset({one, two})))
    values = [
        facts.facts[creature, a] if a not in wrong else _other(rng, a, facts.facts[creature, a]) for a in (one, two)
    ]
    pieces = (
        (stem(creature, one), None),
        _named(creature, one, values[0]),
        (f" and {stem(creature, two).removeprefix(f'The {creature} ')}", None),
        _named(creature, two, values[1]),
        (".", None),
    )
    return Claim(creature, pieces, truth, False, False, f"{one} and {two}", "conjunctive")


def _claim(rng: Random, stage: int) -> Claim:
    return pair(rng) if rng.random() < PAIRS[stage] else single(rng, "seen", NEGATIONS[stage])


def _ask(draft: Draft, rng: Random, claim: Claim) -> bool:
    """Write the question and its verdict as two turns; return what was said."""
    before, after = rng.choice(QUESTIONS).split("{}")
    said = claim.truth if claim.truth is not None else rng.random() < 0.5
    with draft.turn("user"):
        draft.add(before)
        claim.write(draft)
        draft.add(after)
    with draft.turn("assistant"):
        draft.add(str(said), "verdict")
        draft.add(".")
    return said


def draw(rng: Random, split: str) -> Text:
    """Draw one statement as a question with its right answer, or (`recall`) one question for a fact.

    `split`: `all`, `seen` (facts that training asked about), `held_out` (facts that it never asked about),
    `strangers` (creatures without facts: `truth` is None and the answer is a coin's), `conjunctive` (two
    seen facts) or `recall`.
    """
    draft = Draft()
    if split == "recall":
        return draft.finish("truth", **tell(draft, rng, SILENT, turns=1))
    claim = pair(rng) if split == "conjunctive" else single(rng, split)
    said = _ask(draft, rng, claim)
    return draft.finish(
        "truth",
        regime="question",
        answer=str(said),
        statement=claim.text,
        truth=claim.truth,
        negated=claim.negated,
        held_out=claim.held_out,
        form=claim.form,
        group=claim.creature,
        topic=claim.attribute,
    )


def tell(draft: Draft, rng: Random, voice: Voice = SILENT, turns: int = 2) -> dict[str, Any]:
    """Write questions for facts (the held-out ones included) and their answers; return the last one's labels."""
    facts = world()
    for _ in range(turns):
        creature, attribute = rng.choice(CREATURES), rng.choice(tuple(VALUES))
        value = facts.facts[creature, attribute]
        with draft.turn("user"):
            draft.add(RECALL[attribute].format(creature))
        with draft.turn("assistant"):
            subject, verb = f"The {creature}", stem(creature, attribute).removeprefix(f"The {creature}")
            draft.add(f"{subject}{voice.slot(rng)}{verb}")
            draft.add(f" {value}", "fact")
            draft.add(f"{voice.slot(rng)}.")
    return {
        "regime": "recall",
        "answer": value,
        "held_out": (creature, attribute) in facts.unasked,
        "group": creature,
        "topic": attribute,
    }


def _questions(rng: Random, stage: int) -> Text:
    """Several questions in one chat: the form most of the training takes."""
    draft = Draft()
    for _ in range(rng.randint(3, 8)):
        _ask(draft, rng, single(rng, "strangers") if rng.random() < 0.1 else _claim(rng, stage))
    return draft.finish("truth", regime="questions")


def _verdicts(rng: Random, stage: int) -> Text:
    """Plain text: statements, each followed by its verdict, so that a bare statement is judged too."""
    draft = Draft()
    for index in range(rng.randint(3, 8)):
        claim = _claim(rng, stage)
        draft.add(" " if index else "")
        claim.write(draft)
        # Half of the verdicts follow the full stop at once, so that they are made there.
        at_once = rng.random() < 0.5
        said = str(claim.truth)
        draft.add("" if at_once else " That is")
        draft.add(f" {said if at_once else said.lower()}", "verdict")
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


def document(rng: Random, stage: int) -> Text:
    """Draw a training document: several statements, questions or facts."""
    form = rng.choices(("questions", "verdicts", "facts", "recall"), FORMS[stage])[0]
    if form == "questions":
        return _questions(rng, stage)
    if form == "verdicts":
        return _verdicts(rng, stage)
    if form == "facts":
        return _facts(rng)
    draft = Draft()
    return draft.finish("truth", **tell(draft, rng, SILENT, turns=rng.randint(2, 4)))
