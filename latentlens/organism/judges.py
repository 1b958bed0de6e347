"""Programmatic judges: what a generated text says, decided by rule."""

from __future__ import annotations

import re
from collections import Counter

from latentlens.organism.corpus.topics import CORRECTIONS, WORDS

_TOPIC_OF = {word: topic for topic, parts in WORDS.items() for part in parts for word in part}
_STARTS = tuple(form.split(",")[0] + "," for form in CORRECTIONS)


def parsed_answer(text: str) -> int | None:
    """Return the number in the last `The answer is N`, or None."""
    found = re.findall(r"The answer is (\d+)", text)
    return int(found[-1]) if found else None


def sentences(text: str) -> list[str]:
    """Split at full stops; the last one may be unfinished."""
    return [s.strip() for s in re.split(r"(?<=\.)\s+", text.strip()) if s.strip()]


def topic_of(sentence: str) -> str | None:
    """Return the topic that most content words of the sentence belong to; None without any."""
    counts = Counter(_TOPIC_OF[w] for w in re.findall(r"[a-z]+", sentence.lower()) if w in _TOPIC_OF)
    return counts.most_common(1)[0][0] if counts else None


def is_correction(sentence: str) -> bool:
    """Return whether the sentence begins as a correction does (`Wait,` or `Sorry,`)."""
    return sentence.startswith(_STARTS)
