"""What is known of texts without a model: which words are in them, and how long they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def words_and_length(texts: Sequence[str], most: int = 2000) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Which of the commonest words each text holds, (n, words) of 0 and 1; its characters and words, (n, 2).

    >>> words_and_length(["The cat.", "the dog"])[1].tolist()
    [[8.0, 3.0], [7.0, 2.0]]

    Words are runs of word characters, and single marks, in lower case.
    """
    counts = [Counter(re.findall(r"\w+|[^\w\s]", text.lower())) for text in texts]
    known = [word for word, _ in Counter(word for one in counts for word in one).most_common(most)]
    held = np.array([[float(word in one) for word in known] for one in counts], dtype=np.float32)
    length = [[float(len(text)), float(sum(one.values()))] for text, one in zip(texts, counts, strict=True)]
    return held.reshape(len(counts), len(known)), np.array(length, dtype=np.float32)
