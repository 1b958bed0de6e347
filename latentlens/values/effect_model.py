"""A linear model of what steering does to SAE latents, and the steering vectors that it suggests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.codes import latent_index
from latentlens.values.directions import Direction, as_site
from latentlens.values.sites import Site


@dataclass(frozen=True, eq=False)
class EffectModel:
    """Mean SAE activations of the text that a unit steering vector s leads to: y = s W + b.

    weights: W, (d, d_sae). bias: b, (d_sae,), what is active whatever the steering. site: where s is added.
    about: provenance: how many vectors, the penalty, the SAE.
    """

    weights: Tensor
    bias: Tensor
    site: Site
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes; numbers become float64 on the CPU."""
        weights = torch.as_tensor(self.weights).detach().to("cpu", torch.float64)
        bias = torch.as_tensor(self.bias).detach().to("cpu", torch.float64)
        if weights.ndim != 2 or bias.shape != weights.shape[1:]:
            raise BadInput(
                f"weights (d, d_sae) and bias (d_sae,) came as {tuple(weights.shape)} and {tuple(bias.shape)}"
            )
        if not bool(weights.isfinite().all() and bias.isfinite().all()):
            raise BadInput("the effect model has NaN or infinite entries")
        for name, value in {"weights": weights, "bias": bias, "site": as_site(self.site)}.items():
            object.__setattr__(self, name, value)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.weights.shape[1]

    def predict(self, steers: Tensor) -> Tensor:
        """Effects (n, d_sae) of steering vectors (n, d); their lengths do not count."""
        return _units(steers) @ self.weights + self.bias

    def r2(self, steers: Tensor, effects: Tensor) -> float:
        """Share of the variance of effects (n, d_sae) that is predicted; give vectors that were not fitted on.

        Raises: TooFewExamples: fewer than two vectors, or effects that do not vary.
        """
        y = torch.as_tensor(effects).to("cpu", torch.float64)
        total = (y - y.mean(0)).square().sum()
        if len(y) < 2 or not total > 0:
            raise TooFewExamples(f"{len(y)} vector(s) whose effects do not vary: there is nothing to explain")
        return float(1 - (y - self.predict(steers)).square().sum() / total)

    def towards(self, target: Tensor, *, balance: float = 1.0, name: str = "", source: Any = None) -> Direction:
        """The unit vector that raises a mix of latents, and little else.

            s = unit(W t / |W t| - balance W b / |W b|)

        The second term takes out what raises the latents that are active anyway (those in b).

        Args: target: t, weights of the latents (d_sae,). balance: lambda. name, source: of the direction.
        Raises: BadInput: t has another size, is 0, or no vector raises it.
        """
        t = torch.as_tensor(target).detach().to("cpu", torch.float64)
        if t.shape != self.bias.shape or not bool(t.isfinite().all()):
            raise BadInput(f"the target has shape {tuple(t.shape)}, the model {self.d_sae} latents")
        wanted, common = self.weights @ t, self.weights @ self.bias
        if not float(wanted.norm()) > 0:
            raise BadInput("no steering vector raises this target: its latents never moved while the model was fitted")
        s = wanted / wanted.norm()
        if balance and float(common.norm()) > 0:
            s = s - balance * common / common.norm()
        if float(s.norm()) < 1e-9:
            raise BadInput("what raises this target is what raises everything: nothing is left at this balance")
        about = {"balance": balance, **dict(self.about), **(source or {})}
        return Direction((s / s.norm()).float(), self.site, name, "raw", about)

    def latent(self, latent: int, *, balance: float = 1.0) -> Direction:
        """SAE-TS: the unit vector that raises one latent, and little else. See `towards`.

        Raises: BadInput: no such latent, or one that no vector raised.
        """
        (index,) = latent_index([latent], self.d_sae).tolist()
        target = torch.zeros(self.d_sae, dtype=torch.float64)
        target[index] = 1.0
        return self.towards(
            target, balance=balance, name=f"SAE-TS latent {index}", source={"method": "SAE-TS", "latent": index}
        )

    def __repr__(self) -> str:
        fitted = f", fitted on {self.about['n']} vectors" if "n" in self.about else ""
        return f"EffectModel({self.site}: d={self.weights.shape[0]} -> {self.d_sae} latents{fitted})"


def _units(steers: Tensor) -> Tensor:
    s = torch.as_tensor(steers).detach().to("cpu", torch.float64)
    lengths = s.norm(dim=-1, keepdim=True)
    if s.ndim != 2 or not bool((lengths > 0).all()):
        raise BadInput(f"steering vectors of shape {tuple(s.shape)}: give (n, d), none of them zero")
    return s / lengths
