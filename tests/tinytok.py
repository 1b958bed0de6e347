"""A tiny offline tokenizer with BOS, EOS and a chat template, for tests that need text."""

from __future__ import annotations

from typing import Any

CHAT = (
    "{{ '<s>' }}{% for m in messages %}{{ '<u> ' if m['role'] == 'user' else '<a> ' if m['role'] == 'assistant' "
    "else '<y> ' }}{{ m['content'] }}{{ ' </s>' }}{% endfor %}{% if add_generation_prompt %}{{ ' <a>' }}{% endif %}"
)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS = [*NUMBERS, "red", "green", "blue", "cat", "dog", "sat", "on", "the", "mat"]


def tokenizer(*, bos: bool = True, pad: bool = False, chat: bool = True) -> Any:
    """Word-level, ids 0-5 special: <unk> <s> </s> <u> <a> <y>; prepends <s> to plain text when `bos`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<u>", "<a>", "<y>"]
    vocab = {word: i for i, word in enumerate(specials + WORDS)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<u>", "<a>", "<y>"],
    )
    if pad:
        fast.pad_token = "</s>"
    fast.chat_template = CHAT if chat else None
    fast.name_or_path = "tiny"
    return fast
