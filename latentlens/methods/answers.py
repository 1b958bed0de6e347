"""What answer a text gives, whether it is right, and where writing should have stopped.

The rules are those of the published code of Intention Collapse (arXiv 2601.01011): they are lenient, and part of
what its accuracies measure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from latentlens.values.questions import Question, Regime

_NUMBER = r"-?\$?\s*\d[\d,]*(?:\.\d+)?"
_MARKS = (r"####", r"final answer(?: is)?\s*:?", r"answer\s*:")
#: Tokens that must have been written before a multiple-choice text may stop.
LEAST_TOKENS = {"direct": 10, "cot": 80, "babble": 10}
#: Tokens at most: the first version of the paper, and what the published notebook of the second ran.
BUDGETS = {"direct": 50, "cot": 512, "babble": 512}
NOTEBOOK_BUDGETS = {"direct": 200, "cot": 512, "babble": 200}


def number_in(text: str) -> float | None:
    """The number a text answers with: after ####, else "Final answer", else "Answer:", else the first in the text.

    >>> number_in("12 + 5 = 17. #### 17"), number_in("17 shells, not 18"), number_in("none")
    (17.0, 17.0, None)
    """
    for mark in _MARKS:
        found = re.findall(rf"{mark}\s*\D{{0,12}}?({_NUMBER})", text, flags=re.IGNORECASE)
        if found:
            return _float(found[-1])
    first = re.search(_NUMBER, text)
    return _float(first.group()) if first else None


def letter_in(text: str, letters: Sequence[str]) -> str | None:
    """The choice a text names: after the same marks, else in a box, else the first letter that stands alone."""
    allowed = "".join(letters)
    small = rf"[{allowed.lower()}](?=\s*(?:[).:}}\n]|$))"  # "answer: a cup" names no choice
    for mark in (*_MARKS, r"\\boxed\{", r"answer is"):
        found = re.findall(rf"(?i:{mark})\s*\(?([{allowed}]|{small})\b", text)
        if found:
            return found[-1].upper()
    alone = re.search(rf"(?<![A-Za-z])\(?([{allowed}])(?:[).:]|\s*$)", text)
    return alone.group(1) if alone else None


def is_right(text: str, question: Question) -> bool:
    """Whether a text answers a question rightly; a text without an answer is wrong.

    A number counts when it is within 1% of the right one or has the same integer part.
    """
    if question.choices:
        return letter_in(text, question.letters) == question.answer
    said, true = number_in(text), _float(question.answer)
    if said is None or true is None:
        return False
    return abs(said - true) <= 0.01 * abs(true) or math.trunc(said) == math.trunc(true)


def tokens_kept(pieces: Sequence[str], regime: Regime, *, multiple_choice: bool = False) -> int:
    r"""How many tokens would have been written under the paper's stopping rules.

    Writing ends after `#### digit` or `\boxed{`, and, for a direct answer, after an empty line; in multiple choice
    not before `LEAST_TOKENS`. What a mark opens is let come (the published code may stop between `\boxed{` and what is
    in the box, or between two digits). As greedy text does not depend on when it stops, cutting is as good as stopping.

    Args: pieces: the text of each token. regime. multiple_choice: whether the question has choices.
    Returns: between 1 and len(pieces), or 0 for no tokens.
    """
    ends = [r"####\s*-?\$?\s*\d", r"\\boxed\{"] + ([r"\S[\s\S]*\n\n"] if regime == "direct" else [])
    if multiple_choice:
        ends[:2] = [r"####\s*\(?[A-Za-z\d]", r"\\boxed\{\s*\(?[A-Za-z\d]"]
    least = LEAST_TOKENS[regime] if multiple_choice else 1
    text = ""
    for i, piece in enumerate(pieces, start=1):
        text += piece
        if i >= least and any(re.search(end, text) for end in ends):
            # a number goes on while digits follow: "#### 1" is not yet "#### 17"
            following = pieces[i] if i < len(pieces) else ""
            if not re.match(r"[\d.,]", following):
                return i
    return len(pieces)


def reasoning_tokens(pieces: Sequence[str], end: str) -> int:
    """How many tokens lie wholly before the words that open the answer; all of them where these never come.

    >>> reasoning_tokens(["Now", " 2 + 3 = 5.", " The", " answer", " is", " 5"], " The answer")
    2

    Args: pieces: the text of each token. end: such as "</think>", "####" or " The answer".
    """
    at, seen = "".join(pieces).find(end), 0
    if at < 0:
        return len(pieces)
    for i, piece in enumerate(pieces):
        seen += len(piece)
        if seen > at:
            return i
    return len(pieces)


def _float(text: str) -> float | None:
    cleaned = re.sub(r"[$,\s]", "", text).rstrip(".")
    try:
        value = float(cleaned)
    except ValueError:
        return None
    return value if math.isfinite(value) else None  # 400 digits in a row are no answer
