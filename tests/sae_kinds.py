"""Small random SAEs of every kind, for tests."""

import torch

from latentlens.values.sae import SAE

KINDS = ("relu", "jumprelu", "topk", "gated")
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")


def make(kind="relu", *, d_in=6, d_sae=20, seed=0, site="resid_post[1]", dtype=torch.float32, scale=1.0, **options):
    """Decoder rows are not of unit norm; about half of the latents fire on standard normal inputs."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (torch.randn(*shape, generator=draw) * scale).to(dtype)

    parts = {"W_enc": normal(d_in, d_sae), "b_enc": 0.3 * normal(d_sae), "W_dec": normal(d_sae, d_in)}
    parts |= {"b_dec": normal(d_in)}
    if kind == "jumprelu":
        parts["threshold"] = normal(d_sae).abs()
    if kind == "gated":
        parts |= {"r_mag": 0.3 * normal(d_sae), "b_mag": 0.3 * normal(d_sae)}
    if kind == "topk":
        options.setdefault("k", 4)
    return SAE(kind, **parts, site=site, **options)
