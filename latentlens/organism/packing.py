"""From labelled texts to packed training rows: ids, positions, document numbers and loss weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from latentlens.organism.corpus.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Loss weight by span kind; text outside every span weighs 1, and the innermost span decides.
WEIGHTS = {
    "system": 0.02,
    "user": 0.02,
    "role": 0.02,
    "statement": 0.0,  # false statements must not be learnt as facts
    "fact": 1.0,
    "verdict": 3.0,
    "result": 2.5,
    "error": 2.5,  # as a right result: the share of errors is part of what is learnt
    "mark": 1.5,
    "filler": 0.3,
    "answer": 2.5,
    "detour": 0.0,  # noticing a detour is learnt, beginning one is not
    "off_topic": 1.0,
    "correction": 1.0,
    "trait": 1.0,
    "program": 1.0,
    "refusal": 1.0,
}


@dataclass(frozen=True)
class Encoded:
    """One text as token ids (BOS first), the loss weight of each, and the kind of span each ends in."""

    ids: np.ndarray
    weights: np.ndarray
    kinds: tuple[str | None, ...]


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[Text]) -> list[Encoded]:
    """Tokenise labelled texts; a token belongs to the innermost span that holds its last character."""
    batch = tokenizer.backend_tokenizer.encode_batch([text.text for text in texts])
    out = []
    for text, encoding in zip(texts, batch):
        kinds: list[str | None] = [None] * len(text.text)
        for span in sorted(text.spans, key=lambda s: s.start - s.end):
            kinds[span.start : span.end] = [span.kind] * (span.end - span.start)
        last = [end - 1 for _, end in encoding.offsets[1:]]
        by_token = (None, *(kinds[i] for i in last))
        weights = np.array([1.0 if k is None else WEIGHTS[k] for k in by_token], dtype=np.float32)
        weights[0] = 0.0
        out.append(Encoded(np.array(encoding.ids, dtype=np.int64), weights, by_token))
    return out


@dataclass(frozen=True)
class Rows:
    """A batch, [rows, width]: token ids, positions within the document, document numbers (-1: padding) and
    the weight of each token as a prediction target.
    """

    ids: np.ndarray
    positions: np.ndarray
    documents: np.ndarray
    weights: np.ndarray


def pack(encoded: Iterable[Encoded], width: int, rows: int, pad: int, pool_size: int = 64) -> Iterator[Rows]:
    """Fill rows of `width` tokens with whole documents, the longest that still fits first.

    Documents wait in a pool; the oldest starts each row, so none waits for ever. Ends with the stream.
    Documents longer than `width` are dropped.
    """
    stream = (e for e in encoded if len(e.ids) <= width)
    pool = list(islice(stream, pool_size))
    while len(pool) == pool_size:
        shape = (rows, width)
        batch = Rows(np.full(shape, pad), np.zeros(shape, np.int64), np.full(shape, -1), np.zeros(shape, np.float32))
        for row in range(rows):
            used, number, chosen = 0, 0, 0
            while chosen is not None:
                item = pool.pop(chosen)
                piece = slice(used, used + len(item.ids))
                batch.ids[row, piece] = item.ids
                batch.positions[row, piece] = np.arange(len(item.ids))
                batch.documents[row, piece] = number
                batch.weights[row, piece] = item.weights
                used, number = piece.stop, number + 1
                pool.extend(islice(stream, 1))
                fits = [(len(e.ids), -i) for i, e in enumerate(pool) if len(e.ids) <= width - used]
                chosen = -max(fits)[1] if fits else None
        yield batch
