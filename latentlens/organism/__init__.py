"""The embedded model: a small decoder trained by this package on text that this package generates.

    path()             the folder of its weights, checked: AutoModelForCausalLM.from_pretrained(path())
    texts()            labelled texts of the kind it was trained on, as a datasets.Dataset
    draw()             the same as objects that find their own spans
    pairs()            statements that differ in one word, for patching
    families()         the kinds
    judges             what a generated text says, decided by rule
    personas           its traits as persona experiments ask for them, and rules that score them
    saes()             names of the SAEs that were trained on it; sae_path(name) is a folder for `ll.load_sae`
    variant()          the folder of a sibling model: `untrained`, `gqa`, `gpt2`

The effects in it are planted: it validates tools, it is no evidence about other models. Importing this
package loads neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentlens.errors import BadInput
from latentlens.organism import judges, personas
from latentlens.organism.corpus import FAMILIES, Span, Text, draw
from latentlens.organism.corpus.pairs import minimal_pairs
from latentlens.organism.corpus.rows import dataset
from latentlens.organism.files import CHECKSUMS, verify, verify_sae

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Span",
    "Text",
    "draw",
    "families",
    "judges",
    "pairs",
    "path",
    "personas",
    "sae_path",
    "saes",
    "texts",
    "variant",
]

VARIANTS = ("untrained", "gqa", "gpt2")
#: Where their folders are.
SAES = Path(__file__).parent / "saes"


def path() -> Path:
    """Return the folder with the weights, tokenizer and configuration, after checking every file.

    Raises: WeightsCorrupt: a file is missing or has changed.
    """
    return verify(Path(__file__).parent / "weights")


def saes() -> tuple[str, ...]:
    """Return the names of the SAEs that ship with the model, that of the middle block first."""
    found = {file.parent.name for file in SAES.glob(f"*/{CHECKSUMS}")}
    return tuple(sorted(found, key=lambda name: (name != "middle", name)))


def sae_path(name: str = "middle") -> Path:
    """Return the folder of an SAE in SAELens' format, after checking every file: `ll.load_sae(sae_path())`.

    Args: name: one of `saes()`.
    Raises: BadInput: unknown name. WeightsCorrupt: a file is missing or has changed, or other weights are installed
        than those that it was trained on.
    """
    if name not in saes():
        raise BadInput(f"no SAE {name!r}; the SAEs are {', '.join(saes()) or 'not there'}")
    return verify_sae(SAES / name, path())


def families() -> dict[str, tuple[str, ...]]:
    """Return the text families, each with the splits that `texts` accepts."""
    return {name: family.splits for name, family in FAMILIES.items()}


def texts(family: str, n: int, seed: int, *, split: str = "all") -> Dataset:
    """Draw `n` labelled texts as a `datasets.Dataset`: one row for each, the same columns in every family.

    Args: family: see `families()`. n: how many. seed: any integer. split: one of `families()[family]`.
    Returns: columns for the labels (None where one does not apply), `text`, `messages`, `prompt`, `spans`.
    Raises: BadInput: unknown family or split, or a negative `n`.
    """
    return dataset(draw(family, n, seed, split=split))


def pairs(n: int, seed: int) -> Dataset:
    """Draw at most `n` minimal pairs as a `datasets.Dataset`: what activation patching starts from.

    Args: n: how many; facts that training asked about, one pair each, are all there is. seed: any integer.
    Returns: columns `clean` and `corrupt` (chats: a true statement, and the same with a wrong value), `right` and
        `wrong` (how the answers begin), `group` (the creature).
    Raises: BadInput: a negative `n`.
    """
    from datasets import Dataset

    return Dataset.from_list(minimal_pairs(n, seed))


def variant(name: str, seed: int = 0, folder: Path | None = None) -> Path:
    """Return the folder of a sibling model; the first two are made when they are first asked for.

        untrained   the same architecture and tokenizer with random weights
        gqa         the same weights as a grouped-query model: eight query heads, two to each head of keys and values
        gpt2        trained on the same texts in GPT-2's architecture: learnt positions, LayerNorm, biases

    Args: seed: of the random weights of `untrained`. folder: where to make it (None: beside the activation cache).
    Raises: BadInput: unknown name. WeightsCorrupt: the folder was made before and has changed since.
    """
    if name not in VARIANTS:
        raise BadInput(f"no variant {name!r}; choose from {', '.join(VARIANTS)}")
    if name == "gpt2":
        return verify(Path(__file__).parent / "gpt2")
    from latentlens.organism import variants

    if name == "gqa":
        return variants.grouped_query(path(), folder)
    return variants.untrained(path(), seed, folder)
