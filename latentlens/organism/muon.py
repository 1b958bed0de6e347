"""Muon: momentum, orthogonalised, for weight matrices. After Keller Jordan's published description."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of [n, rows, columns] towards 1 by a quintic Newton-Schulz iteration.

    X <- a X + (b A + c A A) X, A = X X^T, with (a, b, c) = (3.4445, -4.7750, 2.0315), which maps any
    singular value in (0, 1] to about [0.7, 1.2] in five steps.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Update: W <- (1 - lr * decay) W - lr * sqrt(max(1, rows / columns)) * orthogonalise(momentum)."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Apply one update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(state["momentum"], group["momentum"])
                by_shape[parameter.shape].append((parameter, direction))
            for shape, pairs in by_shape.items():
                update = orthogonalise(torch.stack([direction for _, direction in pairs]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for (parameter, _), direction in zip(pairs, update):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(scale * direction)
