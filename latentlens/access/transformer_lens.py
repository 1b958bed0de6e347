"""The model as a TransformerLens bridge: for patching recipes and circuit tools that speak its hook names."""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentlens.errors import BadInput, CheckFailed, UnsupportedArchitecture
from latentlens.values.directions import as_site
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "mlp_post": "mlp.hook_post",
}
_MODEL_HOOKS = {"final_norm": "ln_final.hook_out", "logits": "unembed.hook_out"}
# Largest error of the self-check, as a share of the largest value. The bridge computes attention in its own order.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.06}


def hook_name(site: Site | str) -> str:
    """The bridge's name of a site; latentlens reads that name back as the same site.

    >>> hook_name("resid_post[5]"), hook_name("z[0]"), hook_name("final_norm")
    ('blocks.5.hook_resid_post', 'blocks.0.attn.hook_z', 'ln_final.hook_out')

    Raises: BadInput, SiteNotFound: no site.
    """
    site = as_site(site)
    if site.block is None:
        return _MODEL_HOOKS[site.point]
    return f"blocks.{site.block}.{_HOOKS[site.point]}"


def to_transformer_lens(lm: LensModel, *, check: bool = True) -> Any:
    """A TransformerBridge over a deep copy of the model: our model stays as it is, the weights are held twice.

    `bridge.run_with_cache(ids)[1][hook_name(site)]` is what `lm.activations` reads at the site. To know: Granite's
    `attn_out` and `mlp_out` come multiplied by its residual multiplier; `unembed.hook_out` is before the softcap of
    Gemma2 and the scale of Granite and Cohere, which our logits include; and texts given to the bridge are tokenised by
    its own rules (it prepends a beginning-of-text token), so give token ids, `lm.tokens(text)[0].ids`.

    Nothing is fetched from a hub, and no weight is processed (no folded norms, nothing centred).

    Args:
        check: run eight tokens through both and compare the logits and the residual stream after every block. The
            bridge computes another function for some families (Cohere2, DeepSeek-V3, Falcon with ALiBi in 3.9).

    Returns: a `transformer_lens.model_bridge.TransformerBridge`.
    Raises: BadInput: transformer_lens is not installed; the model is quantised, offloaded or spread over devices.
        UnsupportedArchitecture: the bridge does not know the family. CheckFailed: it computes something else.
    """
    _refuse_what_cannot_be_copied(lm)
    try:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError as error:
        raise BadInput(
            f"to_transformer_lens needs TransformerLens >= 3.9 (pip install transformer-lens): {error}"
        ) from None
    model = copy.deepcopy(lm.model)
    # Where the layers are is told by the class, as in a saved model's config; a config built by hand names none.
    kind = type(model).__name__
    model.config.architectures = [kind]  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    try:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = _copied_tokenizer(lm.tokenizer, folder)
            bridge = build_bridge_from_module(
                model, kind, hf_config=model.config, tokenizer=tokenizer, model_name=lm.name
            )
    except (ValueError, AttributeError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise UnsupportedArchitecture(
            f"TransformerLens cannot bridge {kind}: {type(error).__name__}: {error}. latentlens itself does not need it"
        ) from error
    if tokenizer is not None:
        bridge.tokenizer.name_or_path = lm.tokenizer.name_or_path  # not the folder that is gone
    if check:
        _compare(lm, bridge)
    return bridge


def _refuse_what_cannot_be_copied(lm: LensModel) -> None:
    if lm.quantization is not None:
        raise BadInput(f"{lm.name} is quantised ({lm.quantization}): a bridge needs plain weights; load it without")
    devices = {p.device for p in lm.model.parameters()}
    if any(device.type == "meta" for device in devices):
        raise BadInput(f"{lm.name} is offloaded to CPU or disk: its weights cannot be copied; load it on one device")
    if len(devices) > 1:
        raise BadInput(f"{lm.name} is spread over {sorted(map(str, devices))}: load it on one device")


def _copied_tokenizer(tokenizer: Any, folder: str) -> Any:
    """A copy that knows where it can be loaded from: the bridge loads it again, to add beginning-of-text tokens."""
    if tokenizer is None:
        return None
    tokenizer.save_pretrained(folder)
    copied = copy.deepcopy(tokenizer)
    copied.init_kwargs["name_or_path"] = folder
    return copied


@torch.no_grad()
def _compare(lm: LensModel, bridge: Any) -> None:
    layout = lm.layout
    ids = (torch.arange(3, 11) % layout.vocab_size)[None].to(layout.device)
    sites = [Site("resid_post", block) for block in range(layout.n_blocks)]
    names = [hook_name(site) for site in sites]
    expected: dict[str, Tensor] = {"logits": lm.model(input_ids=ids, use_cache=False).logits}
    acts = lm.activations([ids[0].tolist()], sites=sites, cached=False)
    expected |= {name: acts[site][None] for name, site in zip(names, sites, strict=True)}
    try:
        logits, cache = bridge.run_with_cache(ids, names_filter=names)
    except Exception as error:  # whatever foreign code runs into
        raise CheckFailed(f"the bridge of {lm.name} stopped with {type(error).__name__}: {error}") from error
    allowed = _TOLERANCE.get(next(lm.model.parameters()).dtype, 0.06)
    for name, ours in expected.items():
        if name != "logits" and name not in cache:
            raise CheckFailed(f"the bridge of {lm.name} recorded no {name}")
        theirs = logits if name == "logits" else cache[name]
        a, b = ours.float().cpu(), theirs.float().cpu().reshape(ours.shape)
        error = float((a - b).abs().max() / a.abs().max())
        if not error <= allowed:
            raise CheckFailed(
                f"the bridge of {lm.name} computes another function: {name} differs by {error:.2g} of its largest "
                f"value (allowed {allowed:g}). check=False gives the bridge all the same"
            )
