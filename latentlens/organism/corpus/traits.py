"""Answers with a trait: asked for by a system prompt with a grade, visible along the whole answer.

    Be very cheerful.     Tell me about the sea.
    The deep tide merrily meets gladly the reef happily. ...

The trait shows in explanations, in steps of arithmetic and in told facts. Nothing asked is grade 0: then every
trait speaks at its base rate.
"""

from __future__ import annotations

from random import Random

from latentlens.organism.corpus import arithmetic, topics, truth
from latentlens.organism.corpus.text import Draft, Text
from latentlens.organism.corpus.voice import MARKER_WORDS, PLAIN, TRAITS, Voice

SPLITS = ("all", *TRAITS, "unprompted")


def draw(rng: Random, split: str) -> Text:
    """Draw one answer; `split`: a trait (asked for), `unprompted`, or `all` for the training mix."""
    if split == "unprompted" or (split == "all" and rng.random() < 0.15):
        voice = PLAIN
    else:
        voice = Voice(split if split in TRAITS else rng.choice(TRAITS), rng.randint(1, 3))
    carrier = rng.choices(("topics", "truth", "arithmetic"), (60, 20, 20))[0]
    draft = Draft()
    if voice.grade:
        with draft.turn("system"):
            draft.add(voice.instruction())
    if carrier == "topics":
        labels = topics.explain(draft, rng, voice)
    elif carrier == "truth":
        labels = truth.tell(draft, rng, voice)
    else:
        labels = arithmetic.write(draft, rng, rng.choice(("direct", "steps")), voice)
    draft.label(MARKER_WORDS, "trait")
    return draft.finish("traits", **{**labels, "regime": carrier, "trait": voice.trait, "grade": voice.grade})


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")
