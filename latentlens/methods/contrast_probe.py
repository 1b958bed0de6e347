"""CCS: a direction from contrast pairs, without labels.

    found = fit_contrast(yes, no, site="resid_post[4]", seed=0)   # states of "... Yes" and of "... No"
    found.score(yes, no)                                          # probability that "yes" holds, (n,)

It only asks that the two answers exclude each other and that one of them holds. Any binary feature of the texts does
that, so its direction is a claim to be tested and not truth, and its sign is arbitrary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.statistics import auroc
from latentlens.values.directions import Direction, as_site
from latentlens.values.markup import Shown
from latentlens.values.sites import Site


@dataclass(frozen=True, eq=False)
class ContrastProbe(Shown):
    """What CCS found: direction in raw coordinates, the mean of each side, intercept, loss of every restart."""

    direction: Direction
    mean_yes: Tensor
    mean_no: Tensor
    intercept: float
    losses: tuple[float, ...]

    def score(self, yes: Tensor, no: Tensor) -> NDArray[np.float64]:
        """(p+ + 1 - p-) / 2 for each pair, (n,): above one half where the direction says yes."""
        w = self.direction.vector.double()
        p = ((yes.double() - self.mean_yes) @ w + self.intercept).sigmoid()
        q = ((no.double() - self.mean_no) @ w + self.intercept).sigmoid()
        return ((p + 1 - q) / 2).numpy()

    def auroc(self, yes: Tensor, no: Tensor, labels: NDArray) -> float:
        """AUROC with the better of the two signs, which CCS cannot know: so chance is above .5, about
        .5 + .8 standard errors. Compare with the same on shuffled labels.
        """  # fmt: skip
        value = auroc(self.score(yes, no), labels)
        return max(value, 1 - value)

    def __repr__(self) -> str:
        return f"ContrastProbe({self.direction!r}, loss {min(self.losses):.4f} of {len(self.losses)} restarts)"


def ccs_loss(p_yes: Tensor, p_no: Tensor) -> Tensor:
    """Mean of (p+ - (1 - p-))^2 + min(p+, p-)^2.

    >>> round(float(ccs_loss(torch.tensor([.8]), torch.tensor([.3]))), 3)
    0.1
    """
    return ((p_yes - (1 - p_no)).square() + torch.minimum(p_yes, p_no).square()).mean(-1)


def fit_contrast(
    yes: Tensor, no: Tensor, *, site: Site | str, restarts: int = 10, steps: int = 1000, lr: float = 1e-3,
    weight_decay: float = 0.01, seed: int = 0,
) -> ContrastProbe:  # fmt: skip
    """Contrast-consistent search; all restarts run together, the one of the least loss is kept.

    Args:
        yes, no: (n, d), states of the two answers to the same questions; each side loses its own mean, so that
            the words themselves cannot be read.
        site: where they come from.
        restarts, steps, lr, weight_decay: of AdamW, as published.
        seed: of the starts.

    Raises: BadInput: shapes. TooFewExamples: fewer than two pairs. NonFiniteActivations.
    Source: Burns et al. (arXiv 2212.03827); that any feature will do: Farquhar et al. (arXiv 2312.10029).
    """
    if yes.shape != no.shape or yes.ndim != 2:
        raise BadInput(f"yes {tuple(yes.shape)} and no {tuple(no.shape)}: both must be (n, d), row by row a pair")
    if len(yes) < 2:
        raise TooFewExamples(f"{len(yes)} pair(s): CCS needs at least 2")
    if not bool(yes.isfinite().all() and no.isfinite().all()):
        raise NonFiniteActivations("NaN or infinity in the pairs: drop those rows")
    means = yes.double().mean(0), no.double().mean(0)
    a, b = (side.double() - mean for side, mean in zip((yes, no), means))
    scale = torch.cat([a, b]).square().mean().sqrt().clamp_min(1e-12)  # one number: directions keep their meaning
    a, b = (a / scale).float(), (b / scale).float()
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(restarts, a.shape[1], generator=g) / a.shape[1] ** 0.5
    w, bias = w.requires_grad_(), torch.zeros(restarts, 1, requires_grad=True)
    optimiser = torch.optim.AdamW([w, bias], lr=lr, weight_decay=weight_decay)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            ccs_loss((w @ a.T + bias).sigmoid(), (w @ b.T + bias).sigmoid()).sum().backward()
            optimiser.step()
    with torch.no_grad():
        losses = ccs_loss((w @ a.T + bias).sigmoid(), (w @ b.T + bias).sigmoid())
        best = int(losses.argmin())
        vector, intercept = w[best].detach() / scale, float(bias[best, 0])
    about = {"method": "CCS", "seed": seed, "pairs": len(yes), "loss": float(losses[best])}
    direction = Direction(vector.float(), as_site(site), "CCS", "raw", about)
    return ContrastProbe(direction, *means, intercept, tuple(losses.tolist()))
