"""What evaluation asks of the model: residuals, verdict probabilities, samples; all in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentlens.organism.corpus.text import Text
from latentlens.organism.decoder import Decoder, Edit, causal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Readout:
    """A decoder with its tokenizer.

    Args: decoder: from `train.load_decoder`. tokenizer: the one saved beside it. folder: where both are.
    """

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        self.decoder, self.folder = decoder.eval(), folder
        self.tokenizer: Any = tokenizer

    def prompt_ids(self, text: Text, start: str = "") -> list[int]:
        """Return the token ids of a text's prompt, up to the assistant marker and `start` after it."""
        rendered = self.tokenizer.apply_chat_template(text.prompt(), tokenize=False, add_generation_prompt=True)
        return self.tokenizer(rendered + start, add_special_tokens=False).input_ids

    def pad(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Left-pad rows; return ids, positions (counted without padding) and mask."""
        width = max(map(len, ids))
        rows = torch.full((len(ids), width), self.tokenizer.pad_token_id)
        numbers = torch.full((len(ids), width), -1)
        for row, one in enumerate(ids):
            rows[row, width - len(one) :] = torch.tensor(one)
            numbers[row, width - len(one) :] = 0
        return rows, ((numbers == 0).cumsum(-1) - 1).clamp(min=0), causal(numbers)

    @torch.no_grad()
    def residuals(self, ids: Sequence[Sequence[int]], position: int = -1, chunk: int = 200) -> Tensor:
        """Return the residual stream at one position, counted from the end: [depth + 1, rows, width]."""
        parts = []
        for at in range(0, len(ids), chunk):
            streams = self.decoder.residuals(*self.pad(ids[at : at + chunk]))
            parts.append(torch.stack([s[:, position] for s in streams]))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def next_logits(self, ids: Sequence[Sequence[int]], edit: Edit | None = None, chunk: int = 200) -> Tensor:
        """Return the logits of the next token, [rows, vocabulary]."""
        parts = []
        for at in range(0, len(ids), chunk):
            streams = self.decoder.residuals(*self.pad(ids[at : at + chunk]), edit)
            parts.append(self.decoder.logits(streams[-1][:, -1]))
        return torch.cat(parts)

    @torch.no_grad()
    def sample(
        self,
        ids: Sequence[Sequence[int]],
        max_new: int,
        temperature: float = 0.0,
        seed: int = 0,
        add: tuple[int, Tensor, int | None] | None = None,
    ) -> list[str]:
        """Continue each row; temperature 0 is greedy. Recomputes the whole row for every token.

        Args: add: (block index, vector, steps): added to that block's output at the positions that predict
            or hold generated tokens, for the first `steps` of them (None: all).
        """
        generator = torch.Generator().manual_seed(seed)
        rows, positions, mask = self.pad(ids)
        start, live = rows.shape[1], torch.ones(len(ids), dtype=torch.bool)

        def edit(index: int, x: Tensor) -> Tensor:
            if add is None or index != add[0]:
                return x
            x = x.clone()
            last = None if add[2] is None else start - 1 + add[2]
            x[:, start - 1 : last] += add[1]
            return x

        for _ in range(max_new):
            logits = self.decoder.logits(self.decoder.residuals(rows, positions, mask, edit)[-1][:, -1])
            if temperature:
                chances = torch.softmax(logits.double() / temperature, -1)
                token = torch.multinomial(chances, 1, generator=generator)
            else:
                token = logits.argmax(-1, keepdim=True)
            token[~live] = self.tokenizer.pad_token_id
            live &= token[:, 0] != self.tokenizer.eos_token_id
            rows = torch.cat((rows, token), 1)
            positions = torch.cat((positions, positions[:, -1:] + 1), 1)
            seen = torch.cat((mask[:, :, -1:], torch.ones(len(ids), 1, 1, 1, dtype=torch.bool)), -1)
            blank = torch.zeros(*mask.shape[:3], 1, dtype=torch.bool)
            mask = torch.cat((torch.cat((mask, blank), -1), seen), 2)
            if not live.any():
                break
        return [self.tokenizer.decode(row[start:], skip_special_tokens=True) for row in rows]


def load(folder: Path) -> Readout:
    """Read exported weights and tokenizer from `folder`."""
    from latentlens.organism.tokenizer import load_tokenizer
    from latentlens.organism.train import load_decoder

    return Readout(load_decoder(folder), load_tokenizer(folder), folder)
