"""How far probabilities can be believed: Brier score, calibration error, reliability, temperature."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from latentlens.errors import BadInput, TooFewExamples


def brier(probability: ArrayLike, labels: ArrayLike) -> float:
    """Mean of (p - y)^2; 0 is best, .25 is a constant one half.

    >>> round(brier([.9, .8, .3, .2], [1, 0, 1, 0]), 3)
    0.295
    """
    p, y = _checked(probability, labels)
    return float(np.mean((p - y) ** 2))


def reliability(
    probability: ArrayLike, labels: ArrayLike, bins: int = 10
) -> list[tuple[float, float, float, float, int]]:
    """(low, high, mean probability, share of positives, n) of each bin of equal width that holds rows."""
    p, y = _checked(probability, labels)
    at = np.minimum((p * bins).astype(int), bins - 1)
    return [
        (i / bins, (i + 1) / bins, float(p[at == i].mean()), float(y[at == i].mean()), int((at == i).sum()))
        for i in np.unique(at).tolist()
    ]


def expected_calibration_error(probability: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Sum over bins of equal width of n_bin / n |share of positives - mean probability|.

    >>> round(expected_calibration_error([.9, .8, .3, .2], [1, 0, 1, 0], bins=2), 3)
    0.3

    It depends on the bins and is biased upwards for few rows: compare only at equal n and bins.
    """
    table = reliability(probability, labels, bins)
    n = sum(row[4] for row in table)
    return sum(row[4] / n * abs(row[3] - row[2]) for row in table)


def temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """T above 0 that minimises the log loss of sigmoid(logits / T); above 1: the logits were too sure.

    Fit it on rows that the probe was not fitted on. Kept within 1/100 and 100.
    Source: Guo et al. (arXiv 1706.04599).
    """
    z, y = np.asarray(logits, dtype=float), np.asarray(labels, dtype=bool)
    if len(np.unique(y)) < 2:
        raise TooFewExamples("a temperature needs rows of both classes")

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, np.where(y, -z, z) * np.exp(-log_t)).mean())

    found: Any = minimize_scalar(loss, bounds=(-np.log(100), np.log(100)), method="bounded")
    return float(np.exp(found.x))


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Threshold of the highest balanced accuracy, midway between two scores; the one nearest the median of equals."""
    s, y = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    if len(np.unique(y)) < 2:
        raise TooFewExamples("a threshold needs rows of both classes")
    values = np.unique(s)
    cuts = np.r_[values[0] - 1, (values[1:] + values[:-1]) / 2]
    positive, negative = np.sort(s[y]), np.sort(s[~y])
    above = 1 - np.searchsorted(positive, cuts) / len(positive)
    below = np.searchsorted(negative, cuts) / len(negative)
    score = above + below
    best = np.flatnonzero(score >= score.max() - 1e-12)
    return float(cuts[best[np.abs(cuts[best] - np.median(s)).argmin()]])


def probability_of(logits: ArrayLike, at_temperature: ArrayLike = 1.0) -> NDArray[np.float64]:
    """sigmoid(logits / T)."""
    return expit(np.asarray(logits, dtype=float) / np.asarray(at_temperature))


def _checked(probability: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    p, y = np.asarray(probability, dtype=float), np.asarray(labels, dtype=float)
    if p.shape != y.shape or p.ndim != 1 or not len(p):
        raise BadInput(f"probabilities {p.shape} and labels {y.shape}: both must be (N,), N at least 1")
    if not ((p >= 0) & (p <= 1)).all():
        raise BadInput("probabilities lie between 0 and 1; for logits use probability_of first")
    return p, y
