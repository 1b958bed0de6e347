"""Latent trajectories: how the states of a text move while it is written.

    acts  = lm.activations(runs, "resid_post[*]", where="response", pool=("segments", 500))
    paths = trajectory.paths(acts)                    # means are taken in the hook: a 32k-token text costs megabytes
    found = trajectory.signals(paths)                 # net, cumulative, aligned change; layer changes

Net, cumulative and aligned change are mostly functions of LENGTH: a random walk of S steps of size s has net about
s / sqrt(S), cumulative s S, aligned about 1 / sqrt(S). Never read their AUROC without `signal_quality.evaluate`, which
puts length alone, strata of equal length and random walks beside it.

Source: Tracing the Traces (arXiv 2510.10494) and its code; Chain-of-Embedding (arXiv 2410.13640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.entropy import confidence, log_probabilities
from latentlens.maths.paths import displacement, layer_changes
from latentlens.maths.paths import speed as _speed
from latentlens.maths.paths import turning as _turning
from latentlens.values.activations import Activations
from latentlens.values.trajectory import SIGNS, Paths, Signals

if TYPE_CHECKING:
    import pandas as pd

Net = Literal["paper", "code"]


class ChainOfEmbedding(NamedTuple):
    """Per text: mean relative length and angle of the layer changes, and the two scores made of them."""

    mag: NDArray[np.float64]
    ang: NDArray[np.float64]
    coe_r: NDArray[np.float64]
    coe_c: NDArray[np.float64]


def paths(acts: Activations, *, sites: Any = None) -> Paths:
    """Sort rows of activations into one path a text.

    Args:
        acts: several rows a text, labelled `text` and `position`: segments (`pool=("segments", 500)`, the last one
            shorter and kept), sentences (`where=PerRow([between(...)...])`, `pool="span"`) or single tokens.
        sites: which, of equal width; all by default. All blocks, without the embedding, are the paper's. Its last
            state comes after the final norm (`["resid_post[:-1]", "final_norm"]`), a hook's does not.

    Raises: BadInput: labels missing, sites of different widths, no rows. NonFiniteActivations.
    """
    chosen = list(acts.sites) if sites is None else acts.expand(sites)
    if not {"text", "position"} <= set(acts.labels) or not chosen or not len(acts):
        raise BadInput("a path needs rows labelled with text and position: take them from lm.activations")
    x = acts.stack(chosen)
    if x.ndim != 3:
        raise BadInput(f"states of shape {tuple(x.shape[2:])} a row: give sites with rows of shape (d,)")
    if not bool(torch.isfinite(x).all()):
        bad = ~torch.isfinite(x).all(-1).all(0)
        raise NonFiniteActivations(f"{int(bad.sum())} of {x.shape[1]} rows hold NaN or infinity: drop them first")
    states = x.detach().to("cpu", torch.float32).numpy()
    text, position = np.asarray(acts.labels["text"]), np.asarray(acts.labels["position"])
    stop = np.asarray(acts.labels.get("stop", position + 1))
    order = np.lexsort((position, text))
    names, first = np.unique(text[order], return_index=True)
    parts = np.split(order, first[1:])
    return Paths(
        tuple(states[:, part] for part in parts),
        tuple(chosen),
        names,
        np.array([int((stop[part] - position[part]).sum()) for part in parts]),
        tuple(position[part] for part in parts),
        dict(acts.about),
    )


def truncated(of: Paths, n_points: int) -> Paths:
    """The first points of every path; shorter ones whole. What can be known early.

    Raises: BadInput: n_points below 1.
    """
    if n_points < 1:
        raise BadInput(f"n_points={n_points}: keep at least the first")
    read = [
        int(starts[n_points] - starts[0]) if len(starts) > n_points else int(total)
        for starts, total in zip(of.starts, of.n_tokens, strict=True)
    ]
    states = tuple(x[:, :n_points] for x in of.states)
    return replace(of, states=states, n_tokens=np.array(read), starts=tuple(s[:n_points] for s in of.starts))


def pooled(of: Paths, size: int, lengths: Sequence[int] | None = None) -> Paths:
    """Means over `size` points after another, the last segment shorter: segments made of single tokens.

    `lm.activations(..., pool=("segments", size))` gives the same without keeping the tokens; this is for states that
    were read while a text was written.

    Args: size: points of a segment. lengths: how many points of each path count; all by default.
    Raises: BadInput: size below 1, or lengths that are not one from 1 to n_points for each path.
    """
    wanted = of.n_points if lengths is None else np.asarray(lengths, dtype=np.int64)
    if size < 1 or wanted.shape != (len(of),) or (wanted < 1).any() or (wanted > of.n_points).any():
        raise BadInput(f"size={size}, lengths={lengths}: at least 1, and for each path 1 to its number of points")
    states, starts, read = [], [], []
    for x, start, n, total in zip(of.states, of.starts, wanted.tolist(), of.n_tokens.tolist(), strict=True):
        cuts = range(0, n, size)
        states.append(np.stack([x[:, a : min(a + size, n)].mean(1, dtype=np.float32) for a in cuts], axis=1))
        starts.append(start[::size][: len(cuts)])
        read.append(int(start[n] - start[0]) if n < len(start) else int(total))
    return replace(of, states=tuple(states), starts=tuple(starts), n_tokens=np.array(read))


def between(tokens: Sequence[str], marks: Sequence[str] = ("\n",), *, start: int = 0) -> list[int]:
    r"""Positions between marks, for segments that end at newlines or full stops instead of after k tokens.

        where = ll.PerRow([between(tokens_of(row), ("\n",), start=row.n_prompt) for row in rows])
        acts  = lm.activations(rows, "resid_post[*]", where=where, pool="span")     # one mean a run

    >>> between(["So", " far", ".", " On", "."], (".",))
    [0, 1, 3]

    Args: tokens: their texts. marks: a token that contains one ends a segment and belongs to none. start: first
        position to take.
    """
    return [i for i, token in enumerate(tokens) if i >= start and not any(mark in token for mark in marks)]


def signals(of: Paths, *, net: Net = "paper") -> Signals:
    """Net, cumulative and aligned change along a text, and the changes across layers.

    With h_1 .. h_N the segment means at a layer, u = h_N - h_1 and v_n = h_n - h_{n-1}, averaged over layers:

        net        |u| / N  (net="paper")   or   |u| / (N - 1)  (net="code", what made the published numbers)
        cumulative sum_n |v_n|
        aligned    mean_n cos(v_n, u), zero vectors giving 0
        layer_mag, layer_ang   mean over layers, then segments, of the relative changes from layer to layer

    mean_n |v_n| cos(v_n, u) = |u| / (N - 1): the three are bound together. None of them sees the order of the steps.

    Args: of: from `paths`. net: as above.
    Returns: Signals; NaN along the text where N < 2 (a text no longer than one segment); layer changes are NaN with
        one site.
    Raises: BadInput: another `net`.
    Source: arXiv 2510.10494, section 3.
    """
    if net not in ("paper", "code"):
        raise BadInput(f"net={net!r}: allowed are 'paper' (divides by N) and 'code' (divides by N - 1)")
    shape = (len(of), len(of.sites))
    found = {name: np.full(shape, math.nan) for name in ("net", "cumulative", "aligned")}
    mag, ang = np.full(len(of), math.nan), np.full(len(of), math.nan)
    for i, x in enumerate(of.states):
        n = x.shape[1]
        reach, length, alignment = displacement(x)
        if n > 1:
            found["net"][i] = reach / (n if net == "paper" else n - 1)
            found["cumulative"][i], found["aligned"][i] = length, alignment
        if len(of.sites) > 1:
            changes = layer_changes(x.transpose(1, 0, 2))
            mag[i], ang[i] = changes.length.mean(), changes.angle.mean()
    values = {name: per_layer.mean(axis=1) for name, per_layer in found.items()}
    values |= {"layer_mag": mag, "layer_ang": ang}
    signs = {name: SIGNS[name] for name in values}
    return Signals(values, found, signs, of.sites, of.n_tokens, of.n_points, net)


def chain_of_embedding(states: Tensor | NDArray) -> ChainOfEmbedding:
    """The original chain-of-embedding scores, from the mean state of the response at each layer.

        mag_i, ang_i: `maths.paths.layer_changes`
        coe_r = mean mag - mean ang,   coe_c = sqrt(mean(mag cos ang)^2 + mean(mag sin ang)^2)

    Args: states: (n, L, d): embedding and all layers, each averaged over the tokens of the response, for instance
        `lm.activations(runs, ["resid_pre[0]", "resid_post[*]"], "response", "mean").stack().transpose(0, 1)`. (The
        published code puts the FIRST prompt token's state where the first output position's belongs.)
    Raises: BadInput: fewer than two layers.
    Source: arXiv 2410.13640.
    """
    x = np.asarray(torch.as_tensor(states).detach().to("cpu", torch.float32), dtype=np.float64)
    if x.ndim != 3 or x.shape[1] < 2:
        raise BadInput(f"states of shape {x.shape}: give (n, layers, d) with at least two layers")
    length, angle = layer_changes(x)
    mag, ang = length.mean(-1), angle.mean(-1)
    flat = np.hypot((length * np.cos(angle)).mean(-1), (length * np.sin(angle)).mean(-1))
    return ChainOfEmbedding(mag, ang, mag - ang, flat)


def output_confidence(logits: Tensor | Activations) -> dict[str, NDArray[np.float64]]:
    """How sure the answer is: margin p1 - p2, entropy (nats), perplexity 1 / p1, for `Signals.add`.

    `SIGNS` turns entropy and perplexity round; the published AUROCs of .448 and .467 did not, and are .552 and .533.

    Args: logits: (n, V) where the answer begins, one row a text, such as after a forced "The answer is".
    Raises: BadInput: NaN or infinity.
    """
    found = confidence(logits["logits"] if isinstance(logits, Activations) else logits)
    return {name: value.double().numpy() for name, value in found._asdict().items()}


def output_scores(acts: Activations) -> dict[str, NDArray[np.float64]]:
    """Confidence over a whole response: mean of p_max, "ppl" = -mean ln p_max, mean entropy (bits).

    Args: acts: the site `logits` at the positions that predicted the response, several rows a text.
    Returns: one value a text, in the order of their numbers. All three judge the likeliest token, not the one taken.
    Raises: BadInput: as `paths`.
    Source: arXiv 2410.13640, output-based baselines.
    """
    if "text" not in acts.labels:
        raise BadInput("scores over a response need the label text: take the activations from lm.activations")
    log_p = log_probabilities(acts["logits"]).double()
    best = log_p.max(-1).values.numpy()
    bits = (torch.special.entr(log_p.exp()).sum(-1) / math.log(2)).numpy()
    codes = np.unique(np.asarray(acts.labels["text"]), return_inverse=True)[1].ravel()
    count = np.bincount(codes)
    mean = lambda v: np.bincount(codes, weights=v) / count
    return {"p_max": mean(np.exp(best)), "ppl": -mean(best), "mean_entropy": mean(bits)}


def combine(of: Signals, correct: Any, calibration: Any, names: Sequence[str] | None = None) -> NDArray[np.float64]:
    """One score from several signals, fitted on calibration texts only.

        score = sum_k w_k sign_k (s_k - mean_k) / sd_k,   w_k = |r(s_k, correct)| / sum |r|

    Means, spreads and correlations r come from the calibration rows. Take these from questions that are not tested:
    the published code draws them from all questions, which leaks.

    Args: of: signals. correct: (n,) bool. calibration: (n,) bool, which rows to fit on. names: by default net,
        cumulative and aligned.
    Returns: (n,), larger should mean right; NaN where a signal is.
    Raises: TooFewExamples: calibration rows lack a class, or no signal varies there. BadInput: lengths differ.
    Source: arXiv 2510.10494, LT-Combined.
    """
    y, use = np.asarray(correct).astype(bool), np.asarray(calibration)
    if y.shape != (len(of),) or use.shape != (len(of),) or use.dtype != bool:
        raise BadInput(f"correct {y.shape} and calibration {use.shape} for {len(of)} texts: one bool each a text")
    total, weight = np.zeros(len(of)), 0.0
    for name in names or ("net", "cumulative", "aligned"):
        s = of.oriented(name)
        rows = use & np.isfinite(s)
        if not 0 < y[rows].sum() < rows.sum():
            raise TooFewExamples(f"{int(rows.sum())} calibration texts, {int(y[rows].sum())} right: both are needed")
        spread = s[rows].std()
        if spread > 0:
            r = abs(float(np.corrcoef(s[rows], y[rows])[0, 1]))
            total, weight = total + r * (s - s[rows].mean()) / spread, weight + r
    if weight <= 0:
        raise TooFewExamples("no signal varies on the calibration texts")
    return total / weight


# -- the path itself ------------------------------------------------------------------------------


def speed(of: Paths) -> list[NDArray[np.float64]]:
    """Per text, the length of every step (n_sites, N - 1), in residual norm a segment or token."""
    return [_speed(x) for x in of.states]


def curvature(of: Paths) -> list[NDArray[np.float64]]:
    """Per text, the angle between successive steps (n_sites, N - 2) in radians: 0 straight on, pi straight back.

    Independent steps in many dimensions turn by pi / 2; states that fluctuate about a point turn by about 2 pi / 3,
    because each step undoes part of the last.
    """
    return [_turning(x) for x in of.states]


def drift(acts: Activations, *, sites: Any = None, role: str | None = "assistant") -> pd.DataFrame:
    """How far the states of each turn have moved from those of the first turn of the same chat.

    Args:
        acts: rows of chats at all positions, labelled text, turn and role.
        sites: which; all by default. role: whose turns; None for everybody's.

    Returns: a pandas frame, one row a text, site and turn: distance |m_t - m_1|, the same relative to |m_1|, cosine
        of m_t and m_1, step |m_t - m_{t-1}|, n_tokens; m_t: mean state of the turn.
    Raises: BadInput: no such turns or labels.
    """
    import pandas as pd

    if not {"text", "turn", "role"} <= set(acts.labels):
        raise BadInput("drift needs the labels text, turn and role: take the activations of chats from lm.activations")
    text, turn = np.asarray(acts.labels["text"]), np.asarray(acts.labels["turn"])
    inside = (turn >= 0) & ((np.asarray(acts.labels["role"]) == role) if role is not None else True)
    if not inside.any():
        raise BadInput(f"no token of a turn of role {role!r}: these roles came: {sorted(set(acts.labels['role']))}")
    rows = []
    for site in list(acts.sites) if sites is None else acts.expand(sites):
        x = acts[site].detach().to("cpu").double().numpy()
        for one in np.unique(text[inside]):
            means: list[NDArray] = []
            for number in np.unique(turn[inside & (text == one)]):
                at = inside & (text == one) & (turn == number)
                means.append(x[at].mean(axis=0))
                now, first = means[-1], means[0]
                size = float(np.linalg.norm(first))
                away = float(np.linalg.norm(now - first))
                rows.append(
                    {
                        "text": int(one),
                        "site": str(site),
                        "turn": int(number),
                        "distance": away,
                        "relative": away / size if size else math.nan,
                        "cosine": float(now @ first / (np.linalg.norm(now) * size)) if size else math.nan,
                        "step": float(np.linalg.norm(now - means[-2])) if len(means) > 1 else 0.0,
                        "n_tokens": int(at.sum()),
                    }
                )
    return pd.DataFrame(rows)
