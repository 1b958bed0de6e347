"""Siblings of the embedded model, made on the fly: not shipped, and checked like the shipped one."""

from __future__ import annotations

import os
from pathlib import Path

from latentlens.organism.decoder import Decoder
from latentlens.organism.files import CHECKSUMS, verify
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


def _cache() -> Path:
    """Return the folder of the activation cache: `LATENTLENS_CACHE`, or the user's."""
    import platformdirs

    return Path(os.environ.get("LATENTLENS_CACHE") or platformdirs.user_cache_dir("latentlens"))
