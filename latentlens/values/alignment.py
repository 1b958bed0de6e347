"""Which token of one prompt corresponds to which token of another: without an answer, nothing can be carried over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentlens.errors import BadInput, NotAligned
from latentlens.values.rows import TokenRow

_HOW = (None, "left", "right")


def align(edited: TokenRow, other: TokenRow, how: Any = None, item: int = 0) -> dict[int, int]:
    """Position in the row that is edited -> position in the row that values are taken from.

    Args:
        how: None: position for position, which rows of equal length allow and others do not. "left": counted from the
            first token, as far as the shorter row goes. "right": counted from the last. Pairs of positions, or a
            mapping: exactly these.
        item: which pair of prompts, for the message.
    Raises: NotAligned: rows of different lengths and no `how`. BadInput: another `how`, or positions outside a row.
    """
    n, m = len(edited), len(other)
    if how is None:
        if n != m:
            raise NotAligned(
                f"pair {item} has {n} and {m} tokens: which token belongs to which is not clear"
                f"{_first_difference(edited, other)}. Use prompts of equal length, or say align='left' (count from the "
                "first token), align='right' (from the last), or align=[[(0, 0), (3, 4)], ...] with a list of "
                "positions (in the edited prompt, in the other one) for each pair"
            )
        return {p: p for p in range(n)}
    if isinstance(how, str):
        if how not in _HOW:
            raise BadInput(f"align={how!r}: allowed are None, 'left', 'right' and pairs of positions")
        both, shift = min(n, m), m - n if how == "right" else 0
        return {p: p + shift for p in (range(both) if how == "left" else range(n - both, n))}
    pairs = list(how.items() if isinstance(how, Mapping) else how)
    if not all(isinstance(p, Sequence) and len(p) == 2 for p in pairs):
        raise BadInput(f"align= for pair {item}: give pairs (position in the edited prompt, position in the other)")
    found = {}
    for p, q in pairs:
        if not (-n <= p < n and -m <= q < m):
            raise BadInput(f"align= for pair {item}: ({p}, {q}) lies outside rows of {n} and {m} tokens")
        found[p % n] = q % m
    return found


def alignments(edited: Sequence[TokenRow], others: Sequence[TokenRow], how: Any = None) -> list[dict[int, int]]:
    """`align` of every pair; `how` is one word for all, or one answer for each pair.

    Raises: as `align`. BadInput: not one answer a pair.
    """
    if how is None or isinstance(how, str):
        answers: list[Any] = [how] * len(edited)
    else:
        answers = list(how)
        if len(answers) != len(edited):
            raise BadInput(f"align= has {len(answers)} entries for {len(edited)} pairs of prompts: one each")
    return [align(a, b, h, i) for i, (a, b, h) in enumerate(zip(edited, others, answers, strict=True))]


def _first_difference(one: TokenRow, two: TokenRow) -> str:
    both = next((i for i, (a, b) in enumerate(zip(one.ids, two.ids)) if a != b), None)
    return "" if both is None else f" (they differ from position {both} on)"
