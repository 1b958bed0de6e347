"""Training the SAEs of the embedded model on the texts that it was trained on, further along the same stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from latentlens.access.model import LensModel
from latentlens.access.saes.sae_training import TrainedKind, train_sae
from latentlens.errors import BadInput
from latentlens.organism import path
from latentlens.organism.corpus import STAGES, documents
from latentlens.organism.files import write_sae_record
from latentlens.values.sae import SAE


@dataclass(frozen=True)
class Recipe:
    """Where an SAE reads, of what kind it is, how many latents it has and how many are active on a token."""

    block: int
    kind: TrainedKind
    d_sae: int
    k: float


RECIPES = {
    "middle": Recipe(3, "topk", 1024, 16),
    "late": Recipe(5, "jumprelu", 1024, 16),
}
N_TEXTS, TOKENS = 5_000, 2_000_000
#: The model's own training ended before document 300,000; the mix from there on is that of the last stage.
FIRST = 400_000


def corpus(n: int = N_TEXTS, seed: int = 0) -> list[Any]:
    """Return n texts of every family in the shares of the last stage: chats as messages, the rest as text."""
    assert STAGES[-1] <= FIRST
    return [text.messages() or text.text for text in islice(documents(seed, FIRST), n)]


def train(
    lm: LensModel, out: Path, names: Sequence[str] = (), *, tokens: int = TOKENS, n: int = N_TEXTS, seed: int = 0
) -> dict[str, SAE]:
    """Train the named SAEs (none given: all) and write each to its folder in `out`, with checksums.

    Args: lm: the embedded model. tokens: activations to train on, repeats included. n: texts. seed: of both.
    Raises: BadInput: no such SAE.
    """
    for name in names:
        if name not in RECIPES:
            raise BadInput(f"no SAE {name!r}; choose from {', '.join(RECIPES)}")
    texts, found = corpus(n, seed), {}
    for name in names or RECIPES:
        one, folder = RECIPES[name], out / name
        site = f"resid_post[{one.block}]"
        found[name] = train_sae(lm, texts, site, one.kind, one.d_sae, one.k, tokens=tokens, seed=seed, out=folder)
        (folder / "sae_weights.safetensors").chmod(0o644)  # readable by all, as the files beside it
        write_sae_record(folder, path(), {"name": name, "texts": n, "first_document": FIRST, "seed": seed})
    return found
