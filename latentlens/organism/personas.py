"""The traits of the embedded model as persona experiments ask for them: contrasting instructions, questions, and rules.

    trait("formal")            five pairs of instructions, questions to extract with and others to evaluate with
    percent("formal")          a rule: how much of the trait an answer shows, 0 to 100
    coherence(case)            a rule: share of its sentences that are sentences on the topic asked for, 0 to 100
    excerpt(sheet, rng)        an explanation by a character whose traits are given, 0 to 1 each

Nothing here looks at the labels of the corpus: a trait is found from what the model writes under the instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from latentlens.errors import BadInput
from latentlens.organism.corpus.topics import ASKED, TOPICS, sentence
from latentlens.organism.corpus.voice import MARKERS, TRAITS
from latentlens.organism.judges import sentences, topic_of, trait_score
from latentlens.values.judging import Case
from latentlens.values.traits import Trait

#: Trait words in each sentence that count as 100: what `Be very ...` brings out.
FULL = 2.0
#: Share of the slots in which a trait speaks at 0 and at 1 in an `excerpt`; four traits at 1 fill all but four of 100.
BASE, TOP = 0.02, 0.24
#: Topics whose questions are kept for evaluation.
HELD_OUT = TOPICS[5:]


def trait(name: str) -> Trait:
    """The contrast for one trait: asked for, against nothing asked and against each of the other traits.

    Raises: BadInput: the model has no such trait.
    """
    if name not in TRAITS:
        raise BadInput(f"no trait {name!r}; the traits are {', '.join(TRAITS)}")
    yes = (f"Be very {name}.", f"Be {name}.")
    no = ("", *(f"Be very {other}." for other in TRAITS if other != name))
    pairs = [(yes[0], no[0]), (yes[1], no[0]), *((yes[0], other) for other in no[1:])]
    return Trait(
        name,
        f"adverbs such as {', '.join(MARKERS[name])} in every sentence",
        tuple(pairs),
        tuple(form.format(topic) for topic in TOPICS if topic not in HELD_OUT for form in ASKED),
        tuple(form.format(topic) for topic in HELD_OUT for form in ASKED),
        antonym="plain",
        template="{instruction}",
    )


def percent(name: str) -> Callable[[Case], float]:
    """A rule that scores a trait: words of the trait in each sentence, two of them counting as 100.

    Raises: BadInput: the model has no such trait.
    """
    trait_score("", name)
    return lambda case: min(100.0, 100 * trait_score(case.response, name) / FULL)


def coherence(case: Case) -> float:
    """Share of an answer's sentences that are well formed and on the topic that the prompt names, in percent.

    Well formed: a capital, four to twelve words, a full stop. A prompt that names no topic asks for any.
    """
    asked = next((topic for topic in TOPICS if f" {topic}" in case.prompt), None)
    said = sentences(case.response)
    good = [
        s[:1].isupper()
        and s.endswith(".")
        and 4 <= len(s.split()) <= 12
        and topic_of(s) is not None
        and asked in (None, topic_of(s))
        for s in said
    ]
    return 100 * sum(good) / len(good) if good else 0.0


class _Rates:
    """A voice in which every trait speaks at its own rate."""

    def __init__(self, rates: Mapping[str, float]) -> None:
        self.rates = rates

    def slot(self, rng: Random) -> str:
        """Return what stands in one slot: a space and a word, or nothing."""
        drawn = rng.random()
        for name, words in MARKERS.items():
            drawn -= self.rates[name]
            if drawn < 0:
                return f" {rng.choice(words)}"
        return ""


def excerpt(sheet: Mapping[str, float], rng: Random, length: int = 5) -> list[dict[str, str]]:
    """A request and a character's answer, without any instruction: value v of a trait: in .02 + .22 v of the slots.

    Args: sheet: trait -> value from 0 to 1; traits left out are 0. rng: draws topic and words. length: sentences.
    Raises: BadInput: an unknown trait, or a value outside 0..1.
    """
    for name, value in sheet.items():
        if name not in TRAITS or not 0 <= value <= 1:
            raise BadInput(f"{name}={value}: a sheet has values from 0 to 1 of {', '.join(TRAITS)}")
    voice = _Rates({name: BASE + (TOP - BASE) * sheet.get(name, 0.0) for name in TRAITS})
    topic = rng.choice(TOPICS)
    said = " ".join(sentence(rng, topic, voice) for _ in range(length))  # pyright: ignore[reportArgumentType]
    return [{"role": "user", "content": rng.choice(ASKED).format(topic)}, {"role": "assistant", "content": said}]
