"""Labels of rows of activations: which text, position and token, in which role, each one is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentlens.access.tokens import RowReader
from latentlens.values.activations import LABELS
from latentlens.values.rows import TokenRow


def labels_of(
    reader: RowReader, rows: Sequence[TokenRow], first: Sequence[np.ndarray], last: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """One value per row of the result and column.

    Args: first, last: per text, the first and last position of each of its rows of the result (equal unless pooled).
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in LABELS}
    for i, (row, start, end) in enumerate(zip(rows, first, last, strict=True)):
        columns["text"].append(np.full(len(start), i))
        columns["position"].append(start)
        columns["stop"].append(end + 1)
        columns["token_id"].append(np.array(row.ids, dtype=np.int64)[end])
        columns["role"].append(np.array(row.role, dtype=object)[end])
        columns["turn"].append(np.array(row.turn, dtype=np.int64)[end])
        columns["generated"].append(end >= row.n_prompt)
        columns["special"].append(np.array(row.special, dtype=bool)[end])
    labels = {name: np.concatenate(parts) for name, parts in columns.items() if parts}
    labels["token"] = np.array(reader.decode_each(labels["token_id"].tolist()), dtype=object)
    return {name: labels[name] for name in LABELS}
