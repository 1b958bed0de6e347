"""Turns whatever a person has (texts, chats, token ids, rollouts, a dataset column) into labelled rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from latentlens.errors import BadInput, ContextTooLong, NoChatTemplate
from latentlens.values.rollouts import Rollout
from latentlens.values.rows import TokenRow

Truncate = Literal["left", "right"] | None


class RowReader:
    """Reads inputs with one tokenizer (or none, when only token ids will be given).

    Rules, the same for every verb, so that generate and capture read a prompt identically:
    the beginning-of-text token appears exactly once, if the tokenizer uses one at all; a chat is rendered
    by the chat template, and when its last message is not the assistant's the header of the answer is
    appended (with `continue_last` an assistant message at the end is left open instead of closed).
    """

    def __init__(self, tokenizer: Any, vocab_size: int, max_positions: int | None) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.special_ids = frozenset(tokenizer.all_special_ids) if tokenizer is not None else frozenset()

    def rows(
        self, inputs: Any, *, truncate: Truncate = None, continue_last: bool = False, room: int = 0
    ) -> list[TokenRow]:
        """Labelled rows, one per text, chat, list of ids or rollout, in the given order.

        Args:
            truncate: drop tokens from the "left" or the "right" of rows that exceed the context.
            continue_last: leave a final assistant message open, to be continued.
            room: positions to keep free for tokens to come.
        Raises: BadInput, NoChatTemplate, ContextTooLong.
        """
        if truncate not in (None, "left", "right"):
            raise BadInput(f"truncate={truncate!r}: allowed are None, 'left' and 'right'")
        items = self._items(inputs)
        if not items:
            raise BadInput("no inputs: give at least one text, chat or list of token ids")
        return [self._fit(self._row(item, i, continue_last), i, truncate, room) for i, item in enumerate(items)]

    def _items(self, inputs: Any) -> list[Any]:
        """Split the input into single items."""
        if isinstance(inputs, (str, TokenRow, Rollout)):
            return [inputs]
        if isinstance(inputs, Mapping):
            return self._unpadded(inputs)
        if isinstance(inputs, torch.Tensor) or hasattr(inputs, "__array__"):
            listed = inputs.tolist()  # type: ignore[union-attr]
            return [listed] if listed and isinstance(listed[0], int) else list(listed)
        if not isinstance(inputs, Iterable):
            raise BadInput(_cannot_read(inputs))
        items = list(inputs)
        if items and (_is_message(items[0]) or _is_id(items[0])):
            return [items]
        return items

    @staticmethod
    def _unpadded(batch: Mapping[str, Any]) -> list[list[int]]:
        """Rows of a tokenizer's output, padding removed."""
        if "input_ids" not in batch:
            raise BadInput(f"a mapping needs input_ids; it has {', '.join(map(str, batch))}")
        ids = batch["input_ids"]
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if ids and _is_id(ids[0]):
            ids = [ids]
        mask = batch.get("attention_mask")
        if mask is None:
            return ids
        mask = mask.tolist() if hasattr(mask, "tolist") else list(mask)
        if mask and _is_id(mask[0]):
            mask = [mask]
        return [[i for i, keep in zip(row, kept, strict=True) if keep] for row, kept in zip(ids, mask, strict=True)]

    def _row(self, item: Any, index: int, continue_last: bool) -> TokenRow:
        if isinstance(item, TokenRow):
            return item
        if isinstance(item, Rollout):
            return item.row.continued(item.generated, self.special_ids)
        if isinstance(item, str):
            return self._text(item, index)
        if isinstance(item, torch.Tensor) or hasattr(item, "__array__"):
            item = item.tolist()
        if isinstance(item, Sequence) and item and all(_is_message(m) for m in item):
            return self._chat(item, continue_last)
        if isinstance(item, Sequence) and item and all(_is_id(i) for i in item):
            return self._ids(tuple(item), index)
        raise BadInput(f"input {index}: " + _cannot_read(item))

    def _ids(self, ids: tuple[int, ...], index: int) -> TokenRow:
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise BadInput(f"input {index}: token id {wrong[0]} is outside the vocabulary (0 to {self.vocab_size - 1})")
        return TokenRow.plain(ids, special_ids=self.special_ids)

    def _text(self, text: str, index: int) -> TokenRow:
        ids = self._need_tokenizer()(text, add_special_tokens=True)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the text came with its own
        if not ids:
            raise BadInput(f"input {index} is empty: {text!r} has no tokens")
        return TokenRow.plain(tuple(ids), special_ids=self.special_ids, text=text)

    def _chat(self, messages: Sequence[Mapping[str, Any]], continue_last: bool) -> TokenRow:
        tokenizer = self._need_tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            raise NoChatTemplate(
                "this tokenizer has no chat template: give plain texts, or set tokenizer.chat_template first"
            )
        chat = [dict(message) for message in messages]
        assistant_last = chat[-1]["role"] == "assistant"
        rendered = tokenizer.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=not assistant_last,
            continue_final_message=assistant_last and continue_last,
        )
        encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        ids = tuple(encoded["input_ids"])
        role, turn = [""] * len(ids), [-1] * len(ids)
        special = tuple(i in self.special_ids for i in ids)
        for t, (name, start, stop) in enumerate(_content_spans(chat, rendered)):
            for i, (a, b) in enumerate(encoded.get("offset_mapping", ())):
                if a < stop and b > start and b > a and not special[i]:
                    role[i], turn[i] = name, t
        return TokenRow(ids, len(ids), tuple(role), tuple(turn), special, rendered)

    def _fit(self, row: TokenRow, index: int, truncate: Truncate, room: int) -> TokenRow:
        limit = None if self.max_positions is None else self.max_positions - room
        if limit is None or len(row) <= limit:
            return row
        if truncate is None or limit < 1:
            extra = f" with room for {room} more" if room else ""
            raise ContextTooLong(
                f"input {index} has {len(row)} tokens; the model reads at most {limit}{extra}. "
                "Shorten it, or pass truncate='left' or truncate='right'."
            )
        keep = slice(len(row) - limit, None) if truncate == "left" else slice(0, limit)
        return row.cut(keep)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise BadInput("texts need a tokenizer: ll.load(model, tokenizer=...); or give token ids")
        return self.tokenizer

    def decode_each(self, ids: Iterable[int]) -> list[str]:
        """The text of every single token; ids as text when there is no tokenizer."""
        listed = list(ids)
        if self.tokenizer is None:
            return [str(i) for i in listed]
        shown = {i: self.tokenizer.decode([i]) for i in set(listed)}
        return [shown[i] for i in listed]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def _content_spans(chat: Sequence[Mapping[str, Any]], rendered: str) -> list[tuple[str, int, int]]:
    """Role and character span of every message's content in the rendered chat; (role, 0, 0) when not found.

    Templates may strip or drop contents (old reasoning, say), so each is searched for, in order.
    """
    spans, cursor = [], 0
    for message in chat:
        content = message.get("content") or ""
        if not isinstance(content, str):  # a list of parts, as multimodal templates take
            content = "".join(part.get("text", "") for part in content)
        content = content.strip()
        start = rendered.find(content, cursor) if content else -1
        if start < 0:
            spans.append((message["role"], 0, 0))
            continue
        cursor = start + len(content)
        spans.append((message["role"], start, cursor))
    return spans


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def _is_id(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, (bool, torch.Tensor))


def _cannot_read(value: Any) -> str:
    return (
        f"cannot read {type(value).__name__} {str(value)[:60]!r}. Allowed: a text, a chat (list of "
        "{'role', 'content'}), a list of token ids, a tokenizer's output, rollouts, or a list or dataset column of them"
    )
