"""Projections on a trait vector: which texts carry the trait, which answers will, how a conversation drifts.

    projections(acts, v)                       a . v / |v|, one a text
    separation(acts, vectors, labels, groups)  AUROC on held-out texts by site, with controls
    monitor(projection, score, groups, kinds)  correlation, also within a kind of prompt
    monitor_contrast(contrast, acts, v)        the same for the answers of a contrast
    drift(acts, v)                             by turn

Source: Persona Vectors (arXiv 2507.21509), monitoring at the last prompt token and over the response; Assistant Axis
(arXiv 2601.10387), drift by turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.agreement import spearman
from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap
from latentlens.values.activations import Activations
from latentlens.values.column_means import column_means
from latentlens.values.directions import Direction
from latentlens.values.labelled_rows import binary_labels, finite_rows, group_codes
from latentlens.values.monitoring import Drift, Monitoring, Separation
from latentlens.values.persona import Contrast
from latentlens.values.results import Estimate
from latentlens.values.text_means import text_means


def projections(acts: Activations, direction: Direction) -> NDArray[np.float64]:
    """Coordinate of each text along a direction, its rows averaged first.

        p = a . v / |v|

    Args: acts: pooled or not, at the direction's site among others.
    Raises: SiteNotFound: not captured there. BadInput: another width.
    """
    return direction.project(text_means(acts, direction.site)).double().numpy()


def separation(
    acts: Activations,
    vectors: Iterable[Direction],
    labels: Sequence[Any],
    *,
    groups: Sequence[Any] | None = None,
    lengths: Sequence[int] | None = None,
    draws: int = 50,
    seed: int = 0,
) -> Separation:
    """How well projections tell texts with a trait (the larger label) from texts without, on texts not fitted on.

    Args:
        acts: one or several rows a text, at the sites of all vectors.
        vectors: one a site.
        labels: one a text; of two, the larger is the trait.
        groups: one a text, what intervals resample together, such as the topic.
        lengths: tokens of each text, for the baseline that knows nothing else.
        draws, seed: random directions a site; intervals.
    Raises: TooFewExamples: one label only. BadInput, SiteNotFound.
    """
    vectors = list(vectors)
    if not vectors:
        raise BadInput("no vectors: give those of PersonaVectors, or [direction]")
    rows = []
    for vector in vectors:
        states = text_means(acts, vector.site)
        y, _ = binary_labels(labels, len(states))
        group = group_codes("groups", groups, len(states))
        random = [
            auroc(vector.random_like(seed + i).project(states).numpy(), y) for i in range(draws)
        ]  # folded: the better of the two signs
        folded = np.maximum(random, 1 - np.asarray(random)) if random else np.array([math.nan])
        low, high = np.quantile(folded, [0.025, 0.975])
        rows.append(
            {
                "site": str(vector.site),
                "auroc": auroc_estimate(vector.project(states).double().numpy(), y, group, seed),
                "random": Estimate(float(folded.mean()), float(low), float(high), draws),
            }
        )
    y, names = binary_labels(labels, len(text_means(acts, vectors[0].site)))
    group = group_codes("groups", groups, len(y))
    length = None if lengths is None else auroc_estimate(np.asarray(lengths, dtype=np.float64), y, group, seed)
    about = {"positive": names[1], "negative": names[0], "n": [int(y.sum()), int((~y).sum())], "seed": seed}
    return Separation(tuple(rows), length, about)


def auroc_estimate(scores: NDArray[np.float64], y: NDArray[np.bool_], group: NDArray, seed: int = 0) -> Estimate:
    """AUROC with an interval that resamples groups; from the numbers of groups where it is 0 or 1.

    Raises: TooFewExamples: one class, or fewer than two groups.
    """
    value = auroc(scores, y)
    if value in (0.0, 1.0):
        ends = auroc_score_interval(value, len(set(group[y])), len(set(group[~y])))
    else:
        ends = cluster_bootstrap(auroc, scores, y, groups=group, seed=seed)
    return Estimate(value, *ends, len(y))


def monitor(
    projection: ArrayLike,
    score: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    kinds: Sequence[Any] | None = None,
    seed: int = 0,
) -> Monitoring:
    """Correlation of a projection with the trait that was then written.

    Rows without a score (NaN) are left out. Over prompts of very different kinds r is high already when the projection
    knows the kind; `within` is the correlation after the mean of each kind was subtracted from both.

    Args:
        projection: at the last prompt token, or over the response. score: of the answer.
        groups: what intervals resample together: the question.
        kinds: kind of prompt (which instruction) of each row.
    Raises: TooFewExamples: fewer than three rows. BadInput: lengths differ.
    Source: arXiv 2507.21509: r = .75 to .83 over prompts, weaker within one kind of prompt.
    """
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (projection, score))
    if len(x) != len(y):
        raise BadInput(f"{len(x)} projections and {len(y)} scores: one each")
    group = group_codes("groups", groups, len(x))
    kind = group_codes("kinds", kinds, len(x)) if kinds is not None else np.zeros(len(x), dtype=np.intp)
    held = np.isfinite(x) & np.isfinite(y)
    if held.sum() < 3:
        raise TooFewExamples(f"{int(held.sum())} answers with a projection and a score: a correlation needs three")
    names = tuple(str(k) for k in (kinds if kinds is not None else [""] * len(x)))
    names = tuple(n for n, there in zip(names, held, strict=True) if there)
    x, y, group, kind = x[held], y[held], group[held], kind[held]

    def estimate(statistic: Callable[..., float], *arrays: NDArray) -> Estimate:
        value = statistic(*arrays)
        if math.isnan(value) or len(set(group)) < 2:
            return Estimate(value, math.nan, math.nan, len(x))
        return Estimate(value, *cluster_bootstrap(statistic, *arrays, groups=group, seed=seed), len(x))

    within = None if kinds is None else estimate(_pearson_within, x, y, kind)
    return Monitoring(estimate(_pearson, x, y), estimate(spearman, x, y), within, x, y, names)


def monitor_contrast(contrast: Contrast, acts: Activations, direction: Direction, *, seed: int = 0) -> Monitoring:
    """`monitor` of the answers of a contrast: the kinds are its system prompts, the groups its questions.

    Args: contrast: judged answers to questions that the direction was not taken from. acts: of `contrast.rows`, at the
        last prompt token (`where="last_prompt"`: before anything is written) or over the response.
    Raises: as `monitor`.
    """
    rows = [("positive", p, p.positive) for p in contrast.pairs] + [("negative", p, p.negative) for p in contrast.pairs]
    return monitor(
        projections(acts, direction),
        [math.nan if reply.trait is None else reply.trait for _, _, reply in rows],
        groups=[pair.question for _, pair, _ in rows],
        kinds=[contrast.trait.system(side, pair.pair) for side, pair, _ in rows],  # pyright: ignore[reportArgumentType]
        seed=seed,
    )


def drift(acts: Activations, direction: Direction, *, seed: int = 0) -> Drift:
    """Mean projection of the assistant's words by turn, and its change from turn to turn.

    Args: acts: of whole conversations, every token: `lm.activations(chats, sites, where="role:assistant")`. The turns
        that count are those that every conversation has.
    Raises: TooFewExamples: fewer than two shared turns or conversations. SiteNotFound, NonFiniteActivations.
    """
    values = direction.project(finite_rows(acts, direction.site)).double().numpy()
    table: dict[Any, list[float]] = {}
    by: dict[Any, dict[int, list[float]]] = {}
    for text, turn, value in zip(acts.labels["text"].tolist(), acts.labels["turn"].tolist(), values, strict=True):
        by.setdefault(text, {}).setdefault(turn, []).append(value)
    for text, turns in by.items():
        table[text] = [float(np.mean(turns[turn])) for turn in sorted(turns)]
    count = min((len(row) for row in table.values()), default=0)
    if count < 2 or len(table) < 2:
        raise TooFewExamples(
            f"{len(table)} conversation(s) with {count} assistant turn(s) in all of them: drift needs two of each"
        )
    held = np.array([row[:count] for row in table.values()])
    turn = np.arange(count) - (count - 1) / 2
    slopes = held @ turn / (turn @ turn)
    *means, slope = column_means(np.column_stack([held, slopes]), seed=seed)
    about = {"direction": direction.name, "site": str(direction.site)}
    return Drift(tuple(range(1, count + 1)), tuple(means), slope, about)


def _pearson(x: NDArray, y: NDArray) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else math.nan


def _pearson_within(x: NDArray, y: NDArray, kind: NDArray) -> float:
    count = np.bincount(kind)
    means = [np.bincount(kind, v) / np.maximum(count, 1) for v in (x, y)]
    return _pearson(x - means[0][kind], y - means[1][kind])
