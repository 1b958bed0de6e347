"""From configurations and weights, as other libraries write them, to an `SAE`. No pickle is ever opened.

SAELens              cfg.json + sae_weights.safetensors (before and since version 6, checkpoints of training included)
sparsify             cfg.json + sae.safetensors
dictionary_learning  config.json + ae.safetensors (its own ae.pt is a pickle: convert it first)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput, UnsafeFile
from latentlens.values.sae import SAE
from latentlens.values.sites import Site

_KINDS = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
#: What is kept of a configuration in `SAE.about`.
KEPT = (
    "model_name", "hook_name", "hf_hook_name", "prepend_bos", "context_size", "exclude_special_tokens", "dataset_path",
    "neuronpedia_id", "model_from_pretrained_kwargs", "training_architecture", "l0", "num_dead_features",
    "variance_explained", "training", "sae_lens_version",
)  # fmt: skip
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl")
_CENTRED_POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def read_folder(folder: Path, device: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (in the form of SAELens 6) and weights of a folder.

    Raises: BadInput: no known format. UnsafeFile: its weights are pickled.
    """
    for config, weights, reader in (
        ("cfg.json", "sae_weights.safetensors", _saelens),
        ("cfg.json", "sae.safetensors", _sparsify),
        ("config.json", "ae.safetensors", _dictionary_learning),
    ):
        if (folder / config).is_file() and (folder / weights).is_file():
            try:
                about = json.loads((folder / config).read_text())
            except json.JSONDecodeError as error:
                raise BadInput(f"{folder / config} is no JSON: {error}") from None
            return reader(folder, about, _tensors(folder / weights, device))
    pickled = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickled:
        raise UnsafeFile(
            f"{folder} has pickled weights only ({', '.join(pickled[:3])}), which can execute code when loaded; they "
            "are never opened here. Where you trust them: torch.load(file, weights_only=True), then "
            "safetensors.torch.save_file(...) as ae.safetensors (dictionary_learning) or sae_weights.safetensors."
        )
    raise BadInput(
        f"{folder} holds no SAE: expected cfg.json with sae_weights.safetensors (SAELens) or sae.safetensors "
        "(sparsify), or config.json with ae.safetensors (dictionary_learning)"
    )


def saelens_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A SAELens configuration in the form of version 6: options at the top, the rest under `metadata`."""
    if isinstance(config.get("metadata"), Mapping):
        return dict(config)
    flat = {_OLD_NAMES.get(key, key): value for key, value in config.items()}
    normalise = flat.get("normalize_activations")
    if isinstance(normalise, bool):
        flat["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    activation = str(flat.get("activation_fn") or "relu").removesuffix("()").lower()
    if activation == "topk":
        flat["architecture"] = "topk"
        flat["k"] = (flat.get("activation_fn_kwargs") or {}).get("k", flat.get("k"))
    elif activation not in ("relu", "jumprelu"):
        raise BadInput(f"an SAE with activation function {activation!r} cannot be read: known are relu, topk, jumprelu")
    flat.setdefault("prepend_bos", True)  # what SAELens assumed before version 6
    return {**flat, "metadata": flat}


def assemble(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    site: Site,
    about: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    centre: bool | None,
    norm_scaling_factor: float | None,
) -> SAE:
    """Put an SAE together.

    Args:
        config: in the form of `saelens_config`. state: its weights.
        dtype: type to compute in; the configuration's by default.
        centre: subtract each input's mean over its coordinates; by default where the configuration says that the SAE
            was trained with `center_writing_weights`, at a point of the residual stream or one that writes to it.
        norm_scaling_factor: of an SAE that expects inputs of a given average norm; folded into the weights.
    Raises: BadInput: an architecture, activation or normalisation that is not known here, or missing weights.
    """
    architecture, metadata = str(config.get("architecture", "standard")), dict(config.get("metadata") or {})
    if architecture not in _KINDS:
        raise BadInput(f"an SAE of architecture {architecture!r} cannot be read: known are {', '.join(_KINDS)}")
    if config.get("finetuning_scaling_factor") or "finetuning_scaling_factor" in state:
        raise BadInput("this SAE has a fine-tuned scaling factor per latent, which SAELens 6 dropped: fold it first")
    if metadata.get("hook_head_index") is not None:
        raise BadInput(f"this SAE reads head {metadata['hook_head_index']} alone, which is no site of latentlens")
    kind = _KINDS[architecture]
    parts = _named(dict(state), architecture, bool(config.get("rescale_acts_by_decoder_norm")), int(config["d_sae"]))
    parts = {name: tensor.to(dtype or _dtype(config.get("dtype"))) for name, tensor in parts.items()}
    normalisation = str(config.get("normalize_activations") or "none")
    if normalisation == "expected_average_only_in":
        if norm_scaling_factor is None:
            raise BadInput(
                "this SAE was trained on inputs scaled to a given average norm (expected_average_only_in) and the "
                "factor is not folded into its weights, so it would read the model's states at the wrong scale. Pass "
                "norm_scaling_factor= (sqrt(d_in) / the mean norm of the states it was trained on)."
            )
        parts["W_enc"] = parts["W_enc"] * norm_scaling_factor
        parts["W_dec"], parts["b_dec"] = parts["W_dec"] / norm_scaling_factor, parts["b_dec"] / norm_scaling_factor
        normalisation = "none"
    elif normalisation not in ("none", "layer_norm", "constant_norm_rescale"):
        raise BadInput(f"an SAE with normalize_activations={normalisation!r} that is not folded cannot be used")
    if centre is None:
        kwargs = metadata.get("model_from_pretrained_kwargs") or {}
        centre = bool(kwargs.get("center_writing_weights")) and site.point in _CENTRED_POINTS
    return SAE(
        kind,  # type: ignore[arg-type]
        **parts,
        site=site,
        k=int(config["k"]) if kind == "topk" else None,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        normalisation=normalisation,  # type: ignore[arg-type]
        rescale_by_decoder_norm=kind == "topk" and bool(config.get("rescale_acts_by_decoder_norm")),
        centre=centre,
        about={**{key: metadata[key] for key in KEPT if metadata.get(key) is not None}, **about},
    )


def _named(state: dict[str, Tensor], architecture: str, rescaled: bool, d_sae: int) -> dict[str, Tensor]:
    """Weights under the names of `SAE`."""
    try:
        parts = {name: state[name] for name in ("W_enc", "W_dec", "b_dec")}
        if architecture == "gated":
            return {**parts, "b_enc": state["b_gate"], "b_mag": state["b_mag"], "r_mag": state["r_mag"]}
        parts["b_enc"] = state["b_enc"]
        if architecture == "jumprelu":
            parts["threshold"] = state["threshold"] if "threshold" in state else state["log_threshold"].exp()
        elif "batchtopk" in architecture:  # a checkpoint of training: one threshold for all latents
            parts["threshold"] = torch.full_like(parts["b_enc"], float(state["topk_threshold"]))
            if rescaled:
                norms = parts["W_dec"].norm(dim=-1)
                parts |= {"W_enc": parts["W_enc"] * norms, "b_enc": parts["b_enc"] * norms}
                parts["W_dec"] = parts["W_dec"] / norms[:, None]
    except KeyError as error:
        raise BadInput(f"this {architecture} SAE of {d_sae} latents has no weights {error}") from None
    return parts


def _saelens(
    folder: Path, config: Mapping[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    scaling = state.pop("scaling_factor", None)  # written by old versions whether it was used or not
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        state["finetuning_scaling_factor"] = scaling
    return saelens_config(config), state


def _sparsify(
    folder: Path, config: Mapping[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As sparsify computes: relu((x - b_dec) W' + b), the k largest, decoder rows as they are."""
    if config.get("signed") or config.get("transcode"):
        raise BadInput(f"{folder}: signed latents and transcoders of sparsify cannot be read")
    outer = folder.parent / "config.json"
    run = json.loads(outer.read_text()) if outer.is_file() else {}
    decoder = state["W_dec"] if "W_dec" in state else state["decoder.weight"].T
    encoder = state["W_enc"] if "W_enc" in state else state["encoder.weight"].T
    d_in, d_sae = int(config["d_in"]), encoder.shape[1]
    weights = {
        "W_enc": encoder,
        "W_dec": decoder if decoder.shape == (d_sae, d_in) else decoder.T,
        "b_enc": state.get("encoder.bias", state.get("b_enc", torch.zeros(d_sae))),
        "b_dec": state.get("b_dec", state.get("decoder.bias", torch.zeros(d_in))),
    }
    metadata = {
        "model_name": run.get("model"),
        "hf_hook_name": re.sub(r"(?<=[a-z])_(?=\d)", ".", folder.name),  # the module: layers.5, or layers_5
        "dataset_path": run.get("dataset"),
        "context_size": run.get("ctx_len"),
    }
    options = {"architecture": "topk", "k": int(config["k"]), "d_in": d_in, "d_sae": d_sae}
    return {**options, "dtype": str(encoder.dtype), "apply_b_dec_to_input": True, "metadata": metadata}, weights


def _dictionary_learning(
    folder: Path, config: Mapping[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As SAELens converts them; JumpReLU subtracts no b_dec, the others do."""
    trainer = config["trainer"]
    kinds = {
        "AutoEncoder": "standard",
        "AutoEncoderTopK": "topk",
        "GatedAutoEncoder": "gated",
        "BatchTopKSAE": "jumprelu",
        "MatryoshkaBatchTopKSAE": "jumprelu",
        "JumpReluAutoEncoder": "jumprelu",
    }
    name = str(trainer.get("dict_class", "AutoEncoder"))
    if name not in kinds:
        raise BadInput(f"{folder}: dictionary {name!r} cannot be read: known are {', '.join(kinds)}")
    renamed = {
        "encoder.bias": "b_enc",
        "bias": "b_dec",
        "decoder_bias": "b_dec",
        "mag_bias": "b_mag",
        "gate_bias": "b_gate",
    }
    weights = {renamed.get(key, key): value for key, value in state.items() if not key.endswith(".weight")}
    for ours, theirs in (("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")):
        weights[ours] = state[ours] if ours in state else state[theirs].T
    d_sae = weights["W_enc"].shape[1]
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].expand(d_sae).clone()
    residual = str(trainer.get("submodule_name") or "resid_post").startswith("resid_post")
    metadata = {
        "model_name": trainer.get("lm_name"),
        "hook_name": f"blocks.{trainer['layer']}.hook_resid_post" if "layer" in trainer and residual else None,
        "context_size": (config.get("buffer") or {}).get("ctx_len"),
    }
    options = {"architecture": kinds[name], "k": trainer.get("k"), "d_in": weights["W_enc"].shape[0], "d_sae": d_sae}
    options |= {"apply_b_dec_to_input": name != "JumpReluAutoEncoder", "dtype": str(weights["W_enc"].dtype)}
    return {**options, "metadata": metadata}, weights


def _tensors(file: Path, device: Any) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device=str(device))
    except SafetensorError as error:
        raise UnsafeFile(f"{file} is no safetensors file ({error}); pickles are never opened here") from None


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name or "float32").removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise BadInput(f"dtype {name!r} of the SAE is not known")
    return found
