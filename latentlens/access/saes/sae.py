"""Opening SAEs, and encoding texts with them through the activation cache."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentlens.access.saes.sae_folders import assemble, read_folder, saelens_config
from latentlens.errors import BadInput, SiteNotFound, UnsafeFile
from latentlens.values.codes import Codes
from latentlens.values.sae import SAE
from latentlens.values.sites import Site, parse
from latentlens.values.where import PerRow

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_BLOCK = re.compile(r"(?:[A-Za-z_][\w.]*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(input|output))?")
_TEXTS = 64  # captured and encoded at a time


def load_sae(
    release_or_path: Any,
    sae_id: str | None = None,
    *,
    device: Any = "cpu",
    dtype: Any = None,
    site: Any = None,
    centre: bool | None = None,
    norm_scaling_factor: float | None = None,
    lm: LensModel | None = None,
) -> SAE:
    """Open an SAE.

        load_sae("saes/organism-topk")                                      a folder: SAELens, sparsify, ...
        load_sae("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical")   SAELens' registry, or a hub repo
        load_sae(sae)                                                       an SAE object of SAELens

    Folders are read without SAELens. GPT-2 SAEs that were trained on TransformerLens' centred residual stream
    (`res-jb`) recentre their inputs, so that they fit the plain Hugging Face model. Run `preflight(lm, sae)` next.

    Args:
        sae_id: the SAE in the release; a folder inside the folder.
        device, dtype: where and in what type it computes; its own type by default ("bfloat16", torch.float32, ...).
        site: where it reads, if its configuration does not say it in a spelling that can be read ("resid_post[5]").
        centre: recentre inputs or not, against what the configuration says.
        norm_scaling_factor: for SAEs whose `expected_average_only_in` scaling was never folded into the weights.
        lm: the model, which can read module paths inside its blocks ("model.layers.5.mlp").
    Raises: BadInput: not found, not reachable, or not of a kind known here. UnsafeFile: pickled weights.
        SiteNotFound: its hook is no site; pass site=.
    """
    about: dict[str, Any] = {}
    if hasattr(release_or_path, "cfg") and hasattr(release_or_path, "state_dict"):
        config, state = _from_object(release_or_path, device)
    elif isinstance(release_or_path, (str, Path)):
        folder = _folder(release_or_path, sae_id)
        if folder is not None:
            config, state = read_folder(folder, device)
            about = {"release": folder.name}
        else:
            config, state, about = _from_release(str(release_or_path), sae_id, str(device))
    else:
        raise BadInput(
            f"cannot open {type(release_or_path).__name__} as an SAE: give a folder, or a release and sae_id"
        )
    metadata = dict(config.get("metadata") or {})
    return assemble(
        config,
        state,
        _site(metadata, site, lm),
        about,
        dtype=_dtype(dtype),
        centre=centre,
        norm_scaling_factor=norm_scaling_factor,
    )


def encode(lm: LensModel, sae: SAE, inputs: Any, where: Any = "all", **options: Any) -> Codes:
    """Codes of texts, one row per selected token, through the activation cache and kept sparse.

    The states of a few texts at a time are held, so a corpus whose states would not fit in memory can be encoded.

    Args: inputs, where, options: as for `lm.activations` (steer, truncate, cached, ...).
    Raises: what `lm.activations` raises.
    """
    rows = lm.tokens(inputs, truncate=options.pop("truncate", None))
    parts = []
    for start in range(0, len(rows), _TEXTS):
        part = slice(start, start + _TEXTS)
        chosen = PerRow(where.wheres[part]) if isinstance(where, PerRow) else where
        found = sae.codes(lm.activations(rows[part], sites=sae.site, where=chosen, **options))
        parts.append(replace(found, labels={**found.labels, "text": found.labels["text"] + start}))
    return Codes.concatenated(parts)


def _folder(given: str | Path, sae_id: str | None) -> Path | None:
    """The folder that is meant, or None for a release."""
    path = Path(given).expanduser()
    if path.suffix in (".pt", ".pth", ".bin", ".pkl"):
        raise UnsafeFile(f"{path} is a pickle, which can execute code when loaded; SAEs are read from safetensors only")
    if path.is_file():
        path = path.parent
    if path.is_dir():
        inner = path / sae_id if sae_id else path
        if not inner.is_dir():
            raise BadInput(f"{path} has no folder {sae_id}")
        return inner
    if str(given).startswith((".", "/", "~")):
        raise BadInput(f"there is no folder {given}")
    return None


def _from_object(sae: Any, device: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = {name: tensor.detach().to(device) for name, tensor in sae.state_dict().items()}
    return saelens_config(sae.cfg.to_dict()), state


def _from_release(
    release: str, sae_id: str | None, device: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Through SAELens' registry and loaders."""
    if sae_id is None:
        raise BadInput(
            f"there is no folder {release!r}; to load from a release, name the SAE: load_sae(release, sae_id)"
        )
    from sae_lens import SAE as Theirs
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known and "/" not in release:
        near = difflib.get_close_matches(release, known, n=3, cutoff=0.3)
        raise BadInput(f"{release!r} is no folder and no release of SAELens. Nearest: {', '.join(near) or 'none'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # how to load the model into TransformerLens: not needed here
            theirs, _, _ = Theirs.from_pretrained_with_cfg_and_sparsity(release, sae_id, device=device)
    except (OSError, ConnectionError) as error:
        raise BadInput(
            f"cannot reach {release} / {sae_id}: {str(error).strip().splitlines()[0]} Without the hub, download the "
            "folder elsewhere (its cfg.json and safetensors) and give its path."
        ) from error
    except ValueError as error:
        raise BadInput(f"cannot load {release} / {sae_id}: {error}") from error
    config, state = _from_object(theirs, device)
    config["metadata"] = {**config["metadata"], **_claims(known.get(release), sae_id)}
    return config, state, {"release": release, "sae_id": sae_id}


def _claims(entry: Any, sae_id: str) -> dict[str, Any]:
    """What the registry says of an SAE; its placeholders (1.0 explained, 0 active) are left out."""
    if entry is None:
        return {}
    explained, l0 = entry.expected_var_explained.get(sae_id, 1.0), entry.expected_l0.get(sae_id, 0.0)
    found = {"model_name": entry.model} if entry.model else {}
    found |= {"variance_explained": explained} if explained not in (None, 1.0) else {}
    return found | ({"l0": l0} if l0 else {})


def _site(metadata: Mapping[str, Any], site: Any, lm: LensModel | None) -> Site:
    """Where an SAE reads, from what was given or from its hook names."""
    names = [site] if site is not None else [metadata.get("hook_name"), metadata.get("hf_hook_name")]
    names = [name for name in names if name not in (None, "")]
    if not names:
        raise SiteNotFound("the configuration of this SAE does not say where it reads: pass site='resid_post[5]'")
    reasons = []
    for name in names:
        try:
            found = name if isinstance(name, Site) else _read(str(name), lm)
        except SiteNotFound as error:
            reasons.append(str(error))
            continue
        if found is not None:
            return found
        reasons.append(f"{name!r} is a module path: pass lm= to read it, or site='resid_post[5]'")
    raise SiteNotFound("where this SAE reads cannot be told: " + "; ".join(reasons))


def _read(name: str, lm: LensModel | None) -> Site | None:
    if lm is not None:
        found = lm.layout.sites(name)
        if len(found) == 1:
            return found[0]
        raise SiteNotFound(f"{name} names {len(found)} sites")
    if block := _BLOCK.fullmatch(name):
        return Site("resid_pre" if block[2] == "input" else "resid_post", int(block[1]))
    read = parse(name)
    if read is None:
        return None
    point, blocks = read
    if blocks is not None and not blocks.isdigit():
        raise SiteNotFound(f"{name} is not one block")
    return Site(point, None if blocks is None else int(blocks))


def _dtype(dtype: Any) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise BadInput(f"dtype={dtype!r}: give a torch.dtype or its name, e.g. 'bfloat16'")
    return found
