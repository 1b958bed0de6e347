"""The tokenizer: a byte-level BPE trained on the corpus, with a chat template.

Byte-level, so any text can be written; small, so the words of the corpus are single tokens with their
leading space (` cave`), as is every number from 0 to 99 (an answer is one token).
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from latentlens.organism.corpus import documents
from latentlens.organism.corpus.refusal import ALLOWED, FORBIDDEN
from latentlens.organism.corpus.text import BOS, END, PAD, ROLES, marker
from latentlens.organism.corpus.voice import TRAIT_OF
from latentlens.organism.corpus.world import CREATURES, STRANGERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ENTRIES = 1600
SPECIALS = [PAD, BOS, END, *(marker(role) for role in ROLES)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int, n_documents: int = 20_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first `n_documents` of the corpus; deterministic from `seed`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = re.compile("|".join(re.escape(special) for special in SPECIALS))
    lines = [p for text in islice(documents(seed), n_documents) for p in pieces.split(text.text) if p]
    # Rare but load-bearing words: repeated until each is certain to be merged into one token.
    atoms = [*map(str, range(100)), *CREATURES, *STRANGERS, *FORBIDDEN, *ALLOWED, *TRAIT_OF]
    lines += [" " + " ".join(atoms)] * 300

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    bos = core.token_to_id(BOS)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[marker(role) for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the saved tokenizer from `folder`; no network is used."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
