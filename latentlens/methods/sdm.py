"""A probe that can say no: similarity, distance and magnitude of a state against training and calibration rows.

    sdm_i = (2 + q)^(d z_i) / sum_c (2 + q)^(d z_c)

z: the probe's logits, one a class. q, similarity: how many of the nearest training rows in a row were predicted
rightly and as this one. d, distance: 1 where the nearest training row is as near as ever on calibration rows, 0 where
it is farther than all of them. q = e - 2 and d = 1 is softmax; d = 0 is uniform.

    head = fit_sdm(train_states, train_logits, train_y, cal_states, cal_logits, cal_y)
    head.read(states, logits).admitted
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.values.markup import Shown

_MOST = 1000  # neighbours looked at


def sdm_activation(z: Tensor, q: Tensor | float, d: Tensor | float) -> Tensor:
    """(..., C) logits -> probabilities. q, d: (...) or numbers.

    >>> round(float(sdm_activation(torch.tensor([2.0, 0.0]), 3.0, 0.5)[0]), 6)
    0.833333
    """
    scale = torch.as_tensor(d, dtype=z.dtype) * torch.log(2 + torch.as_tensor(q, dtype=z.dtype))
    return (z * scale[..., None]).softmax(-1)


def similarity(predicted: int, neighbours: NDArray, truth: NDArray) -> int:
    """Length of the run of nearest rows whose prediction is right and is `predicted`.

    >>> similarity(1, np.array([1, 1, 1]), np.array([1, 1, 0]))
    2
    """
    good = (neighbours == truth) & (neighbours == predicted)
    return len(good) if good.all() else int(good.argmin())


def distance_share(nearest: float, by_class: list[NDArray]) -> float:
    """Least over classes of 1 - share of calibration distances strictly below; 0 where a class has none.

    >>> distance_share(2.5, [np.array([1, 2, 3, 4]), np.array([2, 4, 6, 8])])
    0.5
    """
    return min((1 - float((np.asarray(c) < nearest).mean()) if len(c) else 0.0) for c in by_class)


def dkw_half_width(n: int, alpha: float = 0.95) -> float:
    """Half width sqrt(ln(2 / (1 - alpha)) / 2n) of the Dvoretzky-Kiefer-Wolfowitz band around a distribution.

    alpha: the confidence. 1 where n is 0.
    """  # fmt: skip
    return 1.0 if n <= 0 else min(1.0, float(np.sqrt(np.log(2 / (1 - alpha)) / (2 * n))))


@dataclass(frozen=True, eq=False)
class SdmReading(Shown):
    """For each row: probabilities (n, C), class predicted, similarity, distance share, lower q, admitted or not."""

    probabilities: Tensor
    predicted: NDArray[np.intp]
    similarity: NDArray[np.intp]
    distance: NDArray[np.float64]
    q_lower: NDArray[np.float64]
    admitted: NDArray[np.bool_]

    def __repr__(self) -> str:
        return f"SdmReading({len(self.predicted)} rows, {self.admitted.mean():.1%} admitted)"


@dataclass(frozen=True, eq=False)
class SdmHead:
    """Training rows, what was predicted there, calibration distances and outputs by class, least q admitted."""

    states: Tensor
    predicted: NDArray[np.intp]
    truth: NDArray[np.intp]
    distances: list[NDArray]
    outputs: list[NDArray]
    rescaled: list[NDArray]
    q_least: float
    alpha: float

    def raw(self, states: Tensor, logits: Tensor) -> tuple[Tensor, NDArray, NDArray, NDArray, NDArray]:
        """Probabilities, predicted, similarity, distance share, nearest distance."""
        gaps = torch.cdist(states.double(), self.states)
        near = gaps.topk(min(_MOST, len(self.states)), largest=False)
        named, order = logits.argmax(-1).numpy(), near.indices.numpy()
        q = np.array([similarity(int(c), self.predicted[o], self.truth[o]) for c, o in zip(named, order)])
        nearest = near.values[:, 0].numpy()
        d = np.array([distance_share(float(v), self.distances) for v in nearest])
        return sdm_activation(logits.double(), torch.tensor(q), torch.tensor(d)), named, q, d, nearest

    def read(self, states: Tensor, logits: Tensor) -> SdmReading:
        """Probabilities and who is admitted.

        v_c = share of calibration outputs of class c below this output; q~ = ln((2 + q)^v of the predicted class);
        lower: v minus the DKW half width of the calibration rows whose q~ is not above. If the class named is not the
        largest of the rescaled outputs, q~ = 0. Admitted: lower q~ >= the least that reached alpha on calibration rows.
        """  # fmt: skip
        p, named, q, d, _ = self.raw(states, logits)
        lower = np.array([self._lower(row, int(c), int(k)) for row, c, k in zip(p.numpy(), named, q)])
        return SdmReading(p, named, q, d, lower, (lower >= self.q_least) & (d > 0) & (lower > 0))

    def _lower(self, p: NDArray, named: int, q: int) -> float:
        v = np.array([(o < x).mean() if len(o) else 0.0 for o, x in zip(self.outputs, p)])
        if v.argmax() != named:
            return 0.0
        tilde = v[named] * np.log(2 + q)
        n = (self.rescaled[named] <= tilde).sum() if len(self.rescaled[named]) else 0
        return max(0.0, v[named] - dkw_half_width(int(n), self.alpha)) * float(np.log(2 + q))


def fit_sdm(
    states: Tensor, logits: Tensor, y: NDArray, cal_states: Tensor, cal_logits: Tensor, cal_y: NDArray, *,
    alpha: float = 0.95,
) -> SdmHead:  # fmt: skip
    """Set up the head on rows it was trained on and on calibration rows it was not.

    Args: states: (n, d); logits: (n, C) of any probe; y: (n,) class numbers; cal_*: the same of calibration rows.
        alpha: share that must be right among the admitted of every class, and the confidence of the DKW bound.
    Raises: TooFewExamples: a class without calibration rows. BadInput: shapes, alpha outside 0.5-1.
        NonFiniteActivations.
    Source: Similarity-Distance-Magnitude activations (arXiv 2502.20167). Simpler than the paper: no adaptor is
        trained (distances are in the states given), one split, and the least q is searched on the calibration rows.
    """
    y, cal_y = np.asarray(y).astype(int), np.asarray(cal_y).astype(int)
    n_classes = logits.shape[1]
    if not 0.5 < alpha < 1:
        raise BadInput(f"alpha={alpha}: a confidence between .5 and 1, for instance .95")
    if len(states) != len(y) or len(cal_states) != len(cal_y) or cal_logits.shape[1] != n_classes:
        raise BadInput("states, logits and labels do not agree in their rows or classes")
    if len(set(cal_y.tolist())) < n_classes:
        raise TooFewExamples(f"calibration rows hold {len(set(cal_y.tolist()))} of {n_classes} classes")
    if not all(bool(t.isfinite().all()) for t in (states, logits, cal_states, cal_logits)):
        raise NonFiniteActivations("NaN or infinity in the states or logits: drop those rows")
    none = [np.array([0.0])] * n_classes
    bare = SdmHead(states.double(), logits.argmax(-1).numpy(), y, none, none, none, np.inf, alpha)
    _, _, q, _, nearest = bare.raw(cal_states, cal_logits)
    distances = [nearest[(cal_y == c) & (q > 0)] for c in range(n_classes)]
    head = SdmHead(bare.states, bare.predicted, y, distances, none, none, np.inf, alpha)
    p, named, q, _, _ = head.raw(cal_states, cal_logits)
    outputs = [p.numpy()[cal_y == c, c] for c in range(n_classes)]
    v = np.array([(outputs[c] < p.numpy()[i, c]).mean() for i, c in enumerate(named)])
    tilde = v * np.log(2 + q)
    rescaled = [tilde[cal_y == c] for c in range(n_classes)]
    head = SdmHead(bare.states, bare.predicted, y, distances, outputs, rescaled, 0.0, alpha)
    lower = head.read(cal_states, cal_logits).q_lower
    least = np.inf
    for q_min in np.unique(lower[lower > 0])[::-1]:
        kept = lower >= q_min
        right = [(named == cal_y)[kept & (named == c)] for c in range(n_classes)]
        if all(len(r) == 0 or r.mean() >= alpha for r in right):
            least = float(q_min)
        else:
            break
    return SdmHead(bare.states, bare.predicted, y, distances, outputs, rescaled, least, alpha)
