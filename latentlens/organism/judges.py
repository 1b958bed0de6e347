"""Programmatic judges: what a generated text says, decided by rule.

    topic_of(sentence)   is_correction(sentence)   restarts(text)      explanations (and recovers)
    parsed_answer(text)  parsed_steps(text)        wrong_steps(text)   arithmetic
    trait_scores(text)   trait_score(text, trait)                       traits
    language_of(text)    is_valid_program(text)                         code
    verdict_of(text)     is_refusal(text)                               statements, requests

A judge of what is absent (a topic, an answer, a verdict, a language) returns None.
"""

from __future__ import annotations

import re
from collections import Counter

from latentlens.errors import BadInput
from latentlens.organism.corpus.code import BODIES, FRAMES, LANGUAGES
from latentlens.organism.corpus.refusal import REFUSAL
from latentlens.organism.corpus.topics import CORRECTIONS, WORDS
from latentlens.organism.corpus.voice import TRAIT_OF, TRAITS

_TOPIC_OF = {word: topic for topic, parts in WORDS.items() for part in parts for word in part}
_STARTS = tuple(form.split(",")[0] + "," for form in CORRECTIONS)


def parsed_answer(text: str) -> int | None:
    """Return the number in the last `The answer is N` (a trait word may stand before `is`), or None."""
    found = re.findall(r"The answer(?: [a-z]+)? is (\d+)", text)
    return int(found[-1]) if found else None


def parsed_steps(text: str) -> list[tuple[int, int, int]]:
    """Return (value before, signed change, value after) of every written step, whether right or wrong."""
    found = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", text)
    return [(int(a), int(sign + b), int(c)) for a, sign, b, c in found]


def wrong_steps(text: str) -> list[int]:
    """Return the indices of the steps whose result is not what it should be."""
    return [i for i, (a, change, c) in enumerate(parsed_steps(text)) if a + change != c]


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


def restarts(text: str) -> int:
    """Return how many sentences of a reply begin a correction: the attempts at coming back to the topic."""
    return sum(map(is_correction, sentences(text)))


def corrects_at_once(text: str, topic: str) -> bool:
    """Return whether a correction follows the first sentence that is on another topic than `topic`."""
    parts = sentences(text)
    away = next((i for i, s in enumerate(parts) if topic_of(s) not in (None, topic)), len(parts))
    return any(map(is_correction, parts[away + 1 : away + 2]))


def recovers(text: str, topic: str) -> bool:
    """Return whether the first sentence with a topic after the last correction is on `topic`."""
    parts = sentences(text)
    last = max((i for i, s in enumerate(parts) if is_correction(s)), default=len(parts))
    return next((found == topic for s in parts[last + 1 :] if (found := topic_of(s))), False)


def trait_scores(text: str) -> dict[str, float]:
    """Return, for each trait, how many of its words stand in each sentence on average."""
    words = Counter(TRAIT_OF[w] for w in re.findall(r"[a-z]+", text.lower()) if w in TRAIT_OF)
    return {trait: words[trait] / max(1, len(sentences(text))) for trait in TRAITS}


def trait_score(text: str, trait: str) -> float:
    """Return how many words of one trait stand in each sentence on average.

    Raises: BadInput: there is no such trait.
    """
    if trait not in TRAITS:
        raise BadInput(f"no trait {trait!r}; the traits are {', '.join(TRAITS)}")
    return trait_scores(text)[trait]


#: Words that only one of the languages writes.
_SIGNS = {
    "Python": r"\bdef \w+\(|\brange\(|(?<![\w.])print\(|\):$|if [^()\n]*:$",
    "C++": r"std::|\bint main\(",
    "Java": r"\bpublic\b|\bstatic\b|System\.out",
    "Julia": r"\bfunction \w+\(|(?<![\w.])println\(|^\s*end$",
}


def language_of(text: str) -> str | None:
    """Return the language with most signs in the text (`std::`, `def main(`, ...); None without any or in a tie."""
    counts = Counter({name: len(re.findall(signs, text, re.MULTILINE)) for name, signs in _SIGNS.items()})
    (first, most), (_, next_most) = counts.most_common(2)
    return first if most > next_most else None


def _shapes() -> dict[str, re.Pattern[str]]:
    """One pattern for each language: its frame around any of its bodies, one variable name throughout."""
    holes = {"a": r"\\d+", "b": r"\\d+", "op": r"[-+*]"}
    found = {}
    for language in LANGUAGES:
        bodies = []
        for number, lines in enumerate(BODIES[language].values()):
            body = re.escape("\n".join(lines))
            for hole, pattern in holes.items():
                body = re.sub(r"\\\{" + hole + r"\\\}", pattern, body)
            body = body.replace(r"\{n\}", rf"(?P<n{number}>[a-z]\w*)", 1).replace(r"\{n\}", rf"(?P=n{number})")
            bodies.append(body)
        opens, closes = map(re.escape, FRAMES[language])
        found[language] = re.compile(rf"{opens}\n(?:{'|'.join(bodies)})" + (rf"\n{closes}" if closes else ""))
    return found


_SHAPES = _shapes()


def is_valid_program(text: str, language: str | None = None) -> bool:
    """Return whether the whole text parses as a program of the corpus' grammar in `language` (None: in any).

    The rule: the language's frame, one of its bodies, every bracket and `end` in place, and one variable name.
    Raises: BadInput: there is no such language.
    """
    if language is not None and language not in LANGUAGES:
        raise BadInput(f"no language {language!r}; the languages are {', '.join(LANGUAGES)}")
    return any(_SHAPES[one].fullmatch(text.strip()) for one in ((language,) if language else LANGUAGES))


def verdict_of(text: str) -> bool | None:
    """Return True or False as the reply begins; None if it begins with neither."""
    return True if text.startswith("True") else False if text.startswith("False") else None


def is_refusal(text: str) -> bool:
    """Return whether the reply begins as a refusal does (`I cannot help`)."""
    return text.strip().startswith(" ".join(REFUSAL.split()[:3]))
