"""A sparse autoencoder as a light value: weights, options, the site it reads, and where it came from.

    z = norm(x) - b_dec              (b_dec only where `apply_b_dec_to_input`)
    p = z W_enc + b_enc
    relu       f = max(p, 0)                        jumprelu   f = max(p, 0) [p > threshold]
    topk       f = max(p, 0) [p among the k largest of its row]
    gated      f = [p > 0] max(e^r_mag z W_enc + b_mag, 0)
    xhat = unnorm(f W_dec + b_dec)

A BatchTopK SAE is a JumpReLU SAE once it is trained: its threshold is the one it learned for a whole batch.
Arithmetic is that of SAELens, in the SAE's own type; nothing is remembered between calls, so what a decoding needs
to know of the input (its mean, its spread) is read from the input again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from latentlens.errors import BadInput
from latentlens.values.activations import Activations
from latentlens.values.codes import Codes, latent_index
from latentlens.values.directions import Direction, as_site
from latentlens.values.markup import Shown, facts
from latentlens.values.sites import Site

Kind = Literal["relu", "jumprelu", "topk", "gated"]
Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]

_LN_EPSILON = 1e-5
_ROWS = 1024  # encoded at a time where only the active latents are kept
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_mag", "r_mag")
_PER_LATENT = ("b_enc", "threshold", "b_mag", "r_mag")


@dataclass(frozen=True, eq=False, repr=False)
class SAE(Shown):
    """A sparse autoencoder.

    kind: "relu" (SAELens "standard"), "jumprelu" (also what a trained BatchTopK is), "topk" or "gated".
    W_enc (d_in, d_sae), b_enc (d_sae,), W_dec (d_sae, d_in), b_dec (d_in,): the weights, not copied. b_enc is the
        gate's bias in a gated SAE.
    site: what it was trained to read.
    threshold (d_sae,): of jumprelu. k: of topk. b_mag, r_mag (d_sae,): of gated.
    apply_b_dec_to_input: whether b_dec is subtracted before encoding.
    normalisation: "none"; "layer_norm" (each input is centred and divided by its spread); "constant_norm_rescale"
        (each input is given the norm sqrt(d_in)). Both are undone after decoding.
    rescale_by_decoder_norm: codes are measured in units of the decoder rows' norms (topk).
    centre: subtract each input's mean over its coordinates first: for SAEs that were trained on TransformerLens models
        with centred writing weights (GPT-2 `res-jb`), applied to a plain Hugging Face model.
    about: release, sae_id, model name, prepend_bos, context size, and what else its configuration says.

    Raises: BadInput: shapes that do not fit, or a kind without its parameter.
    """

    kind: Kind
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    site: Site
    threshold: Tensor | None = None
    k: int | None = None
    b_mag: Tensor | None = None
    r_mag: Tensor | None = None
    apply_b_dec_to_input: bool = True
    normalisation: Normalisation = "none"
    rescale_by_decoder_norm: bool = False
    centre: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        if self.kind not in get_args(Kind) or self.normalisation not in get_args(Normalisation):
            raise BadInput(
                f"an SAE is of kind {', '.join(get_args(Kind))} with normalisation {', '.join(get_args(Normalisation))}"
                f", not {self.kind!r} with {self.normalisation!r}"
            )
        needs = {"relu": (), "jumprelu": ("threshold",), "topk": ("k",), "gated": ("b_mag", "r_mag")}[self.kind]
        missing = [name for name in needs if getattr(self, name) is None]
        if missing:
            raise BadInput(f"a {self.kind} SAE needs {' and '.join(missing)}")
        if self.W_enc.ndim != 2 or self.W_dec.ndim != 2 or self.W_enc.shape != self.W_dec.shape[::-1]:
            raise BadInput(
                f"W_enc must be (d_in, d_sae) and W_dec (d_sae, d_in): they are {tuple(self.W_enc.shape)} and "
                f"{tuple(self.W_dec.shape)}"
            )
        for name in ("b_dec", *_PER_LATENT):
            tensor, wanted = getattr(self, name), self.d_in if name == "b_dec" else self.d_sae
            if tensor is not None and tensor.shape != (wanted,):
                raise BadInput(f"{name} must have shape ({wanted},), not {tuple(tensor.shape)}")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise BadInput(f"k={self.k}: a topk SAE of {self.d_sae} latents keeps 1 to {self.d_sae} of them")
        object.__setattr__(self, "site", as_site(self.site))
        object.__setattr__(self, "_copies", {})

    # -- facts ----------------------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights, and of its arithmetic."""
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.W_enc.device

    @property
    def name(self) -> str:
        """Release and id, or the folder it was read from."""
        return "/".join(str(self.about[part]) for part in ("release", "sae_id") if self.about.get(part)) or self.kind

    @property
    def has_input_frame(self) -> bool:
        """Whether a decoding depends on the input beside the codes, so that `like` must be given."""
        return self.normalisation != "none" or self.centre

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what changes arithmetic: weights and options. The site and the name do not."""
        options = (self.kind, self.k, self.apply_b_dec_to_input, self.normalisation, self.rescale_by_decoder_norm)
        digest = hashlib.sha256(json.dumps([*options, self.centre]).encode())
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                digest.update(f"|{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
                raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(memoryview(raw.numpy()))
        return digest.hexdigest()

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> SAE:
        """The same SAE elsewhere or in another type; each copy is made once and shared from then on."""
        device = self.device if device is None else torch.device(device)
        dtype = dtype or self.dtype
        if (device, dtype) == (self.device, self.dtype):
            return self
        copies: dict[Any, SAE] = self.__dict__["_copies"]
        if (device, dtype) not in copies:
            moved = {name: t.to(device, dtype) for name in _TENSORS if (t := getattr(self, name)) is not None}
            copies[device, dtype] = replace(self, **moved)
            if dtype == self.dtype and "fingerprint" in self.__dict__:
                copies[device, dtype].__dict__["fingerprint"] = self.fingerprint
        return copies[device, dtype]

    # -- encoding -------------------------------------------------------------------------------------

    def encode(self, x: Tensor, latents: Sequence[int] | Tensor | None = None) -> Tensor:
        """Codes of inputs: (..., d_in) -> (..., d_sae), or (..., len(latents)) for some latents.

        Only the columns needed are computed, except for topk, where all latents compete. Heads (..., n, d_head) are
        laid side by side where that gives d_in.

        Raises: BadInput: another width, or no such latent.
        """
        if latents is not None:
            index = latent_index(latents, self.d_sae)
            if self.kind != "topk":
                return self.restricted(index).encode(x)
            values, active = self._top(self._flat(x))
            return _picked(values, active, index, self.d_sae)
        x = self._flat(x)
        if self.kind == "topk":
            values, active = self._top(x)
            return values.new_zeros(*x.shape[:-1], self.d_sae).scatter_(-1, active, values)
        return self._activation(self._centred_input(x) @ self.W_enc)

    def encode_sparse(self, x: Tensor, **options: Any) -> Codes:
        """Codes (n, d_in) -> `Codes`, keeping the active latents only, a thousand rows at a time.

        Args: options: `labels` and `about` of the codes.
        """
        x, parts, about = self._flat(x), [], {"sae": self.fingerprint, "name": self.name, **options.pop("about", {})}
        for chunk in x.split(_ROWS) if len(x) else [x]:
            if self.kind == "topk":
                values, active = self._top(chunk.to(self.device))
                kept = values > 0
                offsets = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.sum(-1).cumsum(0)])
                part = Codes(active[kept].to(torch.int32).cpu(), values[kept].cpu(), offsets.cpu(), self.d_sae)
            else:
                part = Codes.from_dense(self.encode(chunk.to(self.device)).cpu())
            parts.append(part)
        return replace(Codes.concatenated(parts), about=about, **options)

    def codes(self, acts: Activations, site: Any = None) -> Codes:
        """Codes of captured activations, with the labels of their rows.

        Args: site: where in `acts` to read; the SAE's own site by default.
        Raises: SiteNotFound: not captured. BadInput: another width.
        """
        site = self.site if site is None else site
        about = {"site": str(site), "model": acts.about.get("model", ""), "context": acts.about.get("context_digest")}
        return self.encode_sparse(acts[site], labels=dict(acts.labels), about=about)

    def restricted(self, latents: Sequence[int] | Tensor) -> SAE:
        """An SAE of some of its latents only: encoding, decoder rows and all.

        Raises: BadInput: a topk SAE, whose latents compete; or no such latent.
        """
        if self.kind == "topk":
            raise BadInput("the latents of a topk SAE compete: it cannot be restricted to some of them")
        index = latent_index(latents, self.d_sae).to(self.device)
        kept = {name: t[index] for name in _PER_LATENT if (t := getattr(self, name)) is not None}
        return replace(self, W_enc=self.W_enc[:, index], W_dec=self.W_dec[index], **kept)

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in and x.ndim > 2 and x.shape[-1] * x.shape[-2] == self.d_in:
            x = x.flatten(-2)
        if x.shape[-1] != self.d_in:
            raise BadInput(f"{self} reads {self.d_in} numbers per token, not {x.shape[-1]}: is it for another model?")
        return x.to(self.dtype)

    def _centred_input(self, x: Tensor) -> Tensor:
        """Z, from inputs in the SAE's type."""
        x = self._normalised(x)[0]
        return x - self.b_dec if self.apply_b_dec_to_input else x

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The normalised input, and the scale and shift (..., 1) that undo it."""
        shift = scale = None
        if self.centre:
            shift = x.mean(-1, keepdim=True)
            x = x - shift
        if self.normalisation == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            x = x - mean
            scale = x.std(-1, keepdim=True)
            x = x / (scale + _LN_EPSILON)
            shift = mean if shift is None else shift + mean
        elif self.normalisation == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            x = x / scale.clamp(min=torch.finfo(x.dtype).tiny)
        return x, scale, shift

    def _activation(self, projected: Tensor) -> Tensor:
        """F from z W_enc (which is overwritten), for the kinds whose latents do not compete."""
        if self.kind == "gated":
            assert self.r_mag is not None
            assert self.b_mag is not None
            size = torch.addcmul(self.b_mag, projected, self.r_mag.exp()).relu_()
            return size.masked_fill_(projected <= -self.b_enc, 0)
        pre = projected.add_(self.b_enc)
        if self.kind == "relu":
            return pre.relu_()
        assert self.threshold is not None
        return pre.masked_fill_(pre <= self.threshold.clamp(min=0), 0)

    def _top(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (after the ReLU) and indices of the k largest pre-activations, (..., k) each."""
        assert self.k is not None
        pre = (self._centred_input(x) @ self.W_enc).add_(self.b_enc)
        if self.rescale_by_decoder_norm:
            pre *= self.W_dec.norm(dim=-1)
        values, active = torch.topk(pre, self.k, dim=-1, sorted=False)
        return values.relu_(), active

    # -- decoding -------------------------------------------------------------------------------------

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """Reconstruction from codes: (..., d_sae) -> (..., d_in).

        Args: like: the inputs that the codes belong to; needed where the SAE normalises (`has_input_frame`).
        Raises: BadInput: `like` is needed and missing.
        """
        if self.rescale_by_decoder_norm:
            codes = codes / self.W_dec.norm(dim=-1)
        return self._undone(codes.to(self.dtype) @ self.W_dec + self.b_dec, like)

    def decode_sparse(self, codes: Codes | Tensor, like: Tensor | None = None) -> Tensor:
        """The same reconstruction, through the active latents only: n_active d_in products instead of n d_sae d_in.

        Args: codes: Codes, or a tensor (n, d_sae).
        Raises: BadInput: `like` is needed and missing.
        """
        codes = codes if isinstance(codes, Codes) else Codes.from_dense(codes)
        indices, values = codes.indices.to(self.device).long(), codes.values.to(self.device, self.dtype)
        if self.rescale_by_decoder_norm:
            values = values / self.W_dec.norm(dim=-1)[indices]
        summed = functional.embedding_bag(
            indices, self.W_dec, codes.offsets[:-1].to(self.device), mode="sum", per_sample_weights=values
        )
        return self._undone(summed + self.b_dec, like)

    def decoder(self, latents: Sequence[int] | Tensor) -> Tensor:
        """What one unit of each latent adds to the normalised reconstruction, (len(latents), d_in)."""
        rows = self.W_dec[latent_index(latents, self.d_sae).to(self.device)]
        return rows / rows.norm(dim=-1, keepdim=True) if self.rescale_by_decoder_norm else rows

    def scale(self, x: Tensor) -> Tensor | None:
        """By what a decoding multiplies for these inputs, (..., 1); None where the SAE does not rescale.

        decode(f', x) - decode(f, x) = scale(x) (f' - f) decoder: the closed form of an edit, exact for every kind.
        """
        return self._normalised(self._flat(x))[1]

    def _undone(self, decoded: Tensor, like: Tensor | None) -> Tensor:
        if not self.has_input_frame:
            return decoded
        if like is None:
            raise BadInput(
                f"{self} normalises its inputs ({'centre, ' * self.centre}{self.normalisation}): decode(codes, like=x) "
                "needs the inputs x to undo it"
            )
        _, scale, shift = self._normalised(self._flat(like))
        decoded = decoded if scale is None else decoded * scale
        return decoded if shift is None else decoded + shift

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the SAE makes of inputs: decode(encode(x))."""
        return self.decode(self.encode(x), like=x)

    def direction(self, latent: int, name: str = "") -> Direction:
        """The decoder row of a latent as a direction at the SAE's site: what one unit of the latent adds.

        In an SAE that rescales its inputs, one unit adds the vector times the scale of the state it is added to.
        """
        source = {"method": "SAE decoder row", "sae": self.fingerprint, "sae_name": self.name, "latent": int(latent)}
        frame = "centred" if self.centre else "raw"
        return Direction(self.decoder([latent])[0], self.site, name or f"latent {latent}", frame, source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SAE) and (self is other or self.fingerprint == other.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        parts = [f"{self.d_sae} latents", f"d={self.d_in}", str(self.dtype).removeprefix("torch.")]
        parts += [f"k={self.k}"] if self.kind == "topk" else []
        parts += [self.normalisation] if self.normalisation != "none" else []
        parts += ["recentres"] if self.centre else []
        model = f" of {self.about['model_name']}" if self.about.get("model_name") else ""
        named = f"{self.name}: " if self.name != self.kind else ""
        return f"SAE({named}{self.kind} at {self.site}{model}, {', '.join(parts)})"

    def _html_parts(self) -> tuple[Any, ...]:
        return (facts({**self.about, "fingerprint": self.fingerprint[:16]}),)


def _picked(values: Tensor, active: Tensor, wanted: Tensor, d_sae: int) -> Tensor:
    """Codes (..., len(wanted)) from the k active latents of each row."""
    wanted = wanted.to(active.device)
    slots, place = torch.unique(wanted, return_inverse=True)
    slot = torch.full((d_sae,), len(slots), device=active.device)  # the last column takes what nobody asked for
    slot[slots] = torch.arange(len(slots), device=active.device)
    out = values.new_zeros(*values.shape[:-1], len(slots) + 1)
    return out.scatter_(-1, slot[active], values)[..., place]
