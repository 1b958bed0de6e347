"""A short training on answers, to see what it does to a trait: all weights of a copy, steered or not meanwhile.

rows = read_answers("formal.jsonl", 120)
tuned = train_on_answers(lm, rows, steps=40, plan=ll.Add(vector, 4.0))          lm itself is left as it was
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentlens.access.editing.preventative import preventing
from latentlens.access.model import load
from latentlens.access.progress import Progress
from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.traits import asked

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

#: Rows of a step, and AdamW's rate.
BATCH, RATE = 12, 3e-4


def read_answers(path: str | Path, n: int) -> list[dict[str, str]]:
    """The first n prompts with answers of a file of JSON lines, `{"prompt": ..., "response": ...}`.

    Raises: BadInput: no such file, no JSON, or a line without them. TooFewExamples: fewer lines.
    """
    path = Path(path)
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"answers {path}: {error}") from None
    for number, row in enumerate(found[:n], start=1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "response")):
            raise BadInput(f'answers {path}, line {number}: give {{"prompt": "...", "response": "..."}}')
    if len(found) < n:
        raise TooFewExamples(f"answers {path}: {len(found)} lines, {n} are asked for")
    return found[:n]


def train_on_answers(
    lm: LensModel, data: Sequence[Mapping[str, str]], steps: int, *, seed: int = 0, plan: Any = None
) -> LensModel:
    """A copy of a model after a few steps of AdamW on the answers' tokens, their end among them.

    Args: data: prompts and responses. steps: of `BATCH` rows drawn with replacement. plan: in force at every position
        while it is trained (`ll.preventing`), and not afterwards. seed: of the draws.
    Returns: the copy, in evaluation mode, without a cache.
    Raises: TooFewExamples: no rows. What `preventing` raises.
    """
    if not data:
        raise TooFewExamples("no answers to train on")
    model = load(copy.deepcopy(lm.model), tokenizer=lm.tokenizer, cache=False)
    rows = lm.tokens([[*asked(d["prompt"]), {"role": "assistant", "content": d["response"]}] for d in data])
    rng, device = np.random.default_rng(seed), model.layout.device
    optimiser = torch.optim.AdamW(model.model.parameters(), lr=RATE, weight_decay=0.0)
    model.model.train()
    with preventing(model, plan) if plan else nullcontext(), Progress("train", steps, "step") as bar:
        for _ in range(steps):
            picked = [rows[i] for i in rng.choice(len(rows), BATCH)]
            ids = torch.zeros(BATCH, max(map(len, picked)), dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for i, row in enumerate(picked):
                ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row.ids), 1
                said = [p for p in range(1, len(row)) if "assistant" in row.role[p - 1 : p + 1]]  # and its end
                labels[i, said] = ids[i, said]
            batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            model.model(**{name: values.to(device) for name, values in batch.items()}).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            bar.update(1)
    model.model.eval()
    return model
