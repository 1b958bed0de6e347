"""One sequence as the model reads it, with a label for every token."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one unpadded row and what is known of each position.

    ids: token ids. n_prompt: positions below it are prompt, the rest was generated.
    role, turn: role and index of the chat message whose content the token belongs to ("" and -1 for
    template tokens and for plain text). special: token ids that the tokenizer calls special.
    """

    ids: tuple[int, ...]
    n_prompt: int
    role: tuple[str, ...]
    turn: tuple[int, ...]
    special: tuple[bool, ...]
    text: str = ""

    @classmethod
    def plain(cls, ids: tuple[int, ...], *, special_ids: frozenset[int] = frozenset(), text: str = "") -> TokenRow:
        """A row without chat structure, prompt throughout."""
        n = len(ids)
        return cls(ids, n, ("",) * n, (-1,) * n, tuple(i in special_ids for i in ids), text)

    def continued(self, generated: tuple[int, ...], special_ids: frozenset[int] = frozenset()) -> TokenRow:
        """The same row with generated tokens after it (role assistant, in a turn of their own)."""
        n, turn = len(generated), max(self.turn, default=-1) + 1
        return TokenRow(
            self.ids + generated,
            len(self.ids),
            self.role + ("assistant",) * n,
            self.turn + (turn,) * n,
            self.special + tuple(i in special_ids for i in generated),
            self.text,
        )

    def cut(self, keep: slice) -> TokenRow:
        """The positions inside a slice, with their labels; the text stays that of the whole row."""
        n_prompt = sum(i < self.n_prompt for i in range(len(self))[keep])
        return TokenRow(self.ids[keep], n_prompt, self.role[keep], self.turn[keep], self.special[keep], self.text)

    @property
    def prompt(self) -> TokenRow:
        """The row without what was generated."""
        return self if self.n_prompt == len(self) else self.cut(slice(0, self.n_prompt))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Content key of the row: sha256 over the token ids. Labels do not change activations."""
        return hashlib.sha256(np.asarray(self.ids, dtype="<i8").tobytes()).hexdigest()

    @property
    def labelled_digest(self) -> str:
        """Content key of the row with the labels that position selections read."""
        labels = f"{self.n_prompt}|{self.role}|{self.turn}|{self.special}"
        return hashlib.sha256((self.digest + labels).encode()).hexdigest()
