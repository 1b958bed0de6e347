"""Which entries of the tensor inside a running forward are meant by `where`, row by row.

Everything here is known on the host before the forward starts (lengths, positions, roles, sampled tokens), so it is
numpy on small arrays, and no value is ever fetched back from an accelerator to decide where an edit acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentlens.values.rows import TokenRow
from latentlens.values.where import Where, continued, steered_prompt


@dataclass(frozen=True)
class Frame:
    """What a forward holds: batch row x column.

    rows: (b,) which row of the whole call each batch row is. positions: (b, t) position in the unpadded row, -1 for
    padding. special: (b, t) whether a generated special token stands there; None where nobody asks. sentences: (b, t)
    index of the generated sentence. open: (b,) whether the row is still being written (edits of finished rows, which
    run along, are not counted).
    """

    rows: np.ndarray
    positions: np.ndarray
    special: np.ndarray | None = None
    sentences: np.ndarray | None = None
    open: np.ndarray | None = None

    @classmethod
    def of_rows(cls, rows: Sequence[TokenRow], width: int, ends: frozenset[int] = frozenset()) -> Frame:
        """Whole rows, padded on the right."""
        columns = np.arange(width)
        lengths = np.array([len(row) for row in rows])
        positions = np.where(columns[None] < lengths[:, None], columns[None], -1)
        special = np.zeros(positions.shape, dtype=bool)
        sentences = np.zeros(positions.shape, dtype=np.int64)
        for i, row in enumerate(rows):
            special[i, : len(row)] = row.special
            if ends:
                sentences[i, : len(row)] = sentence_index(row.ids, row.n_prompt, ends)
        return cls(np.arange(len(rows)), positions, special, sentences)


def sentence_index(ids: Sequence[int] | np.ndarray, n_prompt: int, ends: frozenset[int]) -> np.ndarray:
    """Index of the generated sentence that each token belongs to, (..., t); a sentence ends with its last token."""
    ids = np.asarray(ids, dtype=np.int64)
    closes = (np.isin(ids, list(ends)) & (np.arange(ids.shape[-1]) >= n_prompt)).astype(np.int64)
    return np.cumsum(closes, axis=-1) - closes


class Selector:
    """The positions of one `where` per row, as a table that grows while rows are written.

    Args: wheres: per row of the call; None selects nothing there. prompts: the rows as they are when generation starts.
    Attributes: reads_special: whether it asks which generated tokens are special.
    """

    def __init__(self, wheres: Sequence[Where | None], prompts: Sequence[TokenRow]) -> None:
        self._wheres, self._prompts = list(wheres), [row.prompt for row in prompts]
        self.n_prompt = np.array([len(row) for row in self._prompts])
        self._always = all(where is not None and where.kind == "all" for where in self._wheres)
        self.reads_special = any("content" in str(where) for where in self._wheres if where is not None)
        self._table = np.zeros((len(self._wheres), 0), dtype=bool)
        self._special = self._table  # the same, for positions where a special token was generated
        self._order: np.ndarray | None = None

    def mask(self, frame: Frame) -> np.ndarray:
        """(b, t) bool: which entries of the forward are selected."""
        present = frame.positions >= 0
        if self._always:
            return present
        self._grow(int(frame.positions.max()) + 1)
        at = (frame.rows[:, None], np.maximum(frame.positions, 0))
        chosen = self._table[at]
        if self.reads_special and frame.special is not None:
            chosen = np.where(frame.special, self._special[at], chosen)
        return chosen & present

    def order(self, frame: Frame) -> np.ndarray:
        """(b, t) int: how many selected positions of the row come before each position."""
        self._grow(int(frame.positions.max()) + 1)
        if self._order is None:
            self._order = np.cumsum(self._table, axis=1) - self._table
        return self._order[frame.rows[:, None], np.maximum(frame.positions, 0)]

    def _grow(self, length: int) -> None:
        if length <= self._table.shape[1]:
            return
        length = max(length, 2 * self._table.shape[1], 64)
        self._table = np.zeros((len(self._wheres), length), dtype=bool)
        self._special = self._table.copy() if self.reads_special else self._table
        self._order = None
        for i, (where, prompt) in enumerate(zip(self._wheres, self._prompts, strict=True)):
            if where is None:
                continue
            n = min(len(prompt), length)
            self._table[i, :n] = steered_prompt(where, prompt)[:n]
            after = np.arange(n, length)
            self._table[i, n:] = continued(where, prompt, after, np.zeros(len(after), dtype=bool))
            if self.reads_special:
                self._special[i, :n] = self._table[i, :n]
                self._special[i, n:] = continued(where, prompt, after, np.ones(len(after), dtype=bool))
