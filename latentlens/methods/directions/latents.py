"""Directions from a sparse autoencoder: a decoder row, SAE-TS and FGAA.

latent_direction(sae, 523)                       # where the SAE writes the latent
model = EffectFit(sae.site).update(vectors, effects).finish()      # effects: ll.measure_effects(lm, sae, ...)
model.latent(523)                                # SAE-TS: what in fact raises it, other latents left alone
feature_guided(on, off, model)                   # FGAA: what raises the latents by which two sets of texts differ
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.moments import Moments
from latentlens.values.codes import Codes, latent_index
from latentlens.values.directions import Direction
from latentlens.values.effect_model import EffectModel
from latentlens.values.sae import SAE
from latentlens.values.sites import Site


def latent_direction(sae: SAE, latent: int, *, name: str = "") -> Direction:
    """Decoder row of a latent: where the SAE writes it. Its length is the decoder's.

    TRAP: writing there raises what reads that direction, which need not be this latent alone; see SAE-TS.

    Raises: BadInput: no such latent.
    Source: AxBench (arXiv 2501.17148) adds factor * (largest activation of the latent) * row.
    """
    (index,) = latent_index([latent], sae.d_sae).tolist()
    vector = sae.decoder([index])[0].detach().float().cpu()
    source = {"method": "SAE decoder", "latent": index, "sae": sae.fingerprint}
    frame = "centred" if sae.centre else "raw"
    return Direction(vector, sae.site, name or f"latent {index} of {sae.name}", frame, source)


class EffectFit:
    """Fitter of an `EffectModel` by ridge regression: keeps sums of products, no vector.

        minimise sum_i |y_i - s_i W - b|^2 + ridge n tr(cov s) / d |W|^2        b is free

    The published code comes to the same minimum by Adam. With fewer vectors than dimensions the ridge decides what is
    not seen; take a few times d, and look at `EffectModel.r2` on vectors that were kept back.

    Args: site: where the vectors were added. ridge: relative to the mean variance of the vectors.
    """

    def __init__(self, site: Site | str, *, ridge: float = 1e-3) -> None:
        if not ridge >= 0:
            raise BadInput(f"ridge={ridge}: give 0 or more")
        self.site, self.ridge = site, ridge
        self._seen: Moments | None = None
        self._d = 0

    def update(self, steers: Any, effects: Any) -> Self:
        """Take steering vectors (n, d) and the mean SAE activations (n, d_sae) of the text written under them.

        Vectors are brought to length 1.

        Raises: BadInput: shapes, or a zero vector. NonFiniteActivations.
        """
        s, y = (torch.as_tensor(t).detach().to("cpu", torch.float64) for t in (steers, effects))
        if s.ndim != 2 or y.ndim != 2 or len(s) != len(y):
            raise BadInput(
                f"steering vectors {tuple(s.shape)} and effects {tuple(y.shape)}: give (n, d) and (n, d_sae)"
            )
        if not bool(s.isfinite().all() and y.isfinite().all()):
            raise NonFiniteActivations("NaN or infinity in steering vectors or effects: drop those rows")
        lengths = s.norm(dim=1, keepdim=True)
        if not bool((lengths > 0).all()):
            raise BadInput("a steering vector is zero: it has no direction")
        if self._seen is None:
            self._seen, self._d = Moments([s.shape[1]], scatter=True), s.shape[1]
            self._both = Moments([s.shape[1] + y.shape[1]])
            self._cross = torch.zeros(s.shape[1], y.shape[1], dtype=torch.float64)
        if s.shape[1] + y.shape[1] != self._both.shape[0] or s.shape[1] != self._d:
            raise BadInput(f"vectors and effects of widths {s.shape[1]} and {y.shape[1]} differ from those before")
        if not len(s):
            return self
        s = s / lengths
        before, n = self._both.mean, self._both.n
        rows = torch.cat([s, y], 1)
        self._seen.add(s)
        self._both.add(rows)
        mean = rows.mean(0)
        delta, joined = mean - before, n * len(s) / (n + len(s))
        d = self._d
        self._cross += (s - mean[:d]).mT @ (y - mean[d:]) + joined * torch.outer(delta[:d], delta[d:])
        return self

    def finish(self) -> EffectModel:
        """The model of all vectors taken so far.

        Raises: TooFewExamples: fewer than two vectors, or, without ridge, no more vectors than dimensions.
        """
        if self._seen is None or self._seen.n < 2:
            raise TooFewExamples(f"{0 if self._seen is None else self._seen.n} steering vector(s): give at least two")
        n, d = self._seen.n, self._d
        if not self.ridge and n <= d:
            raise TooFewExamples(f"{n} vectors in {d} dimensions: without ridge give more than {d}")
        covariance = self._seen.covariance
        penalty = self.ridge * covariance.diagonal().mean() * torch.eye(d, dtype=torch.float64)
        weights = torch.linalg.solve(covariance + penalty, self._cross / n)
        mean = self._both.mean
        return EffectModel(weights, mean[d:] - mean[:d] @ weights, self.site, {"n": n, "ridge": self.ridge})  # pyright: ignore[reportArgumentType]


class FeatureContrast:
    """Fitter of `feature_guided`: keeps a sum and a count for every latent and side, and no row."""

    def __init__(self, model: EffectModel) -> None:
        self.model = model
        self._sides = [[torch.zeros(2, model.d_sae, dtype=torch.float64), 0] for _ in range(2)]

    def update(self, codes: Codes | Tensor, positive: bool) -> Self:
        """Take rows of codes, `Codes` or (n, d_sae), of texts that show what is wanted, or of texts that do not.

        Raises: BadInput: another number of latents.
        """
        sums, n = _sums(codes)
        if sums.shape[1] != self.model.d_sae:
            raise BadInput(f"codes of {sums.shape[1]} latents, the model has {self.model.d_sae}")
        side = self._sides[bool(positive)]
        side[0], side[1] = side[0] + sums, side[1] + n
        return self

    def finish(
        self, *, k: int = 16, densest: float = 0.01, exclude: Any = (), balance: float = 1.0, name: str = ""
    ) -> Direction:
        """The direction of all rows taken so far. Args, Raises: as `feature_guided`."""
        if k < 1:
            raise BadInput(f"k={k}: keep at least one latent")
        (no, n0), (yes, n1) = self._sides
        if not n1 or not n0:
            raise TooFewExamples(f"{n1} positive and {n0} negative rows of codes: give some on both sides")
        density = (yes[1] + no[1]) / (n1 + n0)
        kept = density <= densest
        if len(list(exclude)):
            kept[latent_index(list(exclude), self.model.d_sae)] = False
        difference = yes[0] / n1 - no[0] / n0
        t = torch.where(kept, difference, torch.zeros_like(difference))
        if not bool(t.any()):
            raise TooFewExamples(
                f"no latent is left: {int((density > densest).sum())} of {self.model.d_sae} fire on more than "
                f"{densest:.0%} of the rows; raise densest="
            )
        top = t.abs().topk(min(k, int((t != 0).sum()))).indices
        target = torch.zeros_like(t)
        target[top] = t[top]
        chosen = {int(j): round(float(t[j]), 6) for j in top}
        source = {"method": "FGAA", "latents": list(chosen), "weights": list(chosen.values())}
        return self.model.towards(target, balance=balance, name=name or "FGAA", source=source)


def feature_guided(
    positive: Codes | Tensor,
    negative: Codes | Tensor,
    model: EffectModel,
    *,
    k: int = 16,
    densest: float = 0.01,
    exclude: Any = (),
    balance: float = 1.0,
    name: str = "",
) -> Direction:
    """FGAA: the vector that raises the latents by which two sets of texts differ most.

        t = mean(f | positive) - mean(f | negative)
        0 where a latent is dense (fires on more than `densest` of all rows) or excluded; the k largest |t| are kept
        s = unit(W t / |W t| - balance W b / |W b|)

    Args:
        positive, negative: codes of both sets, `Codes` or (n, d_sae); a row a token, so that densities mean something.
        model: linear effects of steering, from `EffectFit`.
        k: latents kept.
        densest: the largest firing rate allowed. The paper's .01 suits SAEs with many latents; small ones need more.
        exclude: latents to leave out: those that fire on the first token (BOS).
        balance: see `EffectModel.towards`.
        name: of the direction.

    Returns: a unit Direction; `source` lists the latents with their weights.
    Raises: TooFewExamples: no rows, or no latent is left. BadInput: widths, no such latent.
    Source: Soo et al. (arXiv 2501.09929); filters and k are ours where the paper is silent.
    """
    fitter = FeatureContrast(model).update(positive, True).update(negative, False)
    return fitter.finish(k=k, densest=densest, exclude=exclude, balance=balance, name=name)


def _sums(codes: Codes | Tensor) -> tuple[Tensor, int]:
    """Sum of activations and number of rows that fire, (2, d_sae), and rows."""
    if isinstance(codes, Codes):
        latents, values = codes.indices.long().cpu(), codes.values.double().cpu()
        total = torch.zeros(codes.d_sae, dtype=torch.float64).index_add_(0, latents, values)
        return torch.stack([total, torch.bincount(latents, minlength=codes.d_sae).double()]), len(codes)
    dense = torch.as_tensor(codes).detach().to("cpu", torch.float64)
    if dense.ndim != 2:
        raise BadInput(f"codes of shape {tuple(dense.shape)}: give (n, d_sae), or Codes")
    return torch.stack([dense.sum(0), (dense != 0).double().sum(0)]), len(dense)
