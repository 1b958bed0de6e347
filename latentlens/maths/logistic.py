"""Penalised logistic regression on standardised columns, exact and quick where columns outnumber rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import BadInput


class Standardised:
    """Training rows, z-scored and, where d > n, turned into the coordinates of their span.

    The penalised solution lies in that span, so nothing is lost and a fit costs O(n^2) instead of O(n d).

    Args: x: (n, d) training rows, finite.
    """

    def __init__(self, x: NDArray[np.float64]) -> None:
        self.mean, self.std = x.mean(axis=0), x.std(axis=0)
        self._flat = self.std <= 1e-6 * np.abs(x).max(axis=0)
        self.std[self._flat] = 1.0
        self._back: NDArray[np.float64] | None = None
        z = self._scaled(x)
        if x.shape[1] > len(x):
            u, s, self._back = np.linalg.svd(z, full_matrices=False)
            z = u * s
        self.train = z

    def coordinates(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Other rows in the coordinates of the training rows."""
        z = self._scaled(x)
        return z if self._back is None else z @ self._back.T

    def _scaled(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        z = (x - self.mean) / self.std
        z[:, self._flat] = 0.0
        return z

    def logits(self, y: NDArray[np.bool_], strengths: Sequence[float], *others: NDArray) -> Iterator[list[NDArray]]:
        """For each C: log odds of the training rows, then of each of the others (in `coordinates`).

            minimise |w|^2 / 2 + C sum_i log(1 + exp(-y_i (w . z_i + b)))

        Args: y: (n,) labels of the training rows, both classes. strengths: C, each above 0.
        Raises: BadInput: a C that is not positive.
        """
        from sklearn.linear_model import LogisticRegression

        for c in strengths:
            if not c > 0:
                raise BadInput(f"C={c}: the inverse strength of the penalty is positive")
            found = LogisticRegression(C=float(c), max_iter=1000).fit(self.train, y)
            w, b = found.coef_[0], float(found.intercept_[0])
            yield [side @ w + b for side in (self.train, *others)]
