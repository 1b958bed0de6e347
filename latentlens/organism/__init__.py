"""The embedded model: a small decoder trained by this package on text that this package generates.

    path()       the folder of its weights, checked: AutoModelForCausalLM.from_pretrained(path())
    texts()      labelled texts of the kind it was trained on
    families()   the kinds

The effects in it are planted: it validates tools, it is no evidence about other models. Importing this
package loads neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from latentlens.organism.corpus import FAMILIES, Span, Text, texts
from latentlens.organism.files import verify

__all__ = ["Span", "Text", "families", "path", "texts"]


def path() -> Path:
    """Return the folder with the weights, tokenizer and configuration, after checking every file.

    Raises: WeightsCorrupt: a file is missing or has changed.
    """
    return verify(Path(__file__).parent / "weights")


def families() -> dict[str, tuple[str, ...]]:
    """Return the text families, each with the splits that `texts` accepts."""
    return {name: family.splits for name, family in FAMILIES.items()}
