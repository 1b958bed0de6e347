"""Training texts of which only a part is learnt: token ids with labels, IGNORED where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentlens.errors import BadInput

#: The label that a cross-entropy leaves out.
IGNORED = -100


@dataclass(frozen=True)
class MaskedRow:
    """Token ids and, for each, the label: the id itself, or IGNORED."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the lengths, and that something is learnt."""
        if len(self.ids) != len(self.labels):
            raise BadInput(f"{len(self.ids)} ids and {len(self.labels)} labels: one each")
        if all(label == IGNORED for label in self.labels[1:]):
            raise BadInput("nothing in this row is learnt: every label after the first token is ignored")


def masked(prompt: Sequence[int], unlearnt: Sequence[int], learnt: Sequence[int]) -> MaskedRow:
    """A prompt, a part of the answer that is only read, and the part that is learnt.

    >>> masked([1, 2], [3, 4], [5, 6]).labels
    (-100, -100, -100, -100, 5, 6)

    The off-topic part of a correction must not be learnt, or the model learns to wander off; the loss begins at the
    acknowledgement. Source: ESR (arXiv 2602.06941), experiment 4.
    """
    ids = (*prompt, *unlearnt, *learnt)
    return MaskedRow(ids, (*[IGNORED] * (len(prompt) + len(unlearnt)), *learnt))


def mix(one: Sequence[MaskedRow], other: Sequence[MaskedRow], share: float, n: int, seed: int = 0) -> list[MaskedRow]:
    """N rows in random order, round(share n) of them from `one`, the rest from `other`; repeated where too few.

    Raises: BadInput: a share outside 0..1, or rows wanted of an empty side.
    """
    if not 0 <= share <= 1 or n < 1:
        raise BadInput(f"share={share} lies between 0 and 1, n={n} is at least 1")
    random = np.random.default_rng(seed)
    rows: list[MaskedRow] = []
    for side, count in ((one, round(share * n)), (other, n - round(share * n))):
        if count and not side:
            raise BadInput(f"{count} rows are wanted of a side that has none")
        order = [int(i) for _ in range(-(-count // max(len(side), 1))) for i in random.permutation(len(side))]
        rows += [side[i] for i in order[:count]]
    return [rows[int(i)] for i in random.permutation(len(rows))]
