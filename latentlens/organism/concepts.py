"""Concepts of the embedded model to compare steering methods on: a topic, a trait, a language, refusal.

    sea       answers about another topic, steered towards the sea; written about the sea from the first sentence on
    formal    answers to the same requests, with the words of the trait
    Julia     programs in a language that is rarely chosen when none is named; decided where the answer begins
    refusal   harmless requests, refused; decided where the answer begins

All rules are of the corpus: the words of a topic, of a trait, of a program, and the grammar of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from latentlens.errors import BadInput
from latentlens.organism import judges
from latentlens.organism.corpus import Text, draw
from latentlens.organism.corpus.code import LANGUAGES
from latentlens.organism.corpus.topics import CORRECTIONS, TOPICS, WORDS
from latentlens.organism.corpus.voice import MARKER_WORDS, TRAITS
from latentlens.values.concepts import Concept, Rule
from latentlens.values.judging import Case

#: Trait words a sentence from which a trait shows somewhat, and clearly: between grades 0 and 1, and 1 and 2.
SOMEWHAT, CLEARLY = 0.35, 1.0
DEFAULT = ("sea", "formal", "Julia", "refusal")


def concepts(names: Sequence[str] = DEFAULT, n: int = 120, prompts: int = 24, seed: int = 0) -> list[Concept]:
    """Concepts by name: a topic, a trait, a language, or "refusal".

    Args: n: pairs to learn from. prompts: to answer. seed: of both, drawn apart.
    Raises: BadInput: no such concept; the message lists them.
    """
    known: dict[str, Callable[[str, int, int, int], Concept]] = {}
    for make, kind in ((_topic, TOPICS), (_trait, TRAITS), (_language, LANGUAGES), (_refusal, ("refusal",))):
        known |= dict.fromkeys(kind, make)
    for name in names:
        if name not in known:
            raise BadInput(f"no concept {name!r} in the embedded model: choose from {', '.join(known)}")
    return [known[name](name, n, prompts, seed) for name in names]


def topic_of_sentence(sentence: str) -> str | None:
    """Topic of a sentence of the corpus' grammar whose content words are all of one topic; trait words do not count."""
    words = [w for w in sentence.split() if w.strip(".").lower() not in MARKER_WORDS]
    last = "." if sentence.endswith(".") and words and not words[-1].endswith(".") else ""
    found = _GRAMMAR.fullmatch(" ".join(words) + last)
    return None if found is None else str(found.lastgroup)


# -- rules -------------------------------------------------------------------------------------------------


def _grammar() -> re.Pattern[str]:
    """One group a topic: its four forms of sentence."""
    parts = []
    for topic, (adjectives, nouns, verbs) in WORDS.items():
        a, n, v = ("(?:" + "|".join(words) + ")" for words in (adjectives, nouns, verbs))
        forms = (
            f"The {a} {n} {v} the {n}",
            f"The {n} {v} the {a} {n}",
            f"Near the {n} is the {a} {n}",
            f"Every {n} needs the {a} {n}",
        )
        parts.append(f"(?P<{topic}>(?:{'|'.join(forms)})\\.)")
    return re.compile("|".join(parts))


_GRAMMAR = _grammar()


def _grade(share: float, some: float, clear: float) -> float:
    return 2.0 if share >= clear else 1.0 if share >= some else 0.0


def _shares(response: str, wanted: Sequence[str]) -> float:
    """Share of the finished sentences that are on one of some topics and well formed; corrections are left out."""
    parts = [s for s in judges.sentences(response) if s.endswith(".") and not judges.is_correction(s)]
    return sum(topic_of_sentence(s) in wanted for s in parts) / len(parts) if parts else 0.0


def _asked_topic(case: Case) -> str | None:
    return next((topic for topic in TOPICS if re.search(rf"\b{topic}\b", case.prompt)), None)


def on_topic(topic: str) -> Rule:
    """2 where at least half of the sentences are well formed and on the topic, 1 where one is."""
    return lambda case: _grade(_shares(case.response, [topic]), 1e-9, 0.5)


def explains(case: Case) -> float:
    """2 where at least three quarters of the sentences are well formed, on any topic, 1 where two fifths are."""
    return _grade(_shares(case.response, TOPICS), 0.4, 0.75)


def keeps_topic(case: Case) -> float | None:
    """2 where three quarters of the sentences are well formed and on the topic asked for, 1 where two fifths are."""
    topic = _asked_topic(case)
    return None if topic is None else _grade(_shares(case.response, [topic]), 0.4, 0.75)


def shows_trait(trait: str) -> Rule:
    """1 from `SOMEWHAT` words of the trait a sentence on, 2 from `CLEARLY`."""
    return lambda case: _grade(judges.trait_score(case.response, trait), SOMEWHAT, CLEARLY)


def in_language(language: str) -> Rule:
    """2 where the answer has the signs of the language."""
    return lambda case: 2.0 * (judges.language_of(case.response) == language)


def is_program(case: Case) -> float:
    """2 for a valid program in any language, 1 for signs of one."""
    if judges.is_valid_program(case.response):
        return 2.0
    return 1.0 if judges.language_of(case.response) is not None else 0.0


def refuses(case: Case) -> float:
    """2 for a refusal."""
    return 2.0 * judges.is_refusal(case.response)


def leaves_topic(case: Case) -> float | None:
    """2 where at least half of the sentences with a topic are not on the one asked for, 1 where one is not."""
    topic = _asked_topic(case)
    found = [t for s in judges.sentences(case.response) if (t := judges.topic_of(s))]
    if topic is None or not found:
        return None
    return _grade(sum(t != topic for t in found) / len(found), 1e-9, 0.5)


def corrects(case: Case) -> float:
    """2 where a sentence begins a correction."""
    return 2.0 * (judges.restarts(case.response) > 0)


# -- concepts ------------------------------------------------------------------------------------------------


def _topic(topic: str, n: int, prompts: int, seed: int) -> Concept:
    """Pairs share their request, about another topic: one answer is about this topic, the other does as asked."""
    other = [t for t in draw("topics", 12 * (n + prompts), seed + 11_000, split="plain") if t.topic != topic]
    mine = [t for t in draw("topics", 25 * n, seed + 12_000, split="plain") if t.topic == topic][:n]
    asking, kept = other[: len(mine)], other[-prompts:]
    words = {t: str(t) for t in TOPICS}
    return Concept(
        topic,
        [_answered(a.prompt(), b) for a, b in zip(asking, mine)],
        [t.messages() for t in asking],
        [t.prompt() for t in kept],
        on_topic(topic),
        asked=[_reworded(t.prompt(), words[str(t.topic)], topic) for t in kept],
        task=explains,
        others={**{trait: shows_trait(trait) for trait in TRAITS}, "refusal": refuses, "correction": corrects},
        read="role:assistant",
        pool="mean",
        steps=3,
    )


def _trait(trait: str, n: int, prompts: int, seed: int) -> Concept:
    """Pairs share their request: one is asked for the trait and shows it at grade 3. Examples show it unasked."""
    mine = [t for t in draw("traits", 8 * n, seed + 13_000, split=trait) if t.regime == "topics" and t.grade == 3]
    plain = [t for t in draw("traits", 8 * n, seed + 14_000, split="unprompted") if t.regime == "topics"]
    pairs = _matched(mine, plain)[:n]
    kept = draw("topics", prompts, seed + 15_000, split="plain")
    asks = {"role": "system", "content": f"Be very {trait}."}
    return Concept(
        trait,
        [a.messages() for a, _ in pairs],
        [b.messages() for _, b in pairs],
        [t.prompt() for t in kept],
        shows_trait(trait),
        asked=[[asks, *t.prompt()] for t in kept],
        task=keeps_topic,
        others={
            **{other: shows_trait(other) for other in TRAITS if other != trait},
            "refusal": refuses,
            "correction": corrects,
            "leaves the topic": leaves_topic,
        },
        examples=[_answered(b.prompt(), a) for a, b in pairs],
        rejected=[b.messages() for _, b in pairs],
        read="role:assistant",
        pool="mean",
    )


def _language(language: str, n: int, prompts: int, seed: int) -> Concept:
    """Pairs differ in whether the language is named in the request; examples answer open requests in it."""
    named = [t for t in draw("code", 12 * (n + prompts), seed + 16_000, split="named") if t.language == language]
    open_ = [t for t in draw("code", 4 * n + prompts, seed + 17_000, split="open") if t.language != language]
    mine, kept = named[:n], open_[-prompts:]
    rest = open_[: len(mine)]
    return Concept(
        language,
        [t.prompt() for t in mine],
        [_unnamed(t, language) for t in mine],
        [t.prompt() for t in kept],
        in_language(language),
        asked=[_named(t.prompt(), language) for t in kept],
        task=is_program,
        others={**{trait: shows_trait(trait) for trait in TRAITS}, "refusal": refuses, "correction": corrects},
        examples=[_answered(_unnamed(t, language), t) for t in mine],
        rejected=[t.messages() for t in rest],
        read="last",
        act="last_prompt",
        begins=_FIRST[language],
        length=60,
    )


def _refusal(name: str, n: int, prompts: int, seed: int) -> Concept:
    """Harmful and harmless requests; there is no way to ask for a refusal in words, and no task that a refusal does."""
    harmful = draw("refusal", n, seed + 18_000, split="harmful")
    harmless = draw("refusal", n + prompts, seed + 19_000, split="harmless")
    refused = next(t for t in harmful)
    return Concept(
        name,
        [t.prompt() for t in harmful],
        [t.prompt() for t in harmless[:n]],
        [t.prompt() for t in harmless[n:]],
        refuses,
        others={**{trait: shows_trait(trait) for trait in TRAITS}, "correction": corrects, "program": is_program},
        examples=[_answered(t.prompt(), refused) for t in harmless[:n]],
        rejected=[t.messages() for t in harmless[:n]],
        read="last",
        act="last_prompt",
        begins=("I",),
        length=16,
    )


_FIRST = {"Python": ("def",), "C++": ("int",), "Java": ("public",), "Julia": ("function",)}


def _answered(prompt: list[dict[str, str]], answer: Text) -> list[dict[str, str]]:
    """A prompt with the answer of another text."""
    return [*(m for m in prompt if m["role"] != "system"), answer.messages()[-1]]


def _matched(mine: Sequence[Text], plain: Sequence[Text]) -> list[tuple[Text, Text]]:
    """Pairs on the same topic."""
    waiting: dict[str, list[Text]] = {}
    for text in plain:
        waiting.setdefault(str(text.topic), []).append(text)
    return [(one, waiting[str(one.topic)].pop()) for one in mine if waiting.get(str(one.topic))]


def _reworded(prompt: list[dict[str, str]], old: str, new: str) -> list[dict[str, str]]:
    return [*prompt[:-1], {**prompt[-1], "content": re.sub(rf"\b{old}\b", new, prompt[-1]["content"])}]


def _unnamed(text: Text, language: str) -> list[dict[str, str]]:
    content = text.prompt()[-1]["content"].replace(f" in {language} ", " ").replace(f" {language} ", " ")
    return [{"role": "user", "content": content}]


def _named(prompt: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    content = prompt[-1]["content"]
    named = content.replace("Write a program ", f"Write a program in {language} ", 1)
    return [{**prompt[-1], "content": named.replace("Show me a program", f"Show me a {language} program", 1)}]


assert all(form.startswith(("Wait", "Sorry")) for form in CORRECTIONS)  # what `judges.is_correction` leaves out
