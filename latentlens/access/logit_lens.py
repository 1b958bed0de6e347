"""The logit lens, by the model's own last steps: whatever it does after its last block is done to every state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.editing.steering import own_forward
from latentlens.access.hooks import hooked, require_fired
from latentlens.access.layout import Layout
from latentlens.errors import BadInput, UnsupportedArchitecture
from latentlens.values.layer_lens import LayerLens
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_VALUES = 1 << 25  # logits held at a time


def logits_of(layout: Layout, states: Tensor) -> Tensor:
    """Next-token logits of residual states (n, d): (n, vocab), float32 on the CPU.

    In a forward over one token, the states take the place of what the last block puts out: final norm, projections,
    unembedding, scaling and softcapping are then the model's own, whatever they are. A model that insists on as many
    states as tokens (GPT-BigCode) is given n rows of one token.

    Raises: UnsupportedArchitecture: what comes after the blocks does not treat states one by one. HookNeverFired.
    """
    try:
        logits = _after_blocks(layout, states[None])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        logits = _after_blocks(layout, states[:, None])
    if logits.numel() != len(states) * logits.shape[-1]:
        raise UnsupportedArchitecture(
            f"{layout.class_name} gives {tuple(logits.shape)} logits for {len(states)} states put after its last "
            "block: its last steps look at the whole sequence, so there is no logit lens"
        )
    return logits.reshape(len(states), -1).float().cpu()


def _after_blocks(layout: Layout, states: Tensor) -> Tensor:
    """Logits of a forward over one token a row, with states (rows, tokens, d) in place of the last block's output."""
    last = layout.tap(Site("resid_post", layout.n_blocks - 1))
    inputs: dict[str, Any] = {"input_ids": torch.zeros(len(states), 1, dtype=torch.long, device=layout.device)}
    if layout.accepts_position_ids:
        inputs["position_ids"] = torch.zeros(1, 1, dtype=torch.long, device=layout.device)
    with torch.no_grad(), own_forward(layout), hooked([(last, lambda out: states.to(out))]) as fired:
        logits = layout.model(**inputs, use_cache=False).logits
    require_fired(fired)
    return logits


def logit_lens(
    lm: LensModel,
    inputs: Any,
    sites: Any = ("resid_pre[0]", "resid_post[*]"),
    where: Any = "all",
    *,
    k: int = 5,
    watch: Sequence[str | int] = (),
    **options: Any,
) -> LayerLens:
    """What the model would say next if it stopped at each site, for selected positions.

    Args:
        inputs, where, options: as for `lm.activations` (`steer`, `truncate`, ...).
        sites: of the residual stream; by default the embedding and every block.
        k: tokens kept for each site and position.
        watch: further tokens (text of one token, or an id) whose probability is kept everywhere.
    Raises: BadInput: a site outside the stream, k below 1, a word to watch that is not one token; and what
        `lm.activations` raises. UnsupportedArchitecture.
    """
    found = lm.layout.sites(list(sites) if isinstance(sites, tuple) else sites)
    wrong = [str(site) for site in found if site.point not in ("resid_pre", "resid_mid", "resid_post")]
    if wrong:
        raise BadInput(
            f"{', '.join(wrong)}: the logit lens reads the residual stream (resid_pre, resid_mid, resid_post)"
        )
    if not 1 <= k <= lm.layout.vocab_size:
        raise BadInput(f"k={k}: keep between 1 and {lm.layout.vocab_size} tokens")
    followed = [_token(lm, one) for one in watch]
    last = Site("resid_post", lm.layout.n_blocks - 1)
    acts = lm.activations(inputs, sites=[*found, last], where=where, **options)
    rows = lm.tokens(inputs, truncate=options.get("truncate"))
    places = list(zip(acts.labels["text"].tolist(), acts.labels["position"].tolist()))
    following = np.array([rows[t].ids[p + 1] if p + 1 < len(rows[t]) else -1 for t, p in places], dtype=np.int64)
    stream = torch.stack([acts[site] for site in [*found, last]])
    ids, read = torch.as_tensor(following), []
    for at in torch.arange(len(acts)).split(max(1, _VALUES // (len(stream) * lm.layout.vocab_size))):
        logits = logits_of(lm.layout, stream[:, at].flatten(0, 1)).unflatten(0, (len(stream), len(at)))
        read.append(_read(logits[:-1], logits[-1], ids[at], k, followed))
    held = {name: torch.cat([one[name] for one in read], 1).numpy() for name in read[0]}
    known = sorted({*held["top"].ravel().tolist(), *following[following >= 0].tolist()})
    words = dict(zip(known, lm._reader.decode_each(known), strict=True))
    watched = {name: held["watched"][..., i] for i, name in enumerate(_names(lm, watch, followed))}
    about = {**acts.about, "k": k}
    return LayerLens(
        tuple(found), acts.labels, held["top"], held["p"], words, held["entropy"], held["kl"], following,
        held["next_p"], held["next_rank"], watched, about,
    )  # fmt: skip


def _read(logits: Tensor, final: Tensor, ids: Tensor, k: int, watch: list[int]) -> dict[str, Tensor]:
    """What is kept of logits (n_sites, m, vocab); final (m, vocab) are the model's, ids (m,) follow."""
    log_p, log_q = logits.log_softmax(-1), final.log_softmax(-1)
    p, best = log_p.exp(), log_p.topk(k, -1)
    own = log_p.gather(-1, ids.clamp(min=0)[:, None].expand(len(log_p), -1, 1))
    ended = ids < 0
    return {
        "top": best.indices,
        "p": best.values.exp(),
        "entropy": torch.special.entr(p).sum(-1),
        "kl": (log_q.exp() * (log_q - log_p)).nan_to_num(0.0).sum(-1).clamp(min=0.0),
        "next_p": own[..., 0].exp().masked_fill(ended, math.nan),
        "next_rank": (log_p > own).sum(-1).float().masked_fill(ended, math.nan),
        "watched": p[..., watch],
    }


def _token(lm: LensModel, word: str | int) -> int:
    if isinstance(word, str):
        if lm.tokenizer is None:
            raise BadInput(f"watch={word!r} needs a tokenizer: give token ids")
        ids = lm.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise BadInput(
                f"watch={word!r} is {len(ids)} tokens of this model ({lm._reader.decode_each(ids)}): name one token, "
                "often with its leading space"
            )
        return int(ids[0])
    if not 0 <= word < lm.layout.vocab_size:
        raise BadInput(f"watch={word!r}: token ids are 0 to {lm.layout.vocab_size - 1}")
    return int(word)


def _names(lm: LensModel, watch: Sequence[str | int], ids: list[int]) -> list[str]:
    return [one if isinstance(one, str) else lm._reader.decode_each([i])[0] for one, i in zip(watch, ids)]
