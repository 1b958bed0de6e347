"""Which latents to steer with: unrelated to the prompts, about something concrete, drawn reproducibly.

silent(codes, d_sae)           latents that fire on no token of any prompt
outside_top(codes, 100)        latents outside every prompt's strongest hundred
context_labels(codes)          the words around a latent's strongest tokens, as its label
keyword_score(label, weights)  how well a label fits a subject named by weighted words
draw(d_sae, n, keep)           n latents in a random order that a seed fixes
assign(...)                    prompts and seeds for every latent
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.codes import Codes


def silent(codes: Codes) -> NDArray[np.bool_]:
    """Latents whose largest value over all tokens of all prompts is exactly 0, (d_sae,).

    Args: codes: of the chat-formatted prompts, one row a token.
    Source: ESR's code, relevance_filtering.py: max activation 0 on every one of its 38 prompts.
    """
    fired = np.zeros(codes.d_sae, dtype=bool)
    fired[codes.indices[codes.values > 0].cpu().numpy()] = True
    return ~fired


def outside_top(pooled: Codes, k: int = 100) -> NDArray[np.bool_]:
    """Latents that are not among the k strongest of any prompt, (d_sae,); silent latents never are.

    Args: pooled: largest values, one row a prompt. k: per prompt.
    Raises: BadInput: k below 1. Source: ESR's paper, section on sampling; it leaves about half of the latents.
    """
    if k < 1:
        raise BadInput(f"k={k}: at least 1")
    found = np.zeros(pooled.d_sae, dtype=bool)
    offsets = pooled.offsets.tolist()
    for start, end in pairwise(offsets):
        values = pooled.values[start:end].float()
        strongest = values.topk(min(k, len(values))).indices if len(values) else []
        found[pooled.indices[start:end][strongest].cpu().numpy()] = True
    return ~found


def silent_on(codes: Codes, owner: ArrayLike, n: int) -> NDArray[np.bool_]:
    """For each of n prompts which latents fire on no token of its own rows, (n, d_sae).

    Args: codes: rows labelled `text`. owner: the prompt of each text, (n_texts,): a prompt's answers count as its rows.
    """
    owners = np.asarray(owner, dtype=int)
    fired = np.zeros((n, codes.d_sae), dtype=bool)
    active = (codes.values > 0).cpu().numpy()
    rows = owners[np.asarray(codes.labels["text"])[codes.row_of.cpu().numpy()[active]]]
    fired[rows, codes.indices.cpu().numpy()[active]] = True
    return ~fired


def context_labels(
    codes: Codes, k: int = 6, *, n_examples: int = 20, window: int = 8, least: int = 3
) -> dict[int, str]:
    """A label for every latent that fires: the words that stand around its strongest tokens far more than elsewhere.

        weight of a token = (count around the examples) log(share around them / share in all texts)

    Args:
        codes: of reference texts, one row a token, labelled `text`, `position` and `token`.
        k: words of a label. n_examples: strongest tokens of a latent that are looked at, from different texts where
            possible. window: tokens before and after each. least: a latent with fewer examples has no label.
    Raises: BadInput: a label column is missing.
    """
    missing = {"text", "position", "token"} - set(codes.labels)
    if missing:
        raise BadInput(f"labels are made of tokens in context: codes need {', '.join(sorted(missing))} as well")
    order = np.lexsort((codes.labels["position"], codes.labels["text"]))
    text = np.asarray(codes.labels["text"])[order]
    names, token = np.unique(np.char.strip(np.asarray(codes.labels["token"], dtype=str)), return_inverse=True)
    token, place = token.ravel()[order], np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    share = np.bincount(token, minlength=len(names)) / max(len(token), 1)
    is_word = np.array([bool(re.search(r"[^\W\d_]{2}", name)) for name in names])
    latent, value = codes.indices.cpu().numpy(), codes.values.float().cpu().numpy()
    row = place[codes.row_of.cpu().numpy()]
    by_strength = np.lexsort((-value, latent))
    starts = np.flatnonzero(np.r_[True, np.diff(latent[by_strength]) > 0]) if len(latent) else np.array([], dtype=int)
    found = {}
    for start, end in zip(starts, np.r_[starts[1:], len(by_strength)], strict=True):
        mine = by_strength[start:end]
        rows = row[mine[value[mine] > 0]][: 4 * n_examples]
        _, once = np.unique(text[rows], return_index=True)
        rows = rows[np.sort(once)][:n_examples] if len(once) >= n_examples else rows[:n_examples]
        if len(rows) < least:
            continue
        around = rows[:, None] + np.arange(-window, window + 1)
        inside = (around >= 0) & (around < len(text))
        inside &= text[around.clip(0, len(text) - 1)] == text[rows][:, None]
        count = np.bincount(token[around[inside]], minlength=len(names))
        lift = np.log(np.maximum(count / count.sum(), 1e-12) / np.maximum(share, 1e-12))
        weight = np.where(is_word & (lift > 0), count * lift, 0.0)
        best = [int(i) for i in np.argsort(-weight, kind="stable")[:k] if weight[i] > 0]
        if best:
            found[int(latent[mine[0]])] = ", ".join(str(names[i]) for i in best)
    return found


def keyword_score(label: str, weights: Mapping[str, float]) -> float:
    """Sum of the weights of the words that stand in a label, each counted once, case ignored; a phrase counts whole.

    >>> keyword_score("Corrections and apologies: 'wait, no'", {"correction": 3, "apolog": 3, "wait": 2, "sea": 9})
    8.0

    A weight counts where a word BEGINS with it, so that stems serve.
    Source: ESR, experiment 9, which keeps labels of 5 or more.
    """
    low = label.lower()
    return float(sum(w for word, w in weights.items() if re.search(rf"(?<!\w){re.escape(word.lower())}", low)))


def draw(
    d_sae: int, n: int, keep: Callable[[Sequence[int]], Sequence[bool]], *, seed: int = 0, factor: int = 3
) -> list[int]:
    """The first n latents of a random order that pass a filter, asked in rounds of `factor` n candidates.

    Args:
        d_sae: latents to draw from. n: wanted.
        keep: candidates -> which of them pass; may be costly (a judge), so it is asked no more than needed.
        seed: the order is a permutation fixed by it: more latents begin with the same ones.
        factor: candidates a round, per latent wanted.
    Raises: BadInput: no positive numbers. TooFewExamples: no latent passes. Fewer than n are returned when no more
        pass.
    Source: ESR's code, sample_features.py: 3 n candidates, filtered, the first n kept.
    """
    if n < 1 or d_sae < 1 or factor < 1:
        raise BadInput(f"n={n}, d_sae={d_sae}, factor={factor}: at least 1 each")
    order = np.random.default_rng(seed).permutation(d_sae).tolist()
    found: list[int] = []
    for start in range(0, d_sae, factor * n):
        part = order[start : start + factor * n]
        found += [int(j) for j, yes in zip(part, keep(part), strict=True) if yes]
        if len(found) >= n:
            return found[:n]
    if not found:
        raise TooFewExamples(f"none of {d_sae} latents passes the filters")
    return found


def assign(
    latents: Sequence[int], allowed: Callable[[int], Sequence[int]], per_latent: int, *, seed: int = 0
) -> list[tuple[int, int, int]]:
    """Prompts without replacement and a sampling seed for every latent: (latent, prompt, seed) by latent.

    What one latent gets depends on it and on the seed alone, not on which others there are.

    Args: allowed: the prompts that a latent may be tried on. per_latent: at most so many. seed: of the draws.
    Source: ESR's main run: 500 latents x 5 prompts, seeds in 0..1e6.
    """
    found = []
    for latent in latents:
        random = np.random.default_rng([seed, int(latent)])
        prompts: Any = list(allowed(latent))
        chosen = random.choice(prompts, min(per_latent, len(prompts)), replace=False) if prompts else []
        found += [(int(latent), int(p), int(random.integers(0, 1_000_001))) for p in chosen]
    return found
