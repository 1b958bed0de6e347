"""What steering does to SAE latents: texts written under many vectors, encoded, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.operations import Add
from latentlens.values.sae import SAE

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


def measure_effects(
    lm: LensModel,
    sae: SAE,
    prompts: Sequence[Any],
    vectors: Tensor,
    strength: float,
    *,
    site: Any = None,
    max_new_tokens: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
    where: Any = "last_prompt+response",
) -> Tensor:
    """Mean SAE activations over the tokens written under each steering vector, read WITHOUT steering.

        y_i = mean over prompts and their generated tokens of f(h),    text written with Add(s_i, strength, unit="norm")

    The text is read again by the unedited model, so the effect is what the vector made the model say and not the vector
    itself. Every vector sees the same prompts and the same randomness; all share batches.

    Args:
        vectors: (n, d); only their directions count.
        strength: in median norms; choose it by a KL budget on a few of the vectors.
        site: where they are added; the SAE's site by default.
        where: positions that are steered.
    Returns: (n, d_sae), float64: the effects for `directions.EffectFit`.
    Raises: BadInput: shapes. What `lm.generate` raises.
    Source: SAE-TS, Chalnev et al. (arXiv 2411.02193), with the norm set by cross entropy there.
    """
    vectors = torch.as_tensor(vectors)
    prompts = list(prompts)
    if vectors.ndim != 2 or not len(vectors) or not prompts:
        raise BadInput(f"vectors {tuple(vectors.shape)} and {len(prompts)} prompts: give (n, d) and one prompt or more")
    place = lm.layout.sites(sae.site if site is None else site)[0]
    plans = [[Add(Direction(v, place), strength, unit="norm", where=where)] for v in vectors for _ in prompts]
    runs = lm.generate(
        prompts * len(vectors), max_new_tokens, temperature=temperature, seed=seed, steer=plans, allow_idle=True
    )
    codes = lm.latents(sae, list(runs), where="response", cached=False)
    total = torch.zeros(len(vectors), sae.d_sae, dtype=torch.float64)
    owner = torch.as_tensor(codes.labels["text"]) // len(prompts)
    latent, row = codes.indices.long().cpu(), codes.row_of.cpu()
    total.index_put_((owner[row], latent), codes.values.double().cpu(), accumulate=True)
    return total / torch.bincount(owner, minlength=len(vectors)).clamp_min(1)[:, None]
