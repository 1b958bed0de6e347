"""Whole numbers from 0 to 100 as tokens: which tokens write digits, and the probability of every number.

Where a number is one token, the first token of the answer tells it. Where it is several ("1", "0", "0"), the answer
"10" is the path 1, 0 and then anything but a digit: the probabilities of all such paths add up to that of the number.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

HIGHEST = 100


class NumberTokens:
    """What each token of a vocabulary adds to a number.

    whole: tokens that are a number from 0 to 100, a space before it allowed: id -> number as text.
    digits: tokens that a number goes on with: id -> digits.
    blank: tokens that are nothing but spaces or line ends.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        special = set(tokenizer.all_special_ids)
        pieces = tokenizer.convert_ids_to_tokens(list(range(min(vocab_size, len(tokenizer)))))
        marked = any(piece is not None and re.fullmatch(r"##[a-z0-9]+", piece) for piece in pieces)  # WordPiece
        self.whole: dict[int, str] = {}
        self.digits: dict[int, str] = {}
        self.blank: list[int] = []
        for token, piece in enumerate(pieces):
            if token in special or piece is None:
                continue
            goes_on = marked and piece.startswith("##")
            text = piece[2:] if goes_on else _written(piece)
            bare = text.strip()
            if not bare and text:
                self.blank.append(token)
            elif re.fullmatch(r"[0-9]+", bare):
                if goes_on or (not marked and text[0].isdigit()):
                    self.digits[token] = bare
                if not goes_on and _is_in_range(bare):
                    self.whole[token] = bare

    def split_numbers(self) -> list[int]:
        """Numbers from 0 to 100 that no single token writes."""
        known = set(self.whole.values())
        return [n for n in range(HIGHEST + 1) if str(n) not in known]

    def first(self, p: Tensor, top: int | None = None) -> dict[str, float]:
        """Number -> probability, from the distribution of the first token alone.

        Args: p: (vocab,). top: count only the so many likeliest tokens.
        """
        if top is not None and top < len(p):
            best = p.topk(top)
            p = torch.zeros_like(p).scatter(0, best.indices, best.values)
        found: dict[str, float] = defaultdict(float)
        for number, q in zip(self.whole.values(), _at(p, self.whole), strict=True):
            found[number] += q
        return dict(found)


class DigitTrie:
    """Probability of every number over all ways of writing it in tokens.

        p(n) = sum over token paths that spell n of  prod_t p(token_t | path so far) (1 - p(digit | path))

    One token of spaces before the number is allowed. Branches whose probability is below `tolerance` are dropped: the
    mass is then a lower bound, short by at most what was dropped.

    Args: tokens: of the vocabulary. ask: applies a function to the next-token probabilities after each of several rows.
        tolerance: see above.
    """

    def __init__(
        self,
        tokens: NumberTokens,
        ask: Callable[[Sequence[Sequence[int]], Callable[[Tensor], Any]], list[Any]],
        tolerance: float,
    ) -> None:
        self.tokens, self.ask, self.tolerance = tokens, ask, tolerance
        starts = tokens.digits | tokens.whole
        self._steps = {"start": starts, "more": tokens.digits, "blank": dict.fromkeys(tokens.blank, "")}

    def probabilities(self, rows: Sequence[Sequence[int]]) -> list[dict[str, float]]:
        """Number -> probability, for every row; all rows together, one token deeper at a time."""
        found: list[dict[str, float]] = [defaultdict(float) for _ in rows]
        level = [(i, tuple(row), "", 1.0, False) for i, row in enumerate(rows)]
        while level:
            read = self.ask([ids for _, ids, *_ in level], lambda p: {k: _at(p, s) for k, s in self._steps.items()})
            below = []
            for (i, ids, number, p, blank), after in zip(level, read, strict=True):
                if number:
                    found[i][number] += p * (1 - sum(after["more"]))
                kinds = ("more",) if number or blank else ("start", "blank")
                for kind in kinds:
                    for (token, text), q in zip(self._steps[kind].items(), after[kind], strict=True):
                        longer = number + text
                        if p * q >= self.tolerance and (kind == "blank" or _is_in_range(longer)):
                            below.append((i, (*ids, token), longer, p * q, blank or kind == "blank"))
            level = below
        return [dict(numbers) for numbers in found]


def _at(p: Tensor, tokens: Any) -> list[float]:
    return p[torch.tensor(list(tokens), dtype=torch.long)].tolist() if tokens else []


def _is_in_range(number: str) -> bool:
    return str(int(number)) == number and int(number) <= HIGHEST


def _written(piece: str) -> str:
    """The text of a token as it stands in the vocabulary, spaces as spaces."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
        return chr(int(piece[3:5], 16))
    return piece.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n").replace("ĉ", "\t")
