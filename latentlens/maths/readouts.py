"""Linear readouts: every way to get a direction from labelled rows, many problems at once.

    logistic            penalised logistic regression (see `batched_logistic`)
    mean difference     w = mean of label 1 - mean of label 0
    lda                 w = S^-1 (mean difference), S the within-class covariance, shrunk
    ridge               least squares on labels -1, 1 with a squared penalty
    sparse              the k features whose class means differ most, then logistic regression on those

All take (layers, n, d) rows and columns of problems (labels, rows, strength), and return weights in raw
coordinates with intercepts, `score = x . weights + intercept`, 0 the threshold. Mean difference, LDA and ridge of
all labellings of the same rows share one eigendecomposition, so permutations cost a product each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.maths.batched_logistic import fit_logistic


class Readouts(NamedTuple):
    """weights: (layers, columns, d), intercepts: (layers, columns), float64, raw coordinates."""

    weights: Tensor
    intercepts: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """(layers, n, d) -> (layers, columns, n)."""
        return self.weights @ x.double().mT + self.intercepts[..., None]


Fitter = Callable[[Tensor, Tensor, Tensor, Tensor], Readouts]


def logistic(x: Tensor, labels: Tensor, strength: Tensor, rows: Tensor, *, tol: float = 1e-2) -> Readouts:
    """Penalised logistic regression; strength is C. float64 where the matrices are small. See `fit_logistic`."""
    small = x.shape[1] * x.shape[2] <= 1 << 17
    found = fit_logistic(
        x, labels, strength, rows, tol=min(tol, 1e-4) if small else tol, max_steps=500,
        dtype=torch.float64 if small else torch.float32,
    )  # fmt: skip
    return Readouts(found.weights, found.intercepts)


def mean_difference(x: Tensor, labels: Tensor, strength: Tensor, rows: Tensor) -> Readouts:
    """Difference of the class means, w = m1 - m0; the intercept puts 0 midway between them.

    Source: Marks and Tegmark, The Geometry of Truth (arXiv 2310.06824), "mass mean"; strength is not used.
    """
    positive, negative = _class_means(x, labels, rows)
    weights = without_rounding(positive - negative, positive, negative)
    return Readouts(weights, -(weights * (positive + negative)).sum(-1) / 2)


def lda(x: Tensor, labels: Tensor, strength: Tensor, rows: Tensor, *, shrinkage: float | None = None) -> Readouts:
    """Whitened mean difference: linear discriminant analysis.

        w = S^-1 (m1 - m0)        S = (1 - s) S_within + s t diag     intercept: -w . (m1 + m0) / 2 + log(n1 / n0)

    S_within is the pooled within-class covariance, divided by n. It is shrunk in standardised coordinates towards
    t times the identity (t: mean of its diagonal), so features of large variance do not rule the shrinkage. The
    share s is Ledoit and Wolf's, computed from the covariance of the rows without their labels; 0 is plain LDA,
    defined where n > d + 1. As S_within = S_total - n1 n0 / n^2 w w', one decomposition of S_total serves all
    labellings.

    Source: Marks and Tegmark (arXiv 2310.06824), "IID mass mean"; Ledoit and Wolf, Journal of Multivariate
        Analysis 88 (2004).
    """
    weights, intercepts = _empty(x, labels)
    for at, on in _by_rows(rows):
        z, mean, std = _standard(x[:, on])
        y, n = labels[at][:, on].double(), int(on.sum())
        values, vectors = _covariance(z)
        share = _ledoit_wolf(z, values) if shrinkage is None else torch.full((len(x),), float(shrinkage)).double()
        n1 = y.sum(1)
        n0 = n - n1
        half = (y @ z) / n1[:, None] - ((1 - y) @ z) / n0[:, None]  # (layers, columns, d)
        w = whitened_difference(values, vectors, half, n1 * n0 / n**2, share) / std
        middle = mean + (((y @ z) / n1[:, None] + ((1 - y) @ z) / n0[:, None]) / 2) * torch.where(std.isinf(), 0, std)
        weights[:, at], intercepts[:, at] = w, (n1 / n0).log() - (w * middle).sum(-1)
    return Readouts(weights, intercepts)


def whitened_difference(values: Tensor, vectors: Tensor, half: Tensor, between: Tensor, share: Tensor) -> Tensor:
    """S^-1 half, S = (1 - s) S_within + s t I and S_within = S_total - between half half', by Sherman and Morrison.

    Args:
        values, vectors: eigenvalues (layers, d) and eigenvectors (layers, d, d) of S_total.
        half: differences of class means (layers, columns, d), in the same coordinates.
        between: n1 n0 / n^2 of every column. share: s of every layer; t is the mean of the diagonal of S_within.
    Returns: (layers, columns, d).
    """
    diagonal = (values.sum(-1)[:, None] - between * half.square().sum(-1)).clamp_min(0) / values.shape[-1]
    s = share[:, None]
    spectrum = (1 - s)[..., None] * values[:, None] + (s * diagonal)[..., None]
    least = spectrum.amax(-1, keepdim=True) * 1e-10
    inverse = torch.where(spectrum > least, 1 / spectrum.clamp_min(1e-300), torch.zeros_like(spectrum))
    whitened = (half @ vectors) * inverse @ vectors.mT
    gain = 1 - (1 - s) * between * (half * whitened).sum(-1)
    return whitened / gain.clamp_min(1e-6)[..., None]


def ridge(x: Tensor, labels: Tensor, strength: Tensor, rows: Tensor) -> Readouts:
    """Ridge regression on labels -1 and 1: minimise |w|^2 + C sum_i (t_i - w . z_i - b)^2, z standardised."""
    weights, intercepts = _empty(x, labels)
    for at, on in _by_rows(rows):
        z, mean, std = _standard(x[:, on])
        t, n = 2 * labels[at][:, on].double() - 1, int(on.sum())
        values, vectors = _covariance(z)
        moment = ((t - t.mean(1, keepdim=True)) @ z) @ vectors
        w = (moment / (n * values[:, None] + 1 / strength[at].double()[:, None])) @ vectors.mT / std
        weights[:, at], intercepts[:, at] = w, t.mean(1) - (w * mean).sum(-1)
    return Readouts(weights, intercepts)


def sparse(k: int) -> Fitter:
    """Fitter of a logistic regression (strength is C) on the k features whose class means differ most.

    The difference |m1 - m0| is taken on the column's own rows, as they come: for SAE latents. Ties and features
    that do not vary come last.

    Raises: BadInput: k below 1.
    Source: SAE probes of SAEBench (arXiv 2503.09532), k in 1, 2, 5; Gurnee et al. (arXiv 2305.01610).
    """
    if k < 1:
        raise BadInput(f"k={k}: a sparse probe reads at least one latent")

    def fit(x: Tensor, labels: Tensor, strength: Tensor, rows: Tensor) -> Readouts:
        weights, intercepts = _empty(x, labels)
        positive, negative = _class_means(x, labels, rows)
        chosen = (positive - negative).abs().topk(min(k, x.shape[2]), dim=-1).indices
        for layer in range(len(x)):
            for j in range(len(labels)):
                at = chosen[layer, j]
                part = logistic(
                    x[layer : layer + 1, :, at], labels[j : j + 1], strength[j : j + 1], rows[j : j + 1], tol=1e-4
                )
                weights[layer, j, at], intercepts[layer, j] = part.weights[0, 0], part.intercepts[0, 0]
        return Readouts(weights, intercepts)

    return fit


def _empty(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    shape = (len(x), len(labels))
    return torch.zeros(*shape, x.shape[2], dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)


def _by_rows(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(columns, rows) for each distinct set of rows."""
    masks, of = rows.bool().unique(dim=0, return_inverse=True)
    return [((of == i).nonzero()[:, 0], mask) for i, mask in enumerate(masks)]


def _class_means(x: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Means of label 1 and of label 0, (layers, columns, d), float64."""
    y, m = labels.bool(), rows.bool()
    first = x[:, :1].double()
    shifted = x.double() - first
    yes, no = (m & y).double(), (m & ~y).double()
    return tuple(first + (side / side.sum(1, keepdim=True)) @ shifted for side in (yes, no))  # type: ignore[return-value]


def without_rounding(difference: Tensor, *sides: Tensor) -> Tensor:
    """Entries no larger than the rounding of float32 inputs become 0."""
    size = torch.stack([s.abs() for s in sides]).amax(0)
    return torch.where(difference.abs() > 1e-12 * size, difference, torch.zeros_like(difference))


def _standard(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows standardised, mean and std (layers, 1, d); constant features become 0 with std inf. float64."""
    x = x.double()
    mean = x.mean(1, keepdim=True)
    z = x - mean
    std = z.square().mean(1, keepdim=True).sqrt()
    std[std <= 1e-6 * mean.abs()] = torch.inf
    std[std == 0] = torch.inf
    return z / std, mean, std


def _covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (layers, d) and eigenvectors of z'z / n."""
    values, vectors = torch.linalg.eigh(z.mT @ z / z.shape[1])
    return values.clamp_min(0), vectors


def _ledoit_wolf(z: Tensor, values: Tensor) -> Tensor:
    """Optimal share of the identity, (layers,):  s = min(b, D) / D,

    D = |S - t I|^2 / d,  b = (sum_i |z_i|^4 / n - |S|^2) / (n d).
    """
    n, d = z.shape[1:]
    target = values.mean(-1, keepdim=True)
    distance = (values - target).square().sum(-1) / d
    noise = (z.square().sum(-1).square().sum(-1) / n - values.square().sum(-1)) / (n * d)
    return (noise.clamp_min(0) / distance.clamp_min(1e-300)).clamp_max(1.0)


def oas_share(values: Tensor, n: int) -> Tensor:
    """Optimal share of the identity for normal rows, (layers,), from the spectrum alone: rows need not be kept.

        s = min(1, (mean S_ij^2 + t^2) / ((n + 1) (mean S_ij^2 - t^2 / d)))        t: mean of the eigenvalues

    Source: Chen, Wiesel, Eldar and Hero, IEEE Transactions on Signal Processing 58 (2010), as scikit-learn's OAS.
    """
    d = values.shape[-1]
    alpha, target = values.square().sum(-1) / d**2, values.mean(-1)
    least = (n + 1) * (alpha - target.square() / d)
    return torch.where(
        least > 0, (alpha + target.square()) / least.clamp_min(1e-300), torch.ones_like(least)
    ).clamp_max(1)
