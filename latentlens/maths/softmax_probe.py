"""Softmax probes of several classes, many of them fitted at once, and how well named classes agree.

fit, Softmax           p = softmax(W (x - m) / s + b), trained with AdamW; standardisation kept apart, or folded in
accuracy, macro_f1     how well predicted classes agree with the true ones
matching               which cluster of one clustering is which of another (Hungarian)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples


@dataclass(frozen=True, eq=False)
class Softmax:
    """P probes of K classes: p = softmax(W z + b), z = (x - mean) / scale.

    weight: (P, K, d), bias: (P, K), in standardised coordinates. mean, scale: (P, d).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def standardised(self, x: Tensor) -> Tensor:
        """Z of states (P, ..., d), float32."""
        shape = (len(self.mean), *(1,) * (x.ndim - 2), x.shape[-1])
        return (x.float() - self.mean.reshape(shape)) / self.scale.reshape(shape)

    def probabilities(self, x: Tensor) -> Tensor:
        """(P, n, d) -> (P, n, K)."""
        return (self.standardised(x) @ self.weight.mT + self.bias[:, None]).softmax(-1)

    def folded(self) -> tuple[Tensor, Tensor]:
        """W' and b' with softmax(W' x + b') the same probabilities for x as it is."""
        weight = self.weight / self.scale[:, None]
        return weight, self.bias - (weight * self.mean[:, None]).sum(-1)

    def stepped(self, x: Tensor, y: Tensor, rate: float) -> Softmax:
        """The probes after one gradient step on the mean cross-entropy of a batch.

            W <- W - r (p - 1_y) z'      b <- b - r (p - 1_y)      averaged over the batch

        r is `rate`, but at most 1 / (|z|^2 + 1): a longer step can raise the loss that it descends.

        Args: x: (P, n, d). y: (n,) classes.
        """
        z = self.standardised(x)
        p = (z @ self.weight.mT + self.bias[:, None]).softmax(-1)
        wrong = p - torch.nn.functional.one_hot(y, p.shape[-1]).to(p.dtype)
        step = torch.minimum(torch.tensor(rate), 1 / (z.square().sum(-1).amax(1) + 1))[:, None]
        bias = self.bias - step * wrong.mean(1)
        return Softmax(self.weight - step[..., None] * (wrong.mT @ z) / len(y), bias, self.mean, self.scale)


def fit(
    x: Tensor, y: ArrayLike, n_classes: int, *, epochs: int = 20, rate: float = 1e-3, batch: int = 32,
    weight_decay: float = 0.01, seed: int = 0,
) -> Softmax:  # fmt: skip
    """Fit probes of the same rows at several sites and for several labellings at once, with AdamW from zero.

        min_W,b  mean_i -log softmax(W z_i + b)_{y_i}       decay on W only, rows reshuffled every epoch

    Args:
        x: (S, n, d), one block of states a site.
        y: (n,), or (L, n) for L labellings of the rows.
        n_classes: K. With one class the probe is constant: p = 1.
        epochs, rate, batch, weight_decay: of AdamW.
        seed: of the order of rows, the same for all probes.
    Returns: S probes, or S * L, those of one site together.
    Raises: TooFewExamples: no row. BadInput: labels outside 0..K-1 or of another number.
    """
    x, labels = x.float(), torch.as_tensor(np.asarray(y), dtype=torch.long)
    labels = labels[None] if labels.ndim == 1 else labels
    sites, n, d = x.shape
    if not n:
        raise TooFewExamples("a probe needs at least one row")
    if labels.shape[1] != n or int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise BadInput(f"labels must be {n} numbers from 0 to {n_classes - 1}, one a row")
    mean, scale = x.mean(1), x.std(1, unbiased=False)
    scale = torch.where(scale > 1e-6 * x.abs().amax(1).clamp(min=1e-30), scale, torch.ones_like(scale))
    z, many = (x - mean[:, None]) / scale[:, None], len(labels)
    weight, bias = torch.zeros(sites, many, n_classes, d), torch.zeros(sites, many, n_classes)
    target = torch.nn.functional.one_hot(labels, n_classes).float()
    moments, step = [torch.zeros_like(t) for t in (weight, weight, bias, bias)], 0
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs if n_classes > 1 else 0):
        for rows in torch.randperm(n, generator=order).split(batch):
            step += 1
            zb = z[:, rows]
            p = (torch.einsum("snd,slkd->slnk", zb, weight) + bias[:, :, None]).softmax(-1)
            wrong = (p - target[None, :, rows]) / len(rows)
            weight *= 1 - rate * weight_decay
            _adam(weight, torch.einsum("slnk,snd->slkd", wrong, zb), moments[0], moments[1], step, rate)
            _adam(bias, wrong.sum(2), moments[2], moments[3], step, rate)
    again = [t.repeat_interleave(many, 0) for t in (mean, scale)]
    return Softmax(weight.flatten(0, 1), bias.flatten(0, 1), *again)


def _adam(value: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, rate: float) -> None:
    """One Adam update in place, with its default constants."""
    first.lerp_(gradient, 1 - 0.9)
    second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
    root = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
    value.addcdiv_(first, root, value=-rate / (1 - 0.9**step))


def accuracy(truth: ArrayLike, named: ArrayLike) -> float:
    """Share of rows whose class was named."""
    return float((np.asarray(truth) == np.asarray(named)).mean())


def macro_f1(truth: ArrayLike, named: ArrayLike) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that are neither true nor named anywhere do not count.

    >>> round(macro_f1(["cpp", "cpp", "py", "py", "jl", "jl"], ["cpp", "py", "py", "py", "jl", "cpp"]), 4)
    0.6556

    Raises: TooFewExamples: no row. BadInput: lengths differ.
    """
    true, said = np.asarray(truth), np.asarray(named)
    if true.shape != said.shape or true.ndim != 1:
        raise BadInput(f"{true.shape} true classes and {said.shape} named ones: give one of each a row")
    if not len(true):
        raise TooFewExamples("macro-F1 needs at least one row")
    codes = np.unique(np.concatenate([true, said]), return_inverse=True)[1].ravel()
    a, b = codes[: len(true)], codes[len(true) :]
    size = int(codes.max()) + 1
    hit, of_true, of_said = (np.bincount(c, minlength=size) for c in (a[a == b], a, b))
    return float(np.mean(2 * hit / (of_true + of_said)))
