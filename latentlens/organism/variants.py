"""Siblings of the embedded model, made when they are first asked for, and checked like the shipped one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from latentlens.organism.decoder import SHAPE, Decoder
from latentlens.organism.files import CHECKSUMS, digest, verify, write_record
from latentlens.organism.tokenizer import load_tokenizer


def untrained(shipped: Path, seed: int = 0, folder: Path | None = None) -> Path:
    """Return a folder with the shipped architecture and tokenizer and random weights: what training starts from,
    except that what writes into the residual stream is random too (there it starts at zero).

    Args: shipped: folder of the trained model. seed: of the weights. folder: None: `organism/untrained-SEED` in
        the folder of the activation cache.
    """
    import torch

    from latentlens.organism.train import export

    folder = folder or _cache() / "organism" / f"untrained-{seed}"
    if not (folder / CHECKSUMS).exists():
        tokenizer = load_tokenizer(shipped)
        decoder = Decoder(len(tokenizer), seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.normal_(0.0, 0.02, generator=generator)
        export(decoder, tokenizer, folder, {"tokens": 0, "seed": seed, "steps": 0})
    return verify(folder)


def grouped_query(shipped: Path, folder: Path | None = None) -> Path:
    """Return a folder with the same function in another shape: twice the query heads, two to a head of keys and values.

        q' = (q_1, q_1, q_2, q_2, ...),   o' = (o_1, o_1, o_2, o_2, ...) / 2

    Both copies of a head attend alike, and the output projection takes half of each: logits agree to rounding.

    Args: shipped: folder of the trained model. folder: None: `organism/gqa-DIGEST` in the folder of the activation
        cache, by the digest of the shipped weights.
    """
    from safetensors.torch import load_file, save_file

    weights = shipped / "model.safetensors"
    source = digest(weights)
    folder = folder or _cache() / "organism" / f"gqa-{source[:12]}"
    if not (folder / CHECKSUMS).exists():
        heads, width = SHAPE["num_attention_heads"], SHAPE["hidden_size"]
        size = width // heads
        state = {}
        for name, value in load_file(weights).items():
            if name.endswith("q_proj.weight"):
                value = value.view(heads, size, width).repeat_interleave(2, 0).flatten(0, 1)
            elif name.endswith("o_proj.weight"):
                value = value.view(width, heads, size).repeat_interleave(2, 1).flatten(1) / 2
            state[name] = value.contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        for file in shipped.iterdir():
            if file.suffix in (".json", ".jinja") and file.name != CHECKSUMS:
                shutil.copyfile(file, folder / file.name)
        config = json.loads((shipped / "config.json").read_text())
        config |= {"num_attention_heads": 2 * heads, "num_key_value_heads": heads, "head_dim": size}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        write_record(folder, {"converted_from": source, "tokens": 0})
    return verify(folder)


def _cache() -> Path:
    """Return the folder of the activation cache: `LATENTLENS_CACHE`, or the user's."""
    import platformdirs

    return Path(os.environ.get("LATENTLENS_CACHE") or platformdirs.user_cache_dir("latentlens"))
