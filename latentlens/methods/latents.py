"""Reading SAE latents: what fires, on what, what tells two sets of rows apart, and fair controls for it.

codes = latents.encode(lm.activations(texts, sae.site), sae)      # or access: ll.encode(lm, sae, texts)
latents.top(codes)                                                # a table of the strongest
latents.examples(codes, 17)                                       # what latent 17 fires on
latents.detectors(latents.pooled(on), latents.pooled(off))        # AUROC of every latent
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.codes import Codes, latent_index
from latentlens.values.latent_findings import Detectors, Example, Examples, Firing, LogitLens
from latentlens.values.sae import SAE

if TYPE_CHECKING:
    import pandas as pd


def encode(acts: Activations, sae: SAE, site: Any = None) -> Codes:
    """Codes of captured activations, sparse, with the labels of their rows.

    Args: site: where in `acts` to read; the SAE's own site by default.
    Raises: SiteNotFound, BadInput: not captured there, or another width.
    """
    return sae.codes(acts, site)


def firing(codes: Codes) -> Firing:
    """Rate, mean, mean where active, and maximum of every latent over the rows.

    Raises: TooFewExamples: no rows.
    """
    if len(codes) == 0:
        raise TooFewExamples("no rows to count over")
    latent, value = codes.indices.cpu().numpy(), codes.values.double().cpu().numpy()
    count = np.bincount(latent, minlength=codes.d_sae)
    total = np.bincount(latent, value, minlength=codes.d_sae)
    largest = np.zeros(codes.d_sae)
    np.maximum.at(largest, latent, value)
    with np.errstate(invalid="ignore"):
        active = total / count
    return Firing(count / len(codes), total / len(codes), active, largest, len(codes), dict(codes.about))


def top(given: Codes | Activations, k: int = 10, *, sae: SAE | None = None, by: str = "mean") -> pd.DataFrame:
    """The k strongest latents as a table: latent, rate, mean, active_mean, max, and the token of the maximum.

    Args: given: codes, or activations with `sae=`. by: "mean", "max", "rate" or "active_mean".
    """
    codes = _codes(given, sae)
    found = firing(codes)
    chosen = found.top(k, by)
    frame = found.to_frame(chosen)
    if "token" in codes.labels and chosen:
        rows = codes.dense(chosen).argmax(0).numpy()
        frame["token"] = list(codes.labels["token"][rows])
        frame["text"] = list(codes.labels["text"][rows]) if "text" in codes.labels else -1
    return frame


def examples(
    given: Codes | Activations,
    latent: int,
    k: int = 5,
    *,
    sae: SAE | None = None,
    before: int = 12,
    after: int = 4,
    per_text: int = 1,
    name: str = "",
) -> Examples:
    """The tokens on which a latent fires most, each in its context.

    The context is what was captured around it: capture with where="all" or "content" to see whole texts. Contexts that
    read the same are shown once.

    Args: before, after: tokens of context. per_text: examples taken from one text at most.
    Raises: BadInput: no such latent, or codes without labels (text, position, token).
    """
    codes = _codes(given, sae)
    missing = {"text", "position", "token"} - set(codes.labels)
    if missing:
        raise BadInput(f"examples need the labels text, position and token; {', '.join(sorted(missing))} are missing")
    values = codes.dense([latent])[:, 0].float().cpu().numpy()
    text, position = codes.labels["text"], codes.labels["position"]
    order = np.lexsort((position, text))
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    taken: dict[int, int] = {}
    seen: set[tuple[int, tuple[str, ...]]] = set()
    items: list[Example] = []
    for row in np.argsort(-values, kind="stable"):
        if values[row] <= 0 or len(items) == k:
            break
        if taken.get(int(text[row]), 0) == per_text:
            continue
        around = order[max(place[row] - before, 0) : place[row] + after + 1]
        around = around[text[around] == text[row]]
        tokens = tuple(str(t) for t in codes.labels["token"][around])
        at = int(np.flatnonzero(around == row)[0])
        if (at, tokens) in seen:
            continue
        seen.add((at, tokens))
        taken[int(text[row])] = taken.get(int(text[row]), 0) + 1
        shown = tuple(float(v) for v in values[around])
        items.append(Example(int(text[row]), int(position[row]), tokens, shown, at))
    return Examples(int(latent), tuple(items), float((values > 0).mean()) if len(values) else 0.0, name)


def pooled(codes: Codes, how: Literal["max", "mean"] = "max", by: str = "text") -> Codes:
    """One row per text (or per value of another label): the largest or the mean code of its rows.

    Returns: codes with the label `by` only, in increasing order.
    Raises: BadInput: no such label, or another way of pooling.
    """
    if by not in codes.labels:
        raise BadInput(f"codes have no label {by!r}; they have {', '.join(codes.labels) or 'none'}")
    if how not in ("max", "mean"):
        raise BadInput(f"how={how!r}: allowed are 'max' and 'mean'")
    groups, group = np.unique(codes.labels[by], return_inverse=True)
    group_of = torch.from_numpy(group.ravel())[codes.row_of.cpu()]
    key = group_of * codes.d_sae + codes.indices.cpu().long()
    unique, place = torch.unique(key, return_inverse=True)
    values = codes.values.cpu().float()
    out = torch.zeros(len(unique)).scatter_reduce_(0, place, values, "amax" if how == "max" else "sum")
    owner = unique // codes.d_sae
    if how == "mean":
        out /= torch.from_numpy(np.bincount(group.ravel()))[owner]
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(owner, minlength=len(groups)).cumsum(0)])
    indices = (unique % codes.d_sae).to(torch.int32)
    return Codes(indices, out, offsets, codes.d_sae, {by: groups}, {**codes.about, "pooled": f"{how} by {by}"})


def detectors(positive: Codes, negative: Codes, *, n_permutations: int = 50, seed: int = 0) -> Detectors:
    """How well each latent alone tells positive rows from negative ones.

        auroc_j = P(f_j of a positive > f_j of a negative) + P(equal) / 2

    Rows should be independent: pool tokens of one text first (`pooled`). With thousands of latents the best one is high
    by chance, so labels are permuted `n_permutations` times and the largest AUROC over all latents is noted each time.

    Raises: BadInput: codes of different SAEs. TooFewExamples: no positive or no negative row.
    """
    if positive.d_sae != negative.d_sae or positive.about.get("sae") != negative.about.get("sae"):
        raise BadInput("positive and negative codes come from different SAEs")
    n, m = len(positive), len(negative)
    if not n or not m:
        raise TooFewExamples(f"{n} positive and {m} negative rows: both must be there")
    row = np.concatenate([positive.row_of.cpu().numpy(), n + negative.row_of.cpu().numpy()])
    latent = np.concatenate([positive.indices.cpu().numpy(), negative.indices.cpu().numpy()]).astype(np.int64)
    value = np.concatenate([positive.values.float().cpu().numpy(), negative.values.float().cpu().numpy()])
    rank, silent_rank = _mid_ranks(latent, value, n + m, positive.d_sae)

    def areas(labels: np.ndarray) -> np.ndarray:
        mine = labels[row]
        ranks = np.bincount(latent, rank * mine, minlength=positive.d_sae)
        silent = labels.sum() - np.bincount(latent, mine, minlength=positive.d_sae)
        return (ranks + silent * silent_rank - n * (n + 1) / 2) / (n * m)

    truth = np.r_[np.ones(n), np.zeros(m)]
    draw = np.random.default_rng(seed)
    permuted = [areas(draw.permutation(truth)) for _ in range(n_permutations)]
    low = float(np.quantile([a.min() for a in permuted], 0.05)) if permuted else float("nan")
    high = float(np.quantile([a.max() for a in permuted], 0.95)) if permuted else float("nan")
    on, off = (np.bincount(c.indices.cpu().numpy(), minlength=c.d_sae) / len(c) for c in (positive, negative))
    return Detectors(areas(truth), on, off, n, m, low, high, n_permutations, dict(positive.about))


def matched(
    found: Firing, latents: Sequence[int], *, exclude: Iterable[int] = (), n: int = 1, seed: int = 0
) -> list[int]:
    """Random latents that fire like the given ones: for each, one of its n nearest in mean activation and firing rate.

    Distance is Euclidean in the logarithms of both, each divided by its spread over the latents that fire. No latent is
    taken twice, none of the given or excluded ones is taken, and latents that never fire are not candidates.

    Args: n: 1 takes the nearest; more draws among the n nearest that are free (other seeds, other sets).
    Raises: TooFewExamples: fewer candidates than latents.
    """
    wanted = latent_index(list(latents), found.d_sae).numpy()
    free = ~found.dead
    free[wanted] = False
    free[[int(j) for j in exclude]] = False
    if free.sum() < len(wanted):
        raise TooFewExamples(f"{len(wanted)} latents are to be matched and {int(free.sum())} others ever fire")
    smallest = 0.5 / found.n_rows
    points = np.stack([np.log(np.maximum(found.mean, 1e-12)), np.log(np.maximum(found.rate, smallest))], 1)
    points /= np.maximum(points[~found.dead].std(0), 1e-9)
    draw, chosen = np.random.default_rng(seed), []
    for j in wanted:
        distance = np.where(free, np.linalg.norm(points - points[j], axis=1), np.inf)
        near = np.argsort(distance, kind="stable")[: max(1, min(n, int(free.sum())))]
        pick = int(near[draw.integers(len(near))])
        free[pick] = False
        chosen.append(pick)
    return chosen


def uniform(d_sae: int, n: int, *, exclude: Iterable[int] = (), seed: int = 0) -> list[int]:
    """N different latents drawn uniformly, the excluded ones left out.

    Raises: TooFewExamples: fewer are left than wanted.
    """
    left = np.setdiff1d(np.arange(d_sae), np.asarray(list(exclude), dtype=int))
    if len(left) < n:
        raise TooFewExamples(f"{n} latents wanted, {len(left)} left")
    return [int(j) for j in np.random.default_rng(seed).choice(left, n, replace=False)]


def logit_lens(
    sae: SAE,
    latents: Sequence[int],
    unembedding: Tensor,
    tokens: Sequence[str] | None = None,
    *,
    k: int = 8,
    norm_weight: Tensor | None = None,
) -> LogitLens:
    """What one unit of a latent writes towards the vocabulary: U (g * d_j), d_j its decoder row.

    Blocks between the SAE and the unembedding are skipped, and the final norm's division too: the ranking is meant.

    Args:
        unembedding: U, (vocab, d_in). tokens: a text for each row of it; ids by default.
        norm_weight: the final norm's weight g, (d_in,); ones by default.
    Raises: BadInput: shapes that do not fit, or no such latent.
    """
    if unembedding.ndim != 2 or unembedding.shape[1] != sae.d_in:
        raise BadInput(f"unembedding must be (vocab, {sae.d_in}), not {tuple(unembedding.shape)}")
    if tokens is not None and len(tokens) > len(unembedding):
        raise BadInput(f"{len(tokens)} token texts for {len(unembedding)} rows of the unembedding")
    rows, unembedding = sae.decoder(list(latents)).detach().float(), unembedding.detach()
    rows = rows if norm_weight is None else rows * norm_weight.detach().float().to(rows.device)
    logits = rows @ unembedding.float().to(rows.device).T
    if tokens is not None:
        logits = logits[:, : len(tokens)]  # an embedding is often padded beyond the vocabulary
    name = (lambda i: str(tokens[i])) if tokens is not None else str
    k = min(k, logits.shape[1])

    def listed(values: Tensor, sign: int) -> tuple[tuple[tuple[str, float], ...], ...]:
        best = (sign * values).topk(k, dim=-1).indices.tolist()
        return tuple(tuple((name(i), float(row[i])) for i in ids) for row, ids in zip(values, best, strict=True))

    return LogitLens(tuple(int(j) for j in latents), listed(logits, 1), listed(logits, -1))


def _codes(given: Codes | Activations, sae: SAE | None) -> Codes:
    if isinstance(given, Codes):
        return given
    if sae is None:
        raise BadInput("activations need the SAE to encode them: sae=")
    return sae.codes(given)


def _mid_ranks(latent: np.ndarray, value: np.ndarray, n_rows: int, d_sae: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each active code among all rows of its latent, and the rank of the rows where it is silent (zero).

    Ties get their middle rank; ranks count from 1, the silent rows come first.
    """
    silent = n_rows - np.bincount(latent, minlength=d_sae)
    order = np.lexsort((value, latent))
    sorted_latent, sorted_value = latent[order], value[order]
    position = np.arange(len(order))
    new_latent = np.r_[True, sorted_latent[1:] != sorted_latent[:-1]] if len(order) else np.zeros(0, dtype=bool)
    new_block = new_latent | np.r_[True, sorted_value[1:] != sorted_value[:-1]] if len(order) else new_latent
    first_of_latent = np.maximum.accumulate(np.where(new_latent, position, 0))
    starts = np.flatnonzero(new_block)
    sizes = np.diff(np.r_[starts, len(order)])
    middle = np.repeat(starts + (sizes - 1) / 2, sizes)
    rank = np.empty(len(order))
    rank[order] = silent[sorted_latent] + middle - first_of_latent + 1
    return rank, (silent + 1) / 2
