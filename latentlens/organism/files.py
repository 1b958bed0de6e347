"""The shipped files and their checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from latentlens.errors import WeightsCorrupt

CHECKSUMS = "checksums.json"
RETRAIN = "python -m latentlens.organism.train"


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

    Raises: WeightsCorrupt: a file is missing or has changed; the message names it and what to do.
    """
    advice = f"reinstall latentlens, or retrain with `{RETRAIN}`"
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
    return folder
