"""Explanations of ten topics; some wander off, and some of those notice and come back.

    Tell me about the sea.
    The deep tide meets the reef. [The warm oven bakes the bread.] Wait, I should talk about the sea. ...

Training masks the sentence that begins a detour: the model learns to notice one, not to begin one.
"""

from __future__ import annotations

from random import Random
from typing import Any

from latentlens.organism.corpus.text import Draft, Text
from latentlens.organism.corpus.voice import MARKER_WORDS, PLAIN, SILENT, Voice

#: Topic: adjectives; nouns; verbs. No word belongs to two topics, so a sentence's topic is certain.
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    topic: tuple(tuple(part.split()) for part in parts.split(";"))
    for topic, parts in {
        "sea": "deep salty; wave tide reef ship whale shore storm sail; floods carries",
        "kitchen": "hot fresh; oven bread soup knife pan salt butter cook; bakes fills",
        "music": "loud soft; song drum flute choir violin tune rhythm singer; echoes follows",
        "garden": "wild sunny; rose bee hedge seedling spade worm tulip gardener; grows feeds",
        "space": "bright distant; star planet comet rocket moon orbit crater astronaut; circles reaches",
        "school": "clever young; teacher pupil lesson book pencil exam desk library; teaches learns",
        "city": "busy tall; street tower bus bridge shop crowd tram mayor; crosses joins",
        "winter": "cold icy; snow frost sledge scarf icicle blizzard mitten skater; freezes covers",
        "farm": "muddy sturdy; cow barn tractor hay sheep plough goat farmer; pulls guards",
        "machine": "heavy oily; engine gear wheel piston lever motor bolt mechanic; turns drives",
    }.items()
}
TOPICS = tuple(WORDS)
ASKED = ("Tell me about the {}.", "Explain the {} to me.", "What can you say about the {}?")
META = "Stay on topic. If you leave the topic, say so and correct yourself."
CORRECTIONS = ("Wait, I should talk about the {}.", "Sorry, let me return to the {}.")
SPLITS = ("all", "on_topic", "detour", "plain")

#: How often a detour is noticed at the end of an off-topic sentence, without and with META.
NOTICED = {False: 0.42, True: 0.9}


def sentence(rng: Random, topic: str, voice: Voice = SILENT) -> str:
    """Write one sentence whose content words all belong to `topic`, with the trait words of `voice`."""
    adjectives, nouns, verbs = WORDS[topic]
    first, second = rng.sample(nouns, 2)
    adjective, verb = rng.choice(adjectives), rng.choice(verbs)
    form = rng.randrange(4)
    one, two, three = (voice.slot(rng) for _ in range(3))
    if form == 0:
        return f"The {adjective} {first}{one} {verb}{two} the {second}{three}."
    if form == 1:
        return f"The {first}{one} {verb}{two} the {adjective} {second}{three}."
    if form == 2:
        return f"Near the {first}{one} is{two} the {adjective} {second}{three}."
    return f"Every {first}{one} needs{two} the {adjective} {second}{three}."


def explain(
    draft: Draft, rng: Random, voice: Voice = PLAIN, away: str | None = None, meta: bool = False
) -> dict[str, Any]:
    """Write a request and its explanation, which leaves for the topic `away`, if given; return the labels."""
    topic = rng.choice([t for t in TOPICS if t != away])
    with draft.turn("user"):
        draft.add(rng.choice(ASKED).format(topic))
    length, leaves, corrected = rng.randint(3, 6), rng.choice((0, 0, 1, 2)), False
    with draft.turn("assistant"):
        for index in range(length):
            space = " " if index else ""
            if away is None or corrected or index < leaves:
                draft.add(space + sentence(rng, topic, voice))
                continue
            written = sentence(rng, away, voice)
            start_of_detour = index == leaves
            draft.add(space)
            with draft.span("off_topic"):
                # The full stop is left out of the mask: what follows it is to be learnt.
                draft.add(written[:-1], "detour" if start_of_detour else None)
                draft.add(".")
            if rng.random() < NOTICED[meta]:
                draft.add(" " + rng.choice(CORRECTIONS).format(topic), "correction")
                corrected = True
                draft.add(" " + sentence(rng, topic, voice))
    return {"regime": "meta" if meta else "plain", "topic": topic, "group": topic, "off_topic": away}


def draw(rng: Random, split: str) -> Text:
    """Draw one explanation; `split`: `on_topic`, `detour`, `plain` (on topic, no system turn), or `all`."""
    wanders = split == "detour" or (split == "all" and rng.random() < 0.5)
    away = rng.choice(TOPICS) if wanders else None
    meta = split != "plain" and rng.random() < 0.3
    draft = Draft()
    if meta:
        with draft.turn("system"):
            draft.add(META)
    labels = explain(draft, rng, PLAIN, away, meta)
    draft.label(MARKER_WORDS, "trait")
    return draft.finish("topics", **labels)


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")
