"""A trait to be found in a model: its name, what it means, instructions for and against it, and questions.

trait = Trait.load("formal.json")
trait.chats("positive")[0].messages     # [{system: "You are a formal assistant. ..."}, {user: "..."}]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from latentlens.errors import BadInput

Side = Literal["positive", "negative"]
TEMPLATE = "You are {article} {name} assistant. {instruction}"


class Asked(NamedTuple):
    """One prompt of a contrast: pair of instructions and question by index, and the chat."""

    pair: int
    question: int
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Trait:
    """A trait and the contrast that brings it out.

    name: an adjective. description: what it means, for a judge. antonym: the name on the negative side.
    pairs: (instruction for, instruction against); "" asks for nothing. questions: to extract the vector with.
    evaluation: questions kept for steering and monitoring. template: how name and instruction make a system prompt,
        with {article}, {name} and {instruction}; what comes out empty is left out of the chat.

    Raises: BadInput: no name, pairs or questions, or a question on both sides.
    """

    name: str
    description: str
    pairs: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    evaluation: tuple[str, ...] = ()
    antonym: str = "helpful"
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        """Check the parts."""
        pairs = tuple(tuple(map(str, pair)) for pair in self.pairs)
        object.__setattr__(self, "pairs", pairs)
        object.__setattr__(self, "questions", tuple(map(str, self.questions)))
        object.__setattr__(self, "evaluation", tuple(map(str, self.evaluation)))
        if not self.name.strip() or not self.pairs or not self.questions:
            raise BadInput("a trait needs a name, at least one pair of instructions and one question")
        if any(len(pair) != 2 or pair[0] == pair[1] for pair in pairs):
            raise BadInput(f"{self.name}: a pair is two different instructions, for the trait and against it")
        both = set(self.questions) & set(self.evaluation)
        if both:
            raise BadInput(f"{self.name}: question {min(both)!r} is among those to extract and those to evaluate with")

    @property
    def about(self) -> str:
        """Name and meaning in one line, for a judge."""
        return f"{self.name}: {self.description}" if self.description else self.name

    def system(self, side: Side, pair: int = 0) -> str:
        """The system prompt of one side.

        >>> Trait("angry", "", (("Shout.", ""),), ("Why?",)).system("positive")
        'You are an angry assistant. Shout.'
        """
        name = self.name if side == "positive" else self.antonym
        article = "an" if name[:1].lower() in "aeiou" else "a"
        parts = {"article": article, "name": name, "instruction": self.pairs[pair][0 if side == "positive" else 1]}
        text = self.template
        for field, value in parts.items():
            text = text.replace("{" + field + "}", value)
        return text.strip()

    def chats(self, side: Side) -> list[Asked]:
        """Every question under every instruction of one side, in the order pair x question."""
        return [
            Asked(p, q, asked(question, self.system(side, p)))
            for p in range(len(self.pairs))
            for q, question in enumerate(self.questions)
        ]

    @property
    def held_out(self) -> Trait:
        """The same contrast over the evaluation questions.

        Raises: BadInput: there are none.
        """
        return replace(self, questions=self.evaluation, evaluation=())

    def save(self, path: str | Path) -> Path:
        """Write JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, *, name: str = "", description: str = "", evaluation: Any = ()) -> Trait:
        """Read JSON: what `save` wrote, or a trait file of the persona vectors project.

        Such a file has `instruction` (a list of `pos` and `neg`) and `questions`, and its name in the file's name. Half
        of the questions go to `evaluation` when none are given.

        Args: name, description: in place of those of the file. evaluation: questions, for a file that has none.
        Raises: BadInput: not such a file.
        """
        path = Path(path)
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInput(f"trait {path}: {error}") from None
        return cls.of(read, name=name or path.stem, description=description, evaluation=evaluation, what=str(path))

    @classmethod
    def of(
        cls, read: Any, *, name: str, description: str = "", evaluation: Sequence[str] = (), what: str = "trait"
    ) -> Trait:
        """Build a trait from JSON values, as `load` does; `what` is for messages.

        Raises: BadInput.
        """
        if not isinstance(read, Mapping):
            raise BadInput(f"{what}: a JSON object is needed, with name, description, pairs and questions")
        pairs = read.get("pairs", read.get("instruction"))
        try:
            pairs = tuple((p["pos"], p["neg"]) if isinstance(p, Mapping) else tuple(p) for p in pairs or ())
            questions = tuple(read["questions"])
            given = tuple(read.get("evaluation") or evaluation)
        except (KeyError, TypeError):
            raise BadInput(
                f'{what}: needs "questions" (a list) and "pairs" ([for, against] each) or "instruction" (pos, neg each)'
            ) from None
        if not given and "instruction" in read and len(questions) > 1:
            questions, given = questions[: len(questions) // 2], questions[len(questions) // 2 :]
        return cls(
            str(read.get("name") or name),
            str(description or read.get("description") or ""),
            pairs,
            questions,
            given,
            str(read.get("antonym", "helpful")),
            str(read.get("template", TEMPLATE)),
        )


def asked(question: str, system: str = "") -> list[dict[str, str]]:
    """A chat with one question; no system turn where there is nothing to say."""
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": question}]
