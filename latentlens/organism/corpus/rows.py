"""Labelled texts as rows: one flat record for each text, the same columns in every family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentlens.organism.corpus.text import Text

if TYPE_CHECKING:
    from datasets import Dataset, Features

#: Columns that hold one value or None, by type.
COLUMNS: dict[str, str] = {
    "family": "string",
    "text": "string",
    "regime": "string",
    "form": "string",
    "answer": "string",
    "correct": "bool",
    "difficulty": "int64",
    "statement": "string",
    "truth": "bool",
    "negated": "bool",
    "held_out": "bool",
    "group": "string",
    "topic": "string",
    "off_topic": "string",
    "language": "string",
    "trait": "string",
    "grade": "int64",
    "harmful": "bool",
    "refused": "bool",
    "codeword": "bool",
    "seed": "string",
}


def record(text: Text) -> dict[str, Any]:
    """Return one text as plain values: `COLUMNS`, and `messages`, `prompt`, `spans`, `steps`.

    A span is start, end (exclusive), kind and the characters it covers. In a chat that mixes families the labels
    are None, and `parts` holds, for each exchange, the labels that apply to it, as JSON.
    """
    parts = [{k: v for k in COLUMNS if (v := getattr(part, k)) is not None and k != "text"} for part in text.parts]
    return {
        **{name: getattr(text, name) for name in COLUMNS},
        "messages": text.messages(),
        "prompt": text.prompt(),
        "spans": [
            {"start": s.start, "end": s.end, "kind": s.kind, "text": text.text[s.start : s.end]} for s in text.spans
        ],
        "steps": None if text.steps is None else list(text.steps),
        "parts": [json.dumps(part) for part in parts],
    }


def _features() -> Features:
    from datasets import Features, List, Value

    turns = List({"role": Value("string"), "content": Value("string")})
    span = {"start": Value("int64"), "end": Value("int64"), "kind": Value("string"), "text": Value("string")}
    more = {"steps": List(Value("int64")), "parts": List(Value("string"))}
    return Features(
        {name: Value(kind) for name, kind in COLUMNS.items()}
        | {"messages": turns, "prompt": turns, "spans": List(span)}
        | more
    )


def dataset(texts: Sequence[Text]) -> Dataset:
    """Return the texts as a `datasets.Dataset` with the columns of `record`, the same for every family."""
    from datasets import Dataset

    features = _features()
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for text in texts:
        for name, value in record(text).items():
            columns[name].append(value)
    return Dataset.from_dict(columns, features=features)
