"""Answers for and against a trait, written by the model and judged: what a persona vector is taken from.

found = contrast(lm, trait, judge, coherence, samples=10, folder="runs/formal")
kept  = ll.persona.keep(found)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.access.judging.judged_sweep import judged_sweep
from latentlens.errors import BadInput
from latentlens.values.judging import Judge
from latentlens.values.persona import Contrast, Pair, Reply
from latentlens.values.traits import Trait

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


def contrast(
    lm: LensModel,
    trait: Trait,
    judge: Judge,
    coherence: Judge,
    *,
    samples: int = 10,
    seed: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = 1000,
    folder: str | Path | None = None,
) -> Contrast:
    """Every question of a trait under every instruction, `samples` times, for and against; both judged.

    The two answers of a pair share the seed, the question and the number of the instruction.

    Args:
        judge, coherence: of the trait (it is given `trait.about`) and of the text. cached() ones are asked once.
        samples, seed, temperature, max_new_tokens: as the paper by default: 10, T=1, 1000 tokens.
        folder: where answers and verdicts are kept; a killed run goes on where it was.
    Raises: what `ll.sweep` and the judges raise.
    Source: Persona Vectors (arXiv 2507.21509), section 2.
    """
    if samples < 1:
        raise BadInput(f"samples={samples}: at least one answer a question")
    sides = [(side, asked) for side in ("positive", "negative") for asked in trait.chats(side)]
    chats = [asked.messages for _, asked in sides]
    prompts = lm.tokens(chats)
    frame = judged_sweep(
        lm, chats, {"": None}, range(seed, seed + samples), {"trait": judge, "coherence": coherence}, about=trait.about,
        folder=folder, nll=False, temperature=temperature, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    replies: dict[Any, Reply] = {}
    for line in frame.to_dict("records"):
        side, asked = sides[line["prompt_index"]]
        row = prompts[line["prompt_index"]].continued(tuple(line["generated"]))
        scores = (None if np.isnan(line[name]) else float(line[name]) for name in ("trait", "coherence"))
        replies[side, asked.pair, asked.question, line["seed"]] = Reply(row, line["text"], *scores)
    pairs = [
        Pair(p, q, int(s) - seed, reply, replies["negative", p, q, s])
        for (side, p, q, s), reply in replies.items()
        if side == "positive"
    ]
    about = {"model": lm.name, "judge": judge.name, "coherence": coherence.name, "temperature": temperature}
    return Contrast(trait, tuple(pairs), about={**about, "samples": samples, "rows run": frame.attrs["rows_run"]})
