"""A number read from a model's answer: what an effect is measured in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput


@dataclass(frozen=True)
class LogitDifference:
    """m = mean logit of `right` minus mean logit of `wrong`, at the last position of the prompt.

    right, wrong: a token id, or a text that is one token (" Paris"); a tuple of several of them; or a LIST with one
        such entry for each item, where the answers differ.

    Source: a difference of logits and not of probabilities, as Zhang and Nanda (arXiv 2309.16042) advise.
    """

    right: Any
    wrong: Any


@dataclass(frozen=True, eq=False)
class ItemLogits:
    """A `LogitDifference` in token ids, one pair of sets for each item."""

    right: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]

    def fingerprint(self, item: int) -> str:
        """What it reads for one item."""
        return f"logits {list(self.right[item])} - {list(self.wrong[item])}"

    def __call__(self, logits: Tensor, items: Sequence[int]) -> Tensor:
        """(n, vocab) and the item of each row -> (n,)."""
        rows = [_mean(logits[i], self.right[k]) - _mean(logits[i], self.wrong[k]) for i, k in enumerate(items)]
        return torch.stack(rows) if rows else logits.new_empty(0)


@dataclass(frozen=True, eq=False)
class Custom:
    """A metric of a person's own: from the logits of the last position, (n, vocab) float32, to a number a row, (n,)."""

    function: Any

    def fingerprint(self, item: int) -> str | None:
        """`function.fingerprint` if it has one; None: its values are not kept."""
        found = getattr(self.function, "fingerprint", None)
        return None if found is None else f"custom {found}"

    def __call__(self, logits: Tensor, items: Sequence[int]) -> Tensor:
        """The function's own result, checked. Raises: BadInput: not one number a row."""
        value = self.function(logits)
        if not isinstance(value, Tensor) or value.shape != (len(logits),):
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BadInput(f"metric= must turn logits ({len(logits)}, vocab) into a tensor ({len(logits)},), not {got}")
        return value.float()


def _mean(logits: Tensor, tokens: tuple[int, ...]) -> Tensor:
    return logits[list(tokens)].mean()
