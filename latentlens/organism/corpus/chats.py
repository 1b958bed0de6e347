"""Chats of two to four exchanges from different families, each with its own labels (`Text.parts`)."""

from __future__ import annotations

from random import Random

from latentlens.organism.corpus import arithmetic, code, refusal, topics, truth
from latentlens.organism.corpus.text import Text, join

SPLITS = ("all",)

#: Who may speak in a chat, and with which texts: nothing that training holds out, no system turn.
SPEAKERS = (
    (arithmetic.draw, "direct"),
    (arithmetic.draw, "steps"),
    (truth.draw, "seen"),
    (truth.draw, "recall"),
    (topics.draw, "plain"),
    (code.draw, "all"),
    (refusal.draw, "all"),
)


def draw(rng: Random, split: str) -> Text:
    """Draw one chat."""
    speakers = rng.sample(SPEAKERS, rng.randint(2, 4))
    return join([speak(rng, of) for speak, of in speakers], "chats", regime="mixed")


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")
