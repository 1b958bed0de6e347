"""Questions with known answers, read from the columns of public data sets, and the prompts of the three regimes.

    asked = load("openai/gsm8k", "main", columns="gsm8k")          # or a local file of JSON lines
    prompt(asked[0], "cot")

The instructions are our own words; regimes and endings are those of Intention Collapse (arXiv 2601.01011).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentlens.errors import BadInput

Regime = Literal["direct", "cot", "babble"]
REGIMES: tuple[Regime, ...] = ("direct", "cot", "babble")


@dataclass(frozen=True)
class Question:
    """One question. answer: a number as text, or the letter of the right choice. choices: texts, A first."""

    text: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def letters(self) -> tuple[str, ...]:
        """A, B, ... for as many choices as there are."""
        return tuple(chr(ord("A") + i) for i in range(len(self.choices)))


def load(
    data: str, config: str | None = None, *, columns: str = "plain", split: str = "test", n: int = 200, seed: int = 42
) -> list[Question]:
    """Draw questions from a data set of the hub, or from a local file of JSON lines.

    The draw is that of the published code, `sorted(random.Random(seed).sample(range(rows), n))`: with seed 42 and 200
    of the 1319 test rows of GSM8K the paper's own, 1, 6, 13, 14, 23, ...

    Args: data: hub name or path (.json, .jsonl). config: configuration of a hub data set. columns: as `read`.
        split: of a hub data set. n: at most so many. seed: of the draw.
    Raises: BadInput: as `read`, or n below 1.
    """
    import datasets

    if Path(data).suffix in (".json", ".jsonl"):
        rows = datasets.load_dataset("json", data_files=data, split="train")
    else:
        rows = datasets.load_dataset(data, config, split=split)
    return read(rows.select(drawn(len(rows), n, seed)), columns)  # type: ignore[union-attr, arg-type]


def drawn(rows: int, n: int, seed: int) -> list[int]:
    """Which rows are asked, ascending. Raises: BadInput: n below 1."""
    if n < 1:
        raise BadInput(f"n={n}: draw at least one question")
    return sorted(random.Random(seed).sample(range(rows), min(n, rows)))


def read(rows: Iterable[Mapping[str, Any]], columns: str = "plain") -> list[Question]:
    """Turn the rows of a data set into questions.

    Args:
        rows: a Hugging Face dataset, or any mappings.
        columns: "gsm8k" (question, answer with the result after ####), "arc" (question, choices, answerKey),
            "aqua" (question, options, correct), or "plain" (question, answer, and, if there are any, choices).

    Raises: BadInput: another name, a column that is missing, or an answer that is none of the choices.
    """
    if columns not in COLUMNS:
        raise BadInput(f"columns={columns!r}: allowed are {', '.join(COLUMNS)}")
    found = []
    for i, row in enumerate(rows):
        try:
            one = COLUMNS[columns](row)
        except (KeyError, IndexError, ValueError) as error:
            raise BadInput(
                f"row {i} is no {columns} row ({error!r}); its columns: {', '.join(map(str, row))}"
            ) from None
        if one.choices and one.answer not in one.letters:
            raise BadInput(f"row {i}: the answer {one.answer!r} is none of {', '.join(one.letters)}")
        found.append(one)
    return found


def prompt(question: Question, regime: Regime, ending: str | None = None) -> str:
    """The text that asks for an answer in one regime, without a chat template.

    The three regimes end in different words, and entropy at the last position moves mostly with those: give the same
    `ending` to all of them to compare it.

    Args: question. regime: "direct", "cot" or "babble". ending: the last words; by default those of the regime
        ("Answer:", "Solution:", "Stream of consciousness:").
    Raises: BadInput: another regime.
    Source: the regimes and endings of arXiv 2601.01011; the instructions are our own words.
    """
    if regime not in REGIMES:
        raise BadInput(f"regime={regime!r}: allowed are {', '.join(REGIMES)}")
    what = "the letter of the right choice" if question.choices else "the final number"
    ask = {
        "direct": f"Give only {what}, without working.",
        "cot": f"Work it out step by step, then write {what} after ####.",
        "babble": "Do not solve this problem. Write about a hundred words of whatever it brings to mind.",
    }[regime]
    lines = [ask, "", f"Problem: {question.text}"]
    lines += [f"{letter}. {text}" for letter, text in zip(question.letters, question.choices, strict=True)]
    return "\n".join([*lines, "", _ENDINGS[regime] if ending is None else ending])


_ENDINGS: Mapping[str, str] = {"direct": "Answer:", "cot": "Solution:", "babble": "Stream of consciousness:"}


def _gsm8k(row: Mapping[str, Any]) -> Question:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("no #### in the answer")
    return Question(row["question"], answer.strip().replace(",", ""))


def _arc(row: Mapping[str, Any]) -> Question:
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    return Question(row["question"], chr(ord("A") + list(labels).index(row["answerKey"])), tuple(texts))


def _aqua(row: Mapping[str, Any]) -> Question:
    options = tuple(re.sub(r"^\s*\(?[A-Z]\s*[).:]\s*", "", option) for option in row["options"])
    return Question(row["question"], row["correct"].strip().upper(), options)


def _plain(row: Mapping[str, Any]) -> Question:
    answer, choices = str(row["answer"]).strip(), tuple(row.get("choices") or ())
    if not choices:
        float(answer.replace(",", "").replace("$", ""))  # answers are compared as numbers
    return Question(row["question"], answer, choices)


#: How each data set names its columns.
COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], Question]] = {
    "plain": _plain,
    "gsm8k": _gsm8k,
    "arc": _arc,
    "aqua": _aqua,
}
