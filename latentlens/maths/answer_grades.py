"""Grades of answers from 0 to 2, and how several become one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples

#: Nats above what the model itself writes up to which an answer is fluent, and somewhat fluent.
FLUENT, SOMEWHAT = 0.5, 2.0
_LOOP = 5  # identical words, or pairs of words, in a row


def harmonic_mean(*scores: ArrayLike) -> NDArray[np.float64]:
    """Harmonic mean of scores from 0 to 2, element by element; 0 where any is 0, and NaN scores are left out.

    >>> harmonic_mean(2, 1, 1).item(), harmonic_mean(2, 2, 0).item()
    (1.2, 0.0)

    Raises: BadInput: a score outside 0 to 2.
    Source: AxBench, Wu et al. (arXiv 2501.17148).
    """
    parts = np.stack(np.broadcast_arrays(*(np.asarray(s, dtype=np.float64) for s in scores)))
    given = ~np.isnan(parts)
    if (parts[given] < 0).any() or (parts[given] > 2).any():
        raise BadInput("scores run from 0 to 2")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(given.any(0), given.sum(0) / np.where(given, 1 / parts, 0.0).sum(0), np.nan)


def fluency(nll: ArrayLike, texts: Sequence[str], reference: ArrayLike) -> NDArray[np.float64]:
    """Grades of fluency from the middle token's negative log likelihood under the unsteered model.

        2   nll <= q95 of the reference + .5 nats        1   nll <= q95 + 2 nats        0   otherwise, or in a loop

    The reference is what the model writes by itself, without edit and asked in words, read without the request. A loop
    (one word or pair of words five times in a row) is 0 whatever its likelihood: text that repeats itself is likely.
    The middle token, because the few tokens at which an answer turns to the concept are unlikely, and should be.

    Args: nll: (n,), medians of `ll.token_nll`. texts: (n,). reference: (m,), nll of the model's own.
    Raises: TooFewExamples: no reference. BadInput: lengths differ.
    """
    values, own = np.asarray(nll, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if values.shape != (len(texts),):
        raise BadInput(f"{values.shape} likelihoods for {len(texts)} texts")
    if not own.size:
        raise TooFewExamples("no reference: score some answers without edit as well")
    limit = float(np.quantile(own, 0.95))
    grade = np.where(values <= limit + FLUENT, 2.0, np.where(values <= limit + SOMEWHAT, 1.0, 0.0))
    return np.where([is_loop(text) for text in texts], 0.0, grade)


def is_loop(text: str) -> bool:
    """Whether a word, or a pair of words, stands five times in a row.

    >>> is_loop("I cannot cannot cannot cannot cannot"), is_loop("the sea and the sea")
    (True, False)
    """
    words = re.findall(r"\w+", text.lower())
    for size in (1, 2):
        run = size
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else size
            if run >= size * _LOOP:
                return True
    return False
