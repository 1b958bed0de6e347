"""The shipped files and their checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from latentlens.errors import WeightsCorrupt

CHECKSUMS = "checksums.json"
TRAINING = "training.json"
RETRAIN = "python -m latentlens.organism.train"
SAE_RECORD = "trained_on.json"


def digest(file: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_checksums(folder: Path) -> None:
    """Write the sha256 of every data file in `folder` (the model card, which people edit, is left out)."""
    files = sorted(f for f in folder.iterdir() if f.suffix in {".json", ".safetensors", ".jinja"})
    sums = {f.name: digest(f) for f in files if f.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")


def verify(folder: Path) -> Path:
    """Return `folder` if every file in its checksum list is there and unchanged.

    Raises: WeightsCorrupt: a file is missing or has changed, or the tokenizer is not the one that the weights were
        trained with; the message says which and what to do.
    """
    advice = f"reinstall latentlens, or retrain with `{RETRAIN}`"
    _unchanged(folder, advice)
    _match(folder, advice)
    return folder


def _unchanged(folder: Path, advice: str) -> None:
    listing = folder / CHECKSUMS
    try:
        expected = json.loads(listing.read_text())
    except (OSError, ValueError) as error:
        raise WeightsCorrupt(f"cannot read {listing} ({error}); {advice}") from error
    for name, wanted in expected.items():
        file = folder / name
        if not file.is_file():
            raise WeightsCorrupt(f"{file} is missing; {advice}")
        found = digest(file)
        if found != wanted:
            raise WeightsCorrupt(f"{file} has sha256 {found[:12]}..., expected {wanted[:12]}...; {advice}")


def _match(folder: Path, advice: str) -> None:
    """Compare the tokenizer with what the weights were trained with: the number of tokens, and its digest."""
    try:
        tokens = json.loads((folder / "tokenizer.json").read_text())
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        trained = json.loads((folder / TRAINING).read_text())
        there = len({*tokens["model"]["vocab"], *(added["content"] for added in tokens["added_tokens"])})
    except (OSError, ValueError, KeyError) as error:
        raise WeightsCorrupt(
            f"cannot read the tokenizer or the configuration in {folder} ({error}); {advice}"
        ) from error
    if there != rows:
        raise WeightsCorrupt(f"the tokenizer in {folder} has {there} tokens, the weights have {rows}; {advice}")
    if "tokenizer" in trained and trained["tokenizer"] != digest(folder / "tokenizer.json"):
        raise WeightsCorrupt(
            f"the tokenizer in {folder} has as many tokens as the weights, {rows}, but is not the one they were "
            f"trained with; {advice}"
        )


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write how the weights were made, with the digest of their tokenizer, and renew the checksums."""
    record = {**record, "tokenizer": digest(folder / "tokenizer.json")}
    (folder / TRAINING).write_text(json.dumps(record, indent=2) + "\n")
    write_checksums(folder)


def write_sae_record(folder: Path, weights: Path, record: dict[str, Any]) -> None:
    """Write how an SAE was made, with the digest of the weights whose states it was trained on, and its checksums."""
    record = {**record, "weights": digest(weights / "model.safetensors")}
    (folder / SAE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
    write_checksums(folder)


def verify_sae(folder: Path, weights: Path) -> Path:
    """Return `folder` if every file of the SAE is there and unchanged, and it belongs to the weights in `weights`.

    Raises: WeightsCorrupt: a file is missing or has changed, or the SAE was trained on other weights.
    """
    advice = "reinstall latentlens, or train it again with `latentlens organism train-sae`"
    _unchanged(folder, advice)
    trained, here = json.loads((folder / SAE_RECORD).read_text())["weights"], digest(weights / "model.safetensors")
    if trained != here:
        raise WeightsCorrupt(
            f"the SAE in {folder} was trained on weights {trained[:12]}..., {weights} has {here[:12]}...; {advice}"
        )
    return folder
