"""Explanations of ten topics; some wander off, and some of those notice and come back.

    Tell me about the sea.
    The deep tide meets the reef. [The warm oven bakes the bread.] Wait, I should talk about the sea. ...

Training masks the sentence that begins a detour: the model learns to notice one, not to begin one.
"""

from __future__ import annotations

from random import Random

from latentlens.organism.corpus.text import Draft, Text

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
SPLITS = ("all", "on_topic", "detour")

#: How often a detour is noticed at the end of an off-topic sentence, without and with META.
NOTICED = {False: 0.5, True: 0.9}


def sentence(rng: Random, topic: str) -> str:
    """Write one sentence whose content words all belong to `topic`."""
    adjectives, nouns, verbs = WORDS[topic]
    first, second = rng.sample(nouns, 2)
    adjective, verb = rng.choice(adjectives), rng.choice(verbs)
    form = rng.randrange(4)
    if form == 0:
        return f"The {adjective} {first} {verb} the {second}."
    if form == 1:
        return f"The {first} {verb} the {adjective} {second}."
    if form == 2:
        return f"Near the {first} is the {adjective} {second}."
    return f"Every {first} needs the {adjective} {second}."


def draw(rng: Random, split: str) -> Text:
    """Draw one explanation; `split`: `on_topic`, `detour`, or `all` for the training mix."""
    topic = rng.choice(TOPICS)
    wanders = split == "detour" or (split == "all" and rng.random() < 0.45)
    away = rng.choice([t for t in TOPICS if t != topic]) if wanders else None
    meta = rng.random() < 0.3
    draft = Draft()
    if meta:
        with draft.turn("system"):
            draft.add(META)
    with draft.turn("user"):
        draft.add(rng.choice(ASKED).format(topic))
    length, leaves, corrected = rng.randint(3, 6), rng.choice((0, 0, 1, 2)), False
    with draft.turn("assistant"):
        for index in range(length):
            space = " " if index else ""
            if away is None or corrected or index < leaves:
                draft.add(space + sentence(rng, topic))
                continue
            written = sentence(rng, away)
            start_of_detour = index == leaves
            draft.add(space)
            with draft.span("off_topic"):
                # The full stop is left out of the mask: what follows it is to be learnt.
                draft.add(written[:-1], "detour" if start_of_detour else None)
                draft.add(".")
            if rng.random() < NOTICED[meta]:
                draft.add(" " + rng.choice(CORRECTIONS).format(topic), "correction")
                corrected = True
                draft.add(" " + sentence(rng, topic))
    return draft.finish("topics", regime="meta" if meta else "plain", topic=topic, group=topic, off_topic=away)


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")
