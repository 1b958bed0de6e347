"""What neurons write towards tokens, read off a model's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentlens.errors import BadInput
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


def token_writes(lm: LensModel, tokens: Sequence[int], sites: Any = "mlp_post[*]") -> dict[Site, Tensor]:
    """How far one unit of each neuron moves the logit of a token, straight through the unembedding.

        writes[t, i] = W_down[i] . u_t      W_down[i]: what neuron i adds to the stream; u_t: unembedding of token t

    Times the neuron's activation it is the neuron's contribution. The final norm and everything that later blocks do
    with the write are left out. The rows are read as gradients of the two linear maps, so they come out alike for every
    way in which a family or a quantisation stores its weights.

    Args: tokens: token ids. sites: inputs of down projections.
    Returns: per site (tokens, neurons), float32.
    Raises: SiteNotFound. BadInput: a token that the model does not have, or a site that is no `mlp_post`.
    """
    found = lm.layout.sites(sites)
    wrong = [site for site in found if site.point != "mlp_post"]
    if wrong:
        raise BadInput(f"{wrong[0]} holds no neurons of an MLP: token_writes reads mlp_post sites")
    outside = [t for t in tokens if not 0 <= t < lm.layout.vocab_size]
    if outside or not tokens:
        raise BadInput(f"tokens={list(tokens)[:5]}: give ids from 0 to {lm.layout.vocab_size - 1}, at least one")
    head = lm.layout.tap(Site("logits")).module
    like = next(head.parameters())
    up = [_gradient(head, lm.layout.d_model, like, lambda out, t=t: out[..., t].sum()) for t in tokens]
    writes = {}
    for site in found:
        module, width = lm.layout.tap(site).module, lm.layout.width(site)
        rows = [_gradient(module, width, like, lambda out, u=u: (out.float() * u.to(out.device)).sum()) for u in up]
        writes[site] = torch.stack(rows).cpu()
    return writes


def _gradient(module: nn.Module, width: int, like: Tensor, readout: Any) -> Tensor:
    """Gradient (width,) of a readout of a linear module's output, float32."""
    weight = next((p for p in module.parameters() if p.is_floating_point()), like)
    with torch.enable_grad():
        x = torch.zeros(1, width, dtype=weight.dtype, device=weight.device, requires_grad=True)
        (found,) = torch.autograd.grad(readout(module(x)), x)
    return found[0].float()
