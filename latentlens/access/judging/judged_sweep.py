"""Prompts x plans x seeds, written, judged and scored for fluency: the table that steering experiments start from.

frame = judged_sweep(lm, chats, {"none": None, "+2": ll.Add(v, 2.0)}, range(4), {"formal": judge}, about="formal: ...")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.access.generation.sweep import sweep
from latentlens.access.measures.doses import unsteered_nll
from latentlens.access.store.verdict_cache import cached
from latentlens.errors import BadInput
from latentlens.values.judging import Case, Judge

if TYPE_CHECKING:
    import pandas as pd

    from latentlens.access.model import LensModel


def judged_sweep(
    lm: LensModel,
    chats: Sequence[Sequence[Mapping[str, str]]],
    plans: Mapping[str, Any],
    seeds: Iterable[int],
    judges: Mapping[str, Judge],
    *,
    about: str | Mapping[str, str] = "",
    folder: str | Path | None = None,
    nll: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """`ll.sweep` with what judges say of every answer, and its likelihood under the unsteered model.

    A judge is given the last user turn as the prompt: what a system turn asked for stays hidden from it.

    Args:
        chats: prompts as lists of messages.
        plans, seeds, options: as for `ll.sweep`.
        judges: column -> judge.
        about: what all judges, or those of single columns, judge on: the trait with its description.
        folder: where rows and verdicts are kept; the same call goes on where it was killed.
        nll: add a column `nll`, nats a token under the unsteered model; NaN for an empty answer.
    Returns: the frame of `ll.sweep` with a column a judge (NaN: no judgement) and `nll`.
    Raises: what `ll.sweep` raises; BadInput: a judge of a name that the frame has.
    """
    chats = [[dict(message) for message in chat] for chat in chats]
    frame = sweep(lm, chats, plans, seeds, folder=None if folder is None else Path(folder) / "rollouts", **options)
    taken = [name for name in judges if name in frame.columns or name == "nll"]
    if taken:
        raise BadInput(f"a judge cannot be called {taken[0]!r}: the frame has such a column")
    asked = [last_question(chats[i]) for i in frame["prompt_index"]]
    for name, judge in judges.items():
        on = about if isinstance(about, str) else about.get(name, "")
        cases = [Case(prompt, text, on) for prompt, text in zip(asked, frame["text"], strict=True)]
        judge = judge if folder is None else cached(judge, Path(folder) / "verdicts")
        values = [score.value for score in judge.scores(cases)]
        frame[name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if nll:
        prompts = lm.tokens(chats)
        rows = [
            prompts[i].continued(tuple(ids)) for i, ids in zip(frame["prompt_index"], frame["generated"], strict=True)
        ]
        written = [i for i, row in enumerate(rows) if len(row) > row.n_prompt]
        found = np.full(len(rows), np.nan)
        if written:
            found[written] = unsteered_nll(lm, [rows[i] for i in written])
        frame["nll"] = found
    return frame


def last_question(chat: Sequence[Mapping[str, str]]) -> str:
    """What the user said last."""
    return next((str(m["content"]) for m in reversed(chat) if m["role"] == "user"), "")
