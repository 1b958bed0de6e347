"""A logistic probe for each site: fitted on some groups, scored on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from latentlens.organism.evaluation.rows import Band, Row, area


def by_site(
    name: str,
    fit: tuple[Tensor, Sequence[bool]],
    test: tuple[Tensor, Sequence[bool], Sequence[str]],
    band: Band | None = None,
    band_at: Sequence[int] = (),
) -> list[Row]:
    """Return one row for the embedding and each block.

    Args: name: of the measurement. fit: states [depth + 1, texts, width] and labels. test: states, labels and
        groups. band: for the blocks in `band_at`; for the best site where that is empty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    rows = []
    for layer in range(len(fit[0])):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        # Two OpenMP runtimes, torch's and scikit-learn's, wait for each other: ten times slower than one thread.
        with threadpool_limits(1):
            probe.fit(fit[0][layer].numpy(), np.array(fit[1]))
            scores = probe.decision_function(test[0][layer].numpy())
        site = "embedding" if layer == 0 else f"block {layer - 1}"
        rows.append(area(f"{name}, {site}", scores, test[1], test[2]))
    best = max(rows, key=lambda row: row.value)
    held = [rows[block + 1] for block in band_at] or [best]
    return [replace(row, band=band) if any(row is one for one in held) else row for row in rows]
