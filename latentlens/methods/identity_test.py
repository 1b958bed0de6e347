"""Do directions of concepts and classifiers of concepts invert each other?

    M = A W     A: (K, d) unit mean differences, one row a concept     W: (d, K) unit probe weights, one column each

each row divided by its diagonal entry. If states are linear in log probabilities of concepts, `M` is the identity:
moving along one concept's direction moves its own classifier and no other. The same pairs in A and W would fill the
diagonal for nothing, so the pairs of a concept are halved, A from one half and W from the other, and the test runs
again with W fitted on shuffled labels. The theorem is about the states that feed the unembedding; elsewhere the
test is a description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths import readouts
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class IdentityTest(Shown):
    """Over random halvings of the pairs (n counts them; ends are quantiles of the halvings).

    matrix: (K, K), mean of the scaled M. gap: mean diagonal minus mean |off-diagonal| of the unscaled M (cosines),
    top1: share of rows whose largest entry is on the diagonal; each also with labels shuffled within the pairs.
    """

    concepts: tuple[str, ...]
    matrix: NDArray[np.float64]
    gap: Estimate
    top1: Estimate
    gap_shuffled: Estimate
    top1_shuffled: Estimate

    def to_frame(self) -> pd.DataFrame:
        """The scaled matrix, direction by classifier."""
        import pandas as pd

        return pd.DataFrame(self.matrix, index=list(self.concepts), columns=list(self.concepts))

    def __repr__(self) -> str:
        return (
            f"IdentityTest({len(self.concepts)} concepts: gap {self.gap.short}, shuffled {self.gap_shuffled.short}; "
            f"top-1 {self.top1.short}, shuffled {self.top1_shuffled.short}; {self.gap.n} halvings)"
        )


def scaled_product(A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """(M with rows divided by their diagonal, M): rows of A (K, d) and columns of W (d, K) taken at unit length.

    Raises: BadInput: a zero row or column.
    """
    rows, columns = A.norm(dim=1, keepdim=True), W.norm(dim=0, keepdim=True)
    if not bool((rows > 0).all() and (columns > 0).all()):
        raise BadInput("a concept has a zero direction or classifier: its pairs do not differ")
    product = (A / rows) @ (W / columns)
    return product / product.diagonal()[:, None], product


def identity_test(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    *,
    C: float = 0.1,
    halvings: int = 10,
    seed: int = 0,
    level: float = 0.95,
) -> IdentityTest:
    """Test `A W = I` on halved pairs.

    Args: pairs: concept -> (states without, states with), both (n, d), row by row a pair that differs in that
        concept only. C: of the classifiers, positive. halvings: random ones. seed: of halvings and shuffles.
    Raises: TooFewExamples: fewer than two concepts, or four pairs of one. BadInput: shapes.
        NonFiniteActivations.
    Source: Liu et al., I Predict Therefore I Am (arXiv 2503.08980); halving, control and scaling are ours (the paper
        reports figures only, and builds both sides from the same pairs).
    """
    if halvings < 1 or not C > 0:
        raise BadInput(f"halvings={halvings}, C={C}: at least one halving, and a positive C")
    if len(pairs) < 2:
        raise TooFewExamples(f"{len(pairs)} concept(s): off the diagonal there is nothing to compare")
    for name, (base, target) in pairs.items():
        if base.shape != target.shape or base.ndim != 2:
            raise BadInput(f"{name}: {tuple(base.shape)} and {tuple(target.shape)}; both must be (n, d)")
        if len(base) < 4:
            raise TooFewExamples(f"{name} has {len(base)} pairs: each half needs at least 2")
        if not bool(base.isfinite().all() and target.isfinite().all()):
            raise NonFiniteActivations(f"{name}: NaN or infinity in its pairs: drop those pairs")
    rng = np.random.default_rng(seed)
    gaps, tops, matrices = ([], []), ([], []), []
    for _ in range(halvings):
        A, W = [], ([], [])
        for base, target in pairs.values():
            order = rng.permutation(len(base))
            half, rest = order[: len(order) // 2], order[len(order) // 2 :]
            A.append((target[half].double() - base[half].double()).mean(0))
            x = torch.cat([base[rest], target[rest]])
            swap = torch.as_tensor(rng.permutation(len(rest)) < len(rest) // 2)  # half: it leans to no side
            true = torch.arange(len(x)) >= len(rest)
            labels = torch.stack([true, torch.cat([swap, ~swap])])  # one of a pair is labelled, at random
            strength = torch.full((2,), C, dtype=torch.float64)
            found = readouts.logistic(x[None], labels, strength, torch.ones_like(labels)).weights[0]
            for side in range(2):
                W[side].append(found[side])
        for side in range(2):
            scaled, product = scaled_product(torch.stack(A), torch.stack(W[side], 1))
            m = product.numpy()
            off = np.abs(m[~np.eye(len(m), dtype=bool)]).mean()
            gaps[side].append(float(np.diag(m).mean() - off))
            tops[side].append(float((m.argmax(axis=1) == np.arange(len(m))).mean()))
            if side == 0:
                matrices.append(scaled.numpy())

    def spread(values: list[float]) -> Estimate:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return Estimate(float(np.mean(values)), float(low), float(high), len(values), level)

    return IdentityTest(
        tuple(pairs), np.mean(matrices, axis=0), spread(gaps[0]), spread(tops[0]), spread(gaps[1]), spread(tops[1])
    )


def sae_ceiling(codes: Tensor, logits: Tensor, train: NDArray, test: NDArray) -> NDArray[np.float64]:
    """How near single SAE latents come to a supervised probe, for each concept; 1 is the ceiling.

        score_k = | Pearson(z_i, logit_k) | on test rows,   i: the latent of the largest one on training rows

    Args: codes: (n, d_sae). logits: (n, K), of supervised probes. train, test: row indices.
    Returns: (K,); 0 where the chosen latent is constant on the test rows.
    Source: arXiv 2503.08980, section on SAE evaluation; choosing on other rows is ours.
    """
    chosen = _nearest(codes[train], logits[train])
    return np.array([np.abs(_pearson(codes[test][:, [i]], logits[test, k]))[0] for k, i in enumerate(chosen)])


def ceiling_estimates(
    codes: Tensor, logits: Tensor, train: NDArray, test: NDArray, *, groups: NDArray, seed: int = 0, level: float = 0.95
) -> list[tuple[Estimate, float]]:
    """`sae_ceiling` for each concept with its interval, and the same where the logits belong to other rows.

    Args: groups: (n,), what is resampled together among test rows. seed: of bootstrap and shuffle. The rest as there.
    """
    rng = np.random.default_rng(seed)
    move = np.arange(len(codes))
    for side in (train, test):
        move[side] = rng.permutation(side)
    value, chance = sae_ceiling(codes, logits, train, test), sae_ceiling(codes, logits[move], train, test)
    z, t = codes[test].double().numpy(), logits[test].double().numpy()

    def size(a: NDArray, b: NDArray) -> float:
        return abs(float(np.corrcoef(a, b)[0, 1])) if a.std() > 0 and b.std() > 0 else 0.0

    found = []
    for k, i in enumerate(_nearest(codes[train], logits[train])):
        low, high = cluster_bootstrap(size, z[:, i], t[:, k], groups=groups[test], n=500, seed=seed, level=level)
        found.append((Estimate(float(value[k]), low, high, len(test), level), float(chance[k])))
    return found


def _nearest(codes: Tensor, logits: Tensor) -> list[int]:
    """The latent of the largest |correlation| with each column."""
    return [int(np.abs(_pearson(codes, logits[:, k])).argmax()) for k in range(logits.shape[1])]


def _pearson(columns: Tensor, target: Tensor) -> NDArray[np.float64]:
    z, t = columns.double() - columns.double().mean(0), target.double() - target.double().mean()
    size = (z.norm(dim=0) * t.norm()).clamp_min(1e-300)
    return torch.where(z.norm(dim=0) > 0, (z.T @ t) / size, torch.zeros(z.shape[1], dtype=torch.float64)).numpy()
