"""Means and scatters of rows that come in pieces, of any sizes, without keeping a row.

Moments        count, mean and, if asked, scatter of all rows
ClassMoments   the same for rows of several classes, with one scatter inside the classes

Pieces are joined by the pairwise rule, so nothing is lost when the mean is large against the spread:

    mean <- mean + (n_b / N) delta,   S <- S + S_b + (n n_b / N) delta delta',   delta = mean_b - mean,  N = n + n_b

Everything is float64. Source: Chan, Golub and LeVeque, The American Statistician 37 (1983) 242-247.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from latentlens.errors import BadInput


class Moments:
    """Count, mean and scatter (sum of squared deviations) of rows of shape (..., d), leading axes kept apart.

    shape: of one row, (d,) or (heads, d). scatter: whether products are summed, (..., d, d).
    """

    def __init__(self, shape: Sequence[int], *, scatter: bool = False) -> None:
        self.shape, self.n = tuple(shape), 0
        self.mean = torch.zeros(self.shape, dtype=torch.float64)
        self.scatter = torch.zeros(*self.shape, self.shape[-1], dtype=torch.float64) if scatter else None

    def add(self, x: Tensor) -> Moments:
        """Take rows (n, *shape); none is fine.

        Raises: BadInput: rows of another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise BadInput(f"rows of shape {tuple(x.shape[1:])} after rows of shape {self.shape}")
        if len(x):
            x = x.to("cpu", torch.float64)
            mean = x.mean(0)
            self._join(len(x), mean, None if self.scatter is None else products(x - mean))
        return self

    def merge(self, other: Moments) -> Moments:
        """Take all rows that another one has seen.

        Raises: BadInput: another shape, or one of the two without a scatter.
        """
        if other.shape != self.shape or (self.scatter is None) != (other.scatter is None):
            raise BadInput(f"moments of rows {self.shape} and {other.shape} cannot be merged")
        if other.n:
            self._join(other.n, other.mean, other.scatter)
        return self

    @property
    def covariance(self) -> Tensor:
        """Scatter divided by n, (..., d, d)."""
        if self.scatter is None or not self.n:
            raise BadInput("a covariance needs rows, and Moments(shape, scatter=True)")
        return self.scatter / self.n

    @property
    def second_moment(self) -> Tensor:
        """Mean of x x', not centred, (..., d, d)."""
        return self.covariance + self.mean[..., :, None] * self.mean[..., None, :]

    def _join(self, n: int, mean: Tensor, scatter: Tensor | None) -> None:
        total, delta = self.n + n, mean - self.mean
        if self.scatter is not None and scatter is not None:
            self.scatter = self.scatter + scatter + (self.n * n / total) * delta[..., :, None] * delta[..., None, :]
        self.mean, self.n = self.mean + (n / total) * delta, total


class ClassMoments:
    """Count and mean of every class, and one scatter of the rows around their class means."""

    def __init__(self, shape: Sequence[int], *, scatter: bool = False) -> None:
        self.shape = tuple(shape)
        self.classes: dict[Hashable, Moments] = {}
        self.within = torch.zeros(*self.shape, self.shape[-1], dtype=torch.float64) if scatter else None

    def add(self, x: Tensor, labels: Sequence[Hashable]) -> ClassMoments:
        """Take rows (n, *shape) with a label each.

        Raises: BadInput: rows of another shape, or not one label a row.
        """
        if len(labels) != len(x):
            raise BadInput(f"{len(labels)} labels for {len(x)} rows: give one a row")
        for label in dict.fromkeys(labels):
            mine = torch.tensor([one == label for one in labels])
            seen = self.classes.setdefault(label, Moments(self.shape))
            rows, n, before = x[mine].to("cpu", torch.float64), seen.n, seen.mean
            seen.add(rows)
            if self.within is not None:
                mean = rows.mean(0)
                delta, joined = mean - before, n * len(rows) / seen.n
                self.within = self.within + products(rows - mean) + joined * delta[..., :, None] * delta[..., None, :]
        return self

    @property
    def n(self) -> int:
        """Rows seen."""
        return sum(one.n for one in self.classes.values())

    @property
    def inside(self) -> Tensor:
        """Covariance of the rows around their class means, divided by n, (..., d, d)."""
        if self.within is None or not self.n:
            raise BadInput("a covariance needs rows, and ClassMoments(shape, scatter=True)")
        return self.within / self.n

    def pooled(self, labels: Sequence[Hashable]) -> Moments:
        """Count and mean over the rows of some classes together."""
        found = Moments(self.shape)
        for label in labels:
            found.merge(self.classes[label])
        return found

    def total(self) -> Moments:
        """Count, mean and scatter of all rows together.

        Raises: BadInput: made without a scatter.
        """
        if self.within is None:
            raise BadInput("a scatter needs ClassMoments(shape, scatter=True)")
        found = Moments(self.shape, scatter=True)
        found.scatter = self.within
        for one in self.classes.values():
            found._join(one.n, one.mean, torch.zeros_like(self.within))
        return found


def products(x: Tensor) -> Tensor:
    """Sum over rows of x x': (n, ..., d) -> (..., d, d)."""
    moved = x.movedim(0, -2)
    return moved.mT @ moved
