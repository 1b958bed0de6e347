"""Additions that depend on what a probe reads in the state: which vector, and how much of it.

AdaptiveAdd     softmax probe over K vectors, the chosen one (or their mixture) is added       G-ACT
ShortfallAdd    J binary probes, each adds its vector in proportion to 1 + beta - p            ACT

Both decide inside the hook, for every state by itself or, `AdaptiveAdd` only, once per row on the prompt. Rows with
other probes and vectors of the same shapes are evaluated together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.arguments import dot, known_unit, number, put
from latentlens.values.interventions import Intervention, Unit
from latentlens.values.where import Where


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveAdd(Intervention):
    """Add the vector that a softmax probe at the same site chooses.

        p = softmax(W h + b)
        hard    h' = h + c v_k,  k = argmax p, the lowest of equals
        soft    h' = h + c sum_k p_k v_k
        gate    h' = h  where max p < threshold

    vectors: (K, d). weight, bias: (K, d) and (K,), of the probe. coeff: c. unit: "raw" multiplies the vectors as they
        are; "norm" adds c median norms of the states at the site along each of them (a zero vector stays zero).
    soft: mix all vectors by their probability. threshold: in [0, 1]; 0 always acts.
    reads: None decides at every position for itself; a selection of prompt positions ("last_prompt", "prompt") decides
        once per row, on their mean state as this edit finds it, and keeps the decision.

    With K = 1 the probability is 1 and h' = h + c v, bit for bit what `Add` gives.

    Raises: BadInput: shapes that do not fit, numbers that are not finite, a threshold outside [0, 1].
    Source: G-ACT, Sharma and Raman (arXiv 2506.18887); its code is not public, see docs/gact.md for what is ours.
    """

    vectors: Any
    weight: Any
    bias: Any
    coeff: float = 1.0
    unit: Unit = "raw"
    soft: bool = False
    threshold: float = 0.0
    reads: Any = None

    def __post_init__(self) -> None:
        """Check shapes and numbers."""
        super().__post_init__()
        vectors, weight = _rows(self.vectors, "vectors"), _rows(self.weight, "weight")
        if vectors.shape != weight.shape:
            raise BadInput(f"vectors {tuple(vectors.shape)} and weight {tuple(weight.shape)} must both be (K, d)")
        threshold = number(self.threshold, "threshold")
        if not 0 <= threshold <= 1:
            raise BadInput(f"threshold={threshold:g} is compared with a probability: give 0 to 1")
        put(self, vectors=vectors, weight=weight, bias=_numbers(self.bias, "bias", len(vectors)), threshold=threshold)
        put(self, coeff=number(self.coeff, "coeff"), unit=known_unit(self.unit), soft=bool(self.soft))
        put(self, reads=None if self.reads is None else Where.of(self.reads))

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.vectors.shape[-1]

    @property
    def lane(self) -> Hashable:
        """By shape; those that decide once per row are apart."""
        return (type(self).__name__, tuple(self.vectors.shape), self.reads is not None)

    def tensors(self) -> Mapping[str, Tensor]:
        """The probe (K, d) and (K,), c v (K, d), the threshold and whether to mix (1,) each."""
        flags = {"threshold": torch.tensor([self.threshold]), "soft": torch.tensor([float(self.soft)])}
        return {"weight": self.weight, "bias": self.bias, "added": self.coeff * self.vectors, **flags}

    @staticmethod
    def formula(
        h: Tensor, *, weight: Tensor, bias: Tensor, added: Tensor, threshold: Tensor, soft: Tensor,
        seen: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """H + c sum_k m_k v_k, m one-hot or p; states behind the gate are returned bit for bit.

        Args: seen: (n, d), the states to decide on, where they are not those to edit.
        """
        p = probabilities(h if seen is None else seen, weight, bias)
        chosen = torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
        mix = torch.where(soft > 0, p, chosen)
        moved = h + sum(mix[:, k : k + 1] * added[..., k, :] for k in range(p.shape[-1]))
        return torch.where(p.amax(-1, keepdim=True) >= threshold, moved, h)

    def choices(self, states: Tensor) -> Tensor:
        """The vector that is chosen for each state, (n,): its index, -1 where the gate is closed."""
        p = probabilities(states.float(), self.weight.to(states.device), self.bias.to(states.device))
        return torch.where(p.amax(-1) >= self.threshold, p.argmax(-1), -1)

    def in_raw_units(self, norm: Callable[[Any], float]) -> Self:
        """C median norms along every vector."""
        if self.unit == "raw":
            return self
        scale = self.coeff * norm(self.site)
        lengths = [float(v.norm()) for v in self.vectors]
        rows = [(scale / size) * v if size else v for v, size in zip(self.vectors, lengths, strict=True)]
        return replace(self, vectors=torch.stack(rows), coeff=1.0, unit="raw")

    def __repr__(self) -> str:
        kind = "soft" if self.soft else "hard"
        parts = [f"{len(self.vectors)} vectors", kind, f"{self.coeff:+g}"]
        parts += ["in median norms"] if self.unit == "norm" else []
        parts += [f"p>={self.threshold:g}"] if self.threshold else []
        parts += [f"decided on {self.reads}"] if self.reads is not None else []
        parts += [f"at {self.site}", str(self.where)]
        parts += [] if self.schedule.constant else [str(self.schedule)]
        return f"AdaptiveAdd({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class ShortfallAdd(Intervention):
    """Add vectors in proportion to how far binary probes at the same site are from saying yes.

        h' = h + c sum_j v_j (1 + beta - p_j),     p_j = sigmoid(w_j . h + b_j)

    vectors, weight: (J, d). bias: (J,). coeff: c. beta: the push that stays when p = 1; None takes 1 in place of
    (1 + beta - p), which is ITI's constant push. ACT has v_j = sigma_j theta_j, theta the unit normal of a head's probe
    and sigma the standard deviation of projections on it; at a `z` site the entries outside the head are zero.

    All probes read the state as it came in.

    Raises: BadInput: shapes that do not fit, numbers that are not finite.
    Source: ACT, Wang et al. (arXiv 2406.00034); alpha = 12 (15 in the first version), beta = 0.
    """

    vectors: Any
    weight: Any
    bias: Any
    coeff: float = 1.0
    beta: float | None = 0.0

    def __post_init__(self) -> None:
        """Check shapes and numbers."""
        super().__post_init__()
        vectors, weight = _rows(self.vectors, "vectors"), _rows(self.weight, "weight")
        if vectors.shape != weight.shape:
            raise BadInput(f"vectors {tuple(vectors.shape)} and weight {tuple(weight.shape)} must both be (J, d)")
        put(self, vectors=vectors, weight=weight, bias=_numbers(self.bias, "bias", len(vectors)))
        put(self, coeff=number(self.coeff, "coeff"), beta=None if self.beta is None else number(self.beta, "beta"))

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.vectors.shape[-1]

    def tensors(self) -> Mapping[str, Tensor]:
        """The probes (J, d) and (J,), c v (J, d), 1 + beta and whether p counts (1,) each."""
        most, counts = (1.0, 0.0) if self.beta is None else (1.0 + self.beta, 1.0)
        numbers = {"most": torch.tensor([most]), "counts": torch.tensor([counts])}
        return {"weight": self.weight, "bias": self.bias, "added": self.coeff * self.vectors, **numbers}

    @staticmethod
    def formula(h: Tensor, *, weight: Tensor, bias: Tensor, added: Tensor, most: Tensor, counts: Tensor) -> Tensor:
        """H + c sum_j v_j (1 + beta - p_j)."""
        push = most - counts * torch.sigmoid(scores(h, weight, bias))
        return h + sum(push[:, j : j + 1] * added[..., j, :] for j in range(push.shape[-1]))

    def __repr__(self) -> str:
        beta = "constant" if self.beta is None else f"beta={self.beta:g}"
        parts = [f"{len(self.vectors)} probes", f"{self.coeff:+g}", beta, f"at {self.site}", str(self.where)]
        parts += [] if self.schedule.constant else [str(self.schedule)]
        return f"ShortfallAdd({', '.join(parts)})"


def scores(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W h + b of each state, (n, K), summed state by state; weight (K, d) or one for each state (n, K, d)."""
    return torch.cat([dot(states, weight[..., k, :]) for k in range(weight.shape[-2])], -1) + bias


def probabilities(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """softmax(W h + b) of each state, (n, K); arguments as for `scores`."""
    return scores(states, weight, bias).softmax(-1)


def _rows(value: Any, name: str) -> Tensor:
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float32).clone()
    if tensor.ndim != 2 or tensor.numel() == 0 or not torch.isfinite(tensor).all():
        raise BadInput(f"{name} must be finite, one row a vector; it has shape {tuple(tensor.shape)}")
    return tensor


def _numbers(value: Any, name: str, n: int) -> Tensor:
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float32).clone()
    if tensor.shape != (n,) or not torch.isfinite(tensor).all():
        raise BadInput(f"{name} must be {n} finite numbers, one a vector; it has shape {tuple(tensor.shape)}")
    return tensor
