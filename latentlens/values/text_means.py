"""One state a text: rows of one text averaged first, so that long and short answers weigh alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.activations import Activations
from latentlens.values.directions import as_site
from latentlens.values.labelled_rows import finite_rows


def text_means(acts: Activations, site: Any, n_texts: int | None = None) -> Tensor:
    """States averaged over the rows of each text: (n_texts, d), float64.

        a(text) = 1/T sum_t h_t

    Rows that are pooled already stay as they are.

    Args: n_texts: how many texts there must be, numbered from 0.
    Raises: BadInput: other texts. NonFiniteActivations.
    """
    x = finite_rows(acts, as_site(site)).double()
    text = torch.as_tensor(np.asarray(acts.labels["text"]).astype(np.int64))
    n = max(int(text.max()) + 1 if len(text) else 0, n_texts or 0)
    count = torch.bincount(text, minlength=n)
    if (n_texts is not None and n != n_texts) or bool((count == 0).any()):
        raise BadInput(
            f"activations of {int((count > 0).sum())} texts where {n_texts or n} are needed: capture all of them, in "
            "one call, in order"
        )
    return torch.zeros(n, x.shape[1], dtype=torch.float64).index_add_(0, text, x) / count[:, None]
