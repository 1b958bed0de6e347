"""A training set scored along a trait vector before anything is trained on it.

scored = screen(lm, dataset, vector)              # three columns more: train, own, difference
scored.sort("difference", reverse=True)           # what to look at first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.access.generation.sweep import sweep
from latentlens.access.progress import Progress
from latentlens.errors import BadInput
from latentlens.values.directions import Direction

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

COLUMNS = ("own_response", "train_projection", "own_projection", "difference")


def screen(
    lm: LensModel,
    data: Any,
    direction: Direction,
    *,
    prompt: str = "prompt",
    response: str = "response",
    own: str | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    folder: str | Path | None = None,
    piece: int = 512,
) -> Any:
    """Projection of every training answer along a trait, minus that of the model's own answer to the same prompt.

        difference_i = (a(x_i, y_train_i) - a(x_i, y_own_i)) . v / |v|        a: mean state over the answer's tokens

    Both answers are read through the same chat template, as the assistant's last message. Rows are read in pieces, so
    that a data set of any size fits; with a folder a killed run goes on where it was.

    Args:
        lm: the model BEFORE training.
        data: a `datasets.Dataset`, a pandas frame, or a list of mappings.
        direction: the trait's, at its site.
        prompt: column with the prompt, a text or a list of messages; or with whole conversations that end with the
            training answer, when there is no column `response`.
        response: column with the training answer.
        own: column with the model's own answers, if they are there; None lets the model write them.
        temperature, max_new_tokens, seed: of its own answers. folder: where those are kept.
        piece: rows read at a time.
    Returns: what came, with the columns `own_response`, `train_projection`, `own_projection` and `difference`; a list
        comes back as a pandas frame. NaN where an answer is empty.
    Raises: BadInput: a column that is missing or already there. What `lm.activations` and `ll.sweep` raise.
    Source: Persona Vectors (arXiv 2507.21509), data screening.
    """
    chats, answers = _read(data, prompt, response)
    taken = set(COLUMNS) & set(list(data[0]) if isinstance(data, (list, tuple)) else _names(data))
    if taken:
        raise BadInput(
            f"the data has a column {min(taken)!r} already: drop what an earlier screening wrote, or rename it"
        )
    if own is None:
        how = {"temperature": temperature, "max_new_tokens": max_new_tokens, "folder": folder}
        texts = sweep(lm, chats, {"own": None}, [seed], **how)["text"].tolist()
    else:
        texts = [str(text or "") for text in _column(data, own)]
    found = {"train_projection": _projections(lm, chats, answers, direction, piece)}
    found["own_projection"] = _projections(lm, chats, texts, direction, piece)
    found["difference"] = found["train_projection"] - found["own_projection"]
    return _with_columns(data, {"own_response": texts, **found})


def _projections(
    lm: LensModel, chats: Sequence[Any], answers: Sequence[str], direction: Direction, piece: int
) -> np.ndarray:
    found = np.full(len(chats), np.nan)
    there = [i for i, answer in enumerate(answers) if answer.strip()]
    with Progress("screen", len(there), "row") as bar:
        for at in range(0, len(there), piece):
            part = there[at : at + piece]
            whole = [[*chats[i], {"role": "assistant", "content": answers[i]}] for i in part]
            acts = lm.activations(whole, sites=direction.site, where="turn:-1", pool="mean")
            found[part] = direction.project(acts[direction.site]).double().numpy()
            bar.update(len(part))
    return found


def _read(data: Any, prompt: str, response: str) -> tuple[list[list[dict[str, str]]], list[str]]:
    prompts = _column(data, prompt)
    if not prompts:
        raise BadInput("the data has no rows")
    chats = [[{"role": "user", "content": p}] if isinstance(p, str) else [dict(m) for m in p] for p in prompts]
    try:
        return chats, [str(text or "") for text in _column(data, response)]
    except BadInput:
        if any(not chat or chat[-1].get("role") != "assistant" for chat in chats):
            raise
    return [chat[:-1] for chat in chats], [str(chat[-1]["content"] or "") for chat in chats]


def _column(data: Any, name: str) -> list[Any]:
    if isinstance(data, (list, tuple)):
        if not all(isinstance(row, Mapping) for row in data):
            raise BadInput("a list of training rows holds mappings, such as {'prompt': ..., 'response': ...}")
        missing = [i for i, row in enumerate(data) if name not in row]
        if missing:
            raise BadInput(f"row {missing[0]} has no {name!r}; it has {', '.join(map(str, data[missing[0]]))}")
        return [row[name] for row in data]
    if name not in _names(data):
        raise BadInput(f"the data has no column {name!r}; it has {', '.join(map(str, _names(data))) or 'none'}")
    return list(data[name])


def _names(data: Any) -> list[Any]:
    return list(getattr(data, "column_names", getattr(data, "columns", [])))


def _with_columns(data: Any, columns: Mapping[str, Any]) -> Any:
    if hasattr(data, "add_column"):  # a datasets.Dataset
        for name, values in columns.items():
            data = data.add_column(name, list(values))
        return data
    import pandas as pd

    return pd.DataFrame(data).assign(**columns)
