"""A generated text: what the model reads, and everything that is known about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")


def marker(role: str) -> str:
    """Return the special token that opens a turn: `<|user|>`."""
    return f"<|{role}|>"


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of `Text.text`, and what they are.

    Kinds: `system`, `user` (whole turns), `role` (the assistant marker), `statement`, `fact` (a value
    that is the entity's real one), `verdict`, `result` (of one step), `error` (a wrong result), `mark` (the
    word after a hurried step), `filler`, `answer`, `off_topic`, `detour` (the off-topic sentence that begins
    a detour), `correction`, `trait` (a word that shows one), `program`, `refusal`.
    """

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Text:
    """One generated text with its labels; a label that does not apply is None.

    `text` is exactly what the tokenizer turns into ids (after BOS): role markers included for a chat, so
    spans point into one string. `turns` is empty for plain text. `parts` are the exchanges of a chat that
    mixes families, each with its own labels.

    Example:
        >>> from latentlens.organism import draw
        >>> one = draw("truth", 1, seed=0)[0]
        >>> one.messages()[0]["role"], type(one.truth)
        ('user', <class 'bool'>)
    """

    family: str
    text: str
    turns: tuple[tuple[str, str], ...] = ()
    spans: tuple[Span, ...] = ()
    regime: str | None = None
    answer: str | None = None
    difficulty: int | None = None
    steps: tuple[int, ...] | None = None
    statement: str | None = None
    truth: bool | None = None
    negated: bool | None = None
    held_out: bool | None = None
    group: str | None = None
    topic: str | None = None
    off_topic: str | None = None
    form: str | None = None
    correct: bool | None = None
    language: str | None = None
    trait: str | None = None
    grade: int | None = None
    harmful: bool | None = None
    refused: bool | None = None
    codeword: bool | None = None
    parts: tuple[Text, ...] = ()
    seed: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """Return the whole chat, as `apply_chat_template` takes it."""
        return [{"role": role, "content": content} for role, content in self.turns]

    def prompt(self) -> list[dict[str, str]]:
        """Return the chat without its final assistant turn: what to generate from."""
        turns = self.messages()
        return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns

    def find(self, kind: str) -> list[str]:
        """Return the substrings that the spans of `kind` cover, in order."""
        return [self.text[s.start : s.end] for s in self.spans if s.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (a row of a data set)."""
        return {**asdict(self), "messages": self.messages()}


class Draft:
    """Writes a text piece by piece, and remembers where each labelled piece lies.

    Example:
        >>> draft = Draft()
        >>> with draft.turn("user"):
        ...     draft.add("How many?")
        >>> with draft.turn("assistant"):
        ...     draft.add("The answer is ")
        ...     draft.add("7", "answer")
        >>> draft.finish("arithmetic").find("answer")
        ['7']
    """

    def __init__(self) -> None:
        self._text = ""
        self._spans: list[Span] = []
        self._turns: list[tuple[str, str]] = []

    def add(self, piece: str, kind: str | None = None) -> None:
        """Append `piece`; a labelled piece loses its leading spaces from the span."""
        start = len(self._text) + len(piece) - len(piece.lstrip(" "))
        self._text += piece
        if kind is not None:
            self._spans.append(Span(start, len(self._text), kind))

    def label(self, words: frozenset[str], kind: str) -> None:
        """Label every one of `words` (lower case) in what is written so far."""
        for found in re.finditer(r"[A-Za-z]+", self._text):
            if found[0].lower() in words:
                self._spans.append(Span(found.start(), found.end(), kind))

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Label everything that is added inside."""
        start = len(self._text)
        yield
        self._spans.append(Span(start, len(self._text), kind))

    @contextmanager
    def turn(self, role: str) -> Iterator[None]:
        """Open a chat turn, and close it with the end token."""
        opened = len(self._text)
        self._text += marker(role)
        start = len(self._text)
        yield
        self._turns.append((role, self._text[start:]))
        self._text += END
        if role == "assistant":
            self._spans.append(Span(opened, start, "role"))
        else:
            self._spans.append(Span(opened, len(self._text), role))

    def finish(self, family: str, **labels: Any) -> Text:
        """Freeze the text with its labels."""
        spans = tuple(sorted(self._spans, key=lambda s: (s.start, -s.end)))
        return Text(family, self._text, tuple(self._turns), spans, **labels)


def join(parts: Sequence[Text], family: str, **labels: Any) -> Text:
    """Write several chats one after the other as one chat, their spans moved along."""
    text, spans, turns = "", [], []
    for part in parts:
        spans += [Span(s.start + len(text), s.end + len(text), s.kind) for s in part.spans]
        turns += part.turns
        text += part.text
    return Text(family, text, tuple(turns), tuple(spans), parts=tuple(parts), **labels)
