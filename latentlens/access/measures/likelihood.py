"""How likely a model finds the answers in some texts, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentlens.access.hooks import Callback, Tap, hooked, require_fired
from latentlens.access.layout import Layout
from latentlens.errors import BadInput
from latentlens.values.rows import TokenRow


def answer_positions(row: TokenRow) -> list[int]:
    """Positions of the answer: generated tokens, or the content of the last assistant turn; never the first token.

    Raises: BadInput: the row has no answer.
    """
    last_turn = max((t for t, role in zip(row.turn, row.role) if role == "assistant"), default=None)
    found = range(row.n_prompt, len(row)) if row.n_prompt < len(row) else [
        i for i, (role, turn) in enumerate(zip(row.role, row.turn)) if role == "assistant" and turn == last_turn
    ]  # fmt: skip
    found = [i for i in found if i > 0]
    if not found:
        raise BadInput(f"{row.text[:60]!r} has no answer: give chats that end with the assistant, or rollouts")
    return found


def answer_nll(layout: Layout, rows: Sequence[TokenRow], calls: Sequence[tuple[Tap, Callback]] = ()) -> Tensor:
    """Mean negative log likelihood of each row's last answer, nats per token, differentiable: (n_rows,).

    One forward for all rows, padded on the right. Hooks of `calls` act during it.

    Raises: BadInput: a row without an answer. HookNeverFired.
    """
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.ids)
    inputs = {"input_ids": ids.to(layout.device), "use_cache": False}
    if layout.accepts_position_ids:
        inputs["position_ids"] = torch.arange(width, device=layout.device)[None]
    with torch.enable_grad(), hooked(calls, (len(rows), width)) as fired:
        logits = layout.model(**inputs).logits
    require_fired(fired)
    found = []
    for i, row in enumerate(rows):
        at = torch.tensor(answer_positions(row), device=logits.device)
        picked = logits[i, at - 1]
        log_p = (picked if picked.dtype == torch.float64 else picked.float()).log_softmax(-1)
        found.append(-log_p.gather(1, ids.to(logits.device)[i, at][:, None]).mean())
    return torch.stack(found)
