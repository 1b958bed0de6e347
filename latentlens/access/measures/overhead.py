"""What steering costs in time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from latentlens.access.model import LensModel


def overhead(
    lm: LensModel, prompts: Any, plans: Mapping[str, Any], *, tokens: int = 16, rounds: int = 5, base: str = "no edit"
) -> pd.DataFrame:
    """Time of greedy generation under each plan against none, in one batch, the plans taken in turns.

    Taking turns spreads what else the machine does over all of them, and each round is compared with its own base; the
    first round, which fills caches, is thrown away. Every row writes all its tokens, end-of-text or not.

    Args: plans: {"name": plan}; the unsteered run is added as `base`. tokens: written by each prompt. rounds: counted.
    Returns: one row a plan: plan, `microseconds a token` (median), `over no edit` (median ratio of a round to its
        base), `lowest`, `highest`, `rounds`.
    Raises: BadInput: no round or token. And what `lm.generate` raises.
    """
    import pandas as pd

    if rounds < 1 or tokens < 1:
        raise BadInput(f"rounds={rounds} and tokens={tokens} must be at least 1")
    every = {base: None, **plans}
    spent: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds + 1):
        for name, plan in every.items():
            start = time.perf_counter()
            runs = lm.generate(prompts, tokens, steer=plan, stop_ids=(), allow_idle=True)
            spent[name].append((time.perf_counter() - start) / (tokens * len(runs)) * 1e6)
    taken = {name: np.array(values[1:]) for name, values in spent.items()}
    rows = []
    for name, values in taken.items():
        ratio = values / taken[base]
        rows.append([name, *(float(f(v)) for f, v in ((np.median, values), (np.median, ratio), (np.min, ratio))),
                     float(ratio.max()), rounds])  # fmt: skip
    names = ["plan", "microseconds a token", f"over {base}", "lowest", "highest", "rounds"]
    return pd.DataFrame(rows, columns=names)
