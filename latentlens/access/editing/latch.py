"""What is decided once per row, on its prompt, and kept while the row is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentlens.access.editing.selector import Frame, Selector
from latentlens.errors import BadInput, WhereNotValid
from latentlens.values.rows import TokenRow
from latentlens.values.where import Where, steered_prompt


class Latch:
    """The mean state of chosen prompt positions of each row, read in the forward that holds its prompt.

    Args: wheres: per row of the call the positions, None where nothing is to be read. rows: the rows. who: what reads,
        for messages.
    Raises: WhereNotValid: a selection has nothing in its prompt.
    """

    def __init__(self, wheres: Sequence[Where | None], rows: Sequence[TokenRow], who: str) -> None:
        self.selector, self.who = Selector(wheres, rows), who
        self._expected = np.zeros(len(rows), dtype=np.int64)
        for i, (where, row) in enumerate(zip(wheres, rows, strict=True)):
            if where is not None:
                self._expected[i] = steered_prompt(where, row.prompt).sum()
                if not self._expected[i]:
                    raise WhereNotValid(f"{who} reads where={where}: nothing in prompt {i}")
        self._index: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._expected)

    def announce(self, frame: Frame, device: torch.device) -> None:
        """Find the positions to read in the next forward.

        Raises: BadInput: they do not all lie in it.
        """
        self._index = None
        mask = self.selector.mask(frame) & (frame.positions < self.selector.n_prompt[frame.rows][:, None])
        found = mask.sum(1)
        if not found.any():
            return
        reading = found > 0
        if (found[reading] != self._expected[frame.rows][reading]).any():
            raise BadInput(
                f"{self.who} decides once per row and needs its whole prompt in one forward: no prefill chunks"
            )
        flat = np.flatnonzero(mask)
        segment = (np.cumsum(reading) - 1)[flat // mask.shape[1]]
        arrays = (flat, segment, frame.rows[reading])
        a, b, c = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
        self._index = (a, b, c)

    def means(self, flat: Tensor) -> tuple[Tensor, Tensor] | None:
        """(rows, their mean states in float32) of the running forward; None where it holds no prompt."""
        if self._index is None:
            return None
        index, segment, rows = (t.to(flat.device) for t in self._index)
        total = torch.zeros(len(rows), flat.shape[-1], dtype=torch.float32, device=flat.device)
        total.index_add_(0, segment, flat.index_select(0, index).float())
        return rows, total / torch.bincount(segment, minlength=len(rows))[:, None]
