"""Which positions of a row: the same words select for capture and for steering.

Positions count in the UNPADDED row; negative ones from its end.

    all            every token                     last           the last token
    prompt         tokens that were given          response       tokens that were generated
    last_prompt    the last token that was given   first-3 last-3 three tokens from either end
    role:user      tokens of that chat role        turn:-1        tokens of that chat message
    content        everything but special tokens
    5, -2, [0, 5]  positions                       slice(2, 9)    a range
    a bool mask    one value per token             PerRow([...])  one of the above per row
    last_prompt+response                           what any of several selects
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from latentlens.errors import WhereNotValid
from latentlens.values.rows import TokenRow

_WORDS = ("all", "last", "prompt", "response", "last_prompt", "content")
_COUNTED = re.compile(r"(first|last)-(\d+)")


@dataclass(frozen=True)
class Where:
    """A selection of positions. Build it with `Where.of(...)` from any of the spellings above.

    >>> Where.of("last").positions(TokenRow.plain((5, 6, 7)))
    (2,)
    """

    kind: str
    args: tuple[Any, ...] = ()

    @classmethod
    def of(cls, spec: Any) -> Where:
        """Read a word, an index, a list, a slice, a mask or a Where.

        Raises: WhereNotValid: none of these; the message lists them.
        """
        if isinstance(spec, Where):
            return spec
        if isinstance(spec, bool):
            raise WhereNotValid(_cannot_read(spec))
        if isinstance(spec, int):
            return cls("index", (spec,))
        if isinstance(spec, slice):
            return cls("slice", (spec.start, spec.stop, spec.step))
        if isinstance(spec, str):
            return cls._of_word(spec)
        tolist = getattr(spec, "tolist", None)
        if tolist is not None or isinstance(spec, Sequence):
            values = tolist() if tolist is not None else list(spec)
            if values and all(isinstance(v, bool) for v in values):
                return cls("mask", tuple(values))
            if values and all(isinstance(v, int) and not isinstance(v, bool) for v in values):
                return cls("index", tuple(values))
        raise WhereNotValid(_cannot_read(spec))

    @classmethod
    def _of_word(cls, word: str) -> Where:
        if "+" in word:
            return cls("any", tuple(cls._of_word(part.strip()) for part in word.split("+")))
        if word in _WORDS:
            return cls(word)
        if counted := _COUNTED.fullmatch(word):
            if int(counted[2]) == 0:
                raise WhereNotValid(f"where={word!r} selects nothing: count from 1")
            return cls(counted[1] + "_k", (int(counted[2]),))
        if word.startswith("role:") and len(word) > 5:
            return cls("role", (word[5:],))
        if re.fullmatch(r"turn:-?\d+", word):
            return cls("turn", (int(word[5:]),))
        raise WhereNotValid(_cannot_read(word))

    def positions(self, row: TokenRow) -> tuple[int, ...]:
        """Selected positions of one row, ascending, without repeats.

        Raises: WhereNotValid: an index outside the row, or nothing selected.
        """
        n = len(row)
        found = self.positions_or_none(row)
        if not found:
            raise WhereNotValid(f"where={str(self)!r} selects no token of a row of {n} tokens{_why_empty(self, row)}")
        return found

    def positions_or_none(self, row: TokenRow) -> tuple[int, ...]:
        """Like `positions`, but an empty selection is no error."""
        n = len(row)
        return tuple(sorted({self._inside(i, n) for i in self._raw(row)}))

    def _raw(self, row: TokenRow) -> Sequence[int]:
        n = len(row)
        match self.kind:
            case "all":
                return range(n)
            case "last":
                return [n - 1] if n else []
            case "prompt":
                return range(row.n_prompt)
            case "response":
                return range(row.n_prompt, n)
            case "last_prompt":
                return [row.n_prompt - 1] if row.n_prompt else []
            case "content":
                return [i for i in range(n) if not row.special[i]]
            case "first_k":
                return range(min(self.args[0], n))
            case "last_k":
                return range(max(n - self.args[0], 0), n)
            case "role":
                return [i for i in range(n) if row.role[i] == self.args[0]]
            case "turn":
                wanted = self.args[0]
                if wanted < 0:
                    wanted += max(row.turn, default=-1) + 1
                return [i for i in range(n) if row.turn[i] == wanted]
            case "any":
                return [i for part in self.args for i in part._raw(row)]
            case "index":
                return self.args
            case "slice":
                return range(n)[slice(*self.args)]
            case "mask":
                if len(self.args) != n:
                    raise WhereNotValid(f"the mask has {len(self.args)} values, the row {n} tokens")
                return [i for i in range(n) if self.args[i]]
        raise WhereNotValid(_cannot_read(self))

    @staticmethod
    def _inside(i: int, n: int) -> int:
        if not -n <= i < n:
            raise WhereNotValid(f"no position {i} in a row of {n} tokens (0 to {n - 1}, or -{n} to -1)")
        return i % n

    def __str__(self) -> str:
        match self.kind:
            case "first_k" | "last_k":
                return f"{self.kind[:-2]}-{self.args[0]}"
            case "role" | "turn":
                return f"{self.kind}:{self.args[0]}"
            case "any":
                return "+".join(map(str, self.args))
            case "index":
                return str(self.args[0] if len(self.args) == 1 else list(self.args))
            case "slice":
                return str(slice(*self.args))
            case "mask":
                return f"mask({sum(self.args)} of {len(self.args)})"
        return self.kind


@dataclass(frozen=True)
class PerRow:
    """One selection per row, in the order of the rows: `PerRow([3, "last", slice(0, 4)])`."""

    wheres: tuple[Where, ...]

    def __init__(self, specs: Sequence[Any]) -> None:
        object.__setattr__(self, "wheres", tuple(Where.of(spec) for spec in specs))


def resolve(where: Any, rows: Sequence[TokenRow]) -> list[tuple[int, ...]]:
    """Positions of every row; `mean` means all (its pooling is the caller's)."""
    if isinstance(where, PerRow):
        if len(where.wheres) != len(rows):
            raise WhereNotValid(f"PerRow has {len(where.wheres)} selections for {len(rows)} rows")
        return [w.positions(row) for w, row in zip(where.wheres, rows, strict=True)]
    one = Where.of(where)
    return [one.positions(row) for row in rows]


def steered_positions(where: Where, row: TokenRow) -> tuple[int, ...]:
    """Positions of a row at which an intervention acts, whether the row was given whole or is being generated.

    A selection is resolved in the prompt when generation starts; `all`, `response`, `content`, the role
    assistant and open slices then go on into what is generated, token by token, while `last`, `last-3` and negative
    positions stay where they were. So a cached decode and a recomputation of the same row edit the same tokens.
    """
    n = row.n_prompt
    inside = np.flatnonzero(steered_prompt(where, row.prompt))
    after = np.arange(n, len(row))
    chosen = continued(where, row, after, np.array(row.special[n:], dtype=bool))
    return (*inside.tolist(), *after[chosen].tolist())


def steered_prompt(where: Where, prompt: TokenRow) -> np.ndarray:
    """Which positions of a prompt an intervention edits, (n,) bool; indices beyond it are no error here."""
    n = len(prompt)
    mask = np.zeros(n, dtype=bool)
    if where.kind == "any":
        return mask | np.any([steered_prompt(part, prompt) for part in where.args], axis=0)
    if where.kind == "index":
        where = replace(where, args=tuple(i for i in where.args if i < n))
    if where.kind != "response" and (where.kind != "index" or where.args):
        mask[list(where.positions_or_none(prompt))] = True
    return mask


def continued(where: Where, prompt: TokenRow, positions: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Which generated positions (at or after `prompt.n_prompt`) a selection covers, (n,) bool.

    Args: special: whether a special token stands there, (n,) bool.
    """
    always, never = np.ones(len(positions), dtype=bool), np.zeros(len(positions), dtype=bool)
    match where.kind:
        case "all" | "response":
            return always
        case "content":
            return ~special
        case "role":
            return always if where.args[0] == "assistant" else never
        case "turn":
            return always if where.args[0] == max(prompt.turn[: prompt.n_prompt], default=-1) + 1 else never
        case "any":
            return np.any([continued(part, prompt, positions, special) for part in where.args], axis=0)
        case "index":
            return np.isin(positions, where.args)
        case "slice":
            start, stop, step = where.args
            start, step = start or 0, step or 1
            if start < 0 or step < 0 or (stop is not None and stop < 0):
                return never
            inside = (positions >= start) & ((positions - start) % step == 0)
            return inside if stop is None else inside & (positions < stop)
    return never


def _why_empty(where: Where, row: TokenRow) -> str:
    if where.kind == "response":
        return ": nothing was generated. Give rollouts (lm.generate) to select a response"
    if where.kind in ("role", "turn"):
        roles = sorted({r for r in row.role if r})
        return f": its roles are {', '.join(roles)}" if roles else ": it is not a chat"
    return ""


def _cannot_read(spec: Any) -> str:
    return (
        f"cannot read where={spec!r}. Allowed: {', '.join(_WORDS)}, first-k, last-k, role:NAME, turn:N, "
        "an index, a list of indices, a slice, a bool mask, a sum such as last_prompt+response, or PerRow([...])"
    )
