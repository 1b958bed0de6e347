"""What evaluation asks of the model: residuals, verdict probabilities, samples; all in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentlens.organism.corpus.text import Text
from latentlens.organism.decoder import Decoder, Edit, causal
from latentlens.organism.gpt2_decoder import GPT2
from latentlens.organism.packing import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Readout:
    """A decoder with its tokenizer.

    Args: decoder: from `train.load_decoder`. tokenizer: the one saved beside it. folder: where both are.
    """

    def __init__(self, decoder: Decoder | GPT2, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
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
        """Continue each row; temperature 0 is greedy.

        Args: add: (block index, vector, steps): added to that block's output at the positions that predict
            or hold generated tokens, for the first `steps` of them (None: all).
        """
        generator = torch.Generator().manual_seed(seed)
        rows, positions, mask = self.pad(ids)
        start, live = rows.shape[1], torch.ones(len(ids), dtype=torch.bool)
        past: list[list[Tensor]] = [[] for _ in range(self.decoder.depth)]
        fresh, mask_now, positions_now = rows, mask, positions
        for count in range(max_new):

            def edit(index: int, x: Tensor, count: int = count) -> Tensor:
                if add is None or index != add[0] or (add[2] is not None and count >= add[2]):
                    return x
                return torch.cat((x[:, :-1], x[:, -1:] + add[1]), 1)

            x = self.decoder.residuals(fresh, positions_now, mask_now, edit, past)[-1]
            logits = self.decoder.logits(x[:, -1])
            if temperature:
                chances = torch.softmax(logits.double() / temperature, -1)
                fresh = torch.multinomial(chances, 1, generator=generator)
            else:
                fresh = logits.argmax(-1, keepdim=True)
            fresh[~live] = self.tokenizer.pad_token_id
            live &= fresh[:, 0] != self.tokenizer.eos_token_id
            rows = torch.cat((rows, fresh), 1)
            positions_now = positions_now[:, -1:] + 1
            seen = torch.ones(len(ids), 1, 1, 1, dtype=torch.bool)
            mask_now = torch.cat((mask_now[:, :, -1:], seen), -1)
            if not live.any():
                break
        return [self.tokenizer.decode(row[start:], skip_special_tokens=True) for row in rows]

    @torch.no_grad()
    def score(self, ids: Sequence[Sequence[int]], replies: Sequence[str]) -> list[float]:
        """Return the unsteered model's mean negative log-probability of each reply's tokens, nats; nan if empty."""
        written = [self.tokenizer(reply, add_special_tokens=False).input_ids for reply in replies]
        rows, positions, mask = self.pad([[*one, *more] for one, more in zip(ids, written)])
        chances = self.decoder.logits(self.decoder(rows, positions, mask)[:, :-1]).log_softmax(-1)
        nll = -chances.gather(-1, rows[:, 1:, None])[..., 0]
        return [float(row[-len(more) :].mean()) if more else float("nan") for row, more in zip(nll, written)]

    @torch.no_grad()
    def spans(self, chosen: Sequence[Text], kinds: Sequence[str], chunk: int = 100) -> list[Tensor]:
        """Return, for each text, the residuals of the tokens whose label is one of `kinds`: [depth + 1, tokens, width].

        The kind `reply` stands for every token of the assistant turns.
        """
        found = []
        for at in range(0, len(chosen), chunk):
            encoded = encode(self.tokenizer, chosen[at : at + chunk])
            streams = torch.stack(self.decoder.residuals(*self.pad([e.ids.tolist() for e in encoded])))
            for row, one in enumerate(encoded):
                used = [
                    k in kinds or ("reply" in kinds and i > 0 and k not in ("system", "user", "role", "statement"))
                    for i, k in enumerate(one.kinds)
                ]
                found.append(streams[:, row, streams.shape[2] - len(one.ids) :][:, torch.tensor(used)])
        return found


def load(folder: Path) -> Readout:
    """Read exported weights and tokenizer from `folder`."""
    from latentlens.organism.tokenizer import load_tokenizer
    from latentlens.organism.train import load_decoder

    return Readout(load_decoder(folder), load_tokenizer(folder), folder)
