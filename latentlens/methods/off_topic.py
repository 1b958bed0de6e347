"""Which latents notice that an answer does not belong to its question: three rules on the same pairs.

Every answer is read twice, below its own question (normal) and below another one (shuffled), and the largest value of
each latent in the conversation is kept. So whatever an answer is about, it is about in both.

derangement(n)     which question each answer is moved to: never its own
by_derangement     the rule that was shipped with ESR's code: silent on all normal pairs, firing on most shuffled ones
by_separability    the rule that made ESR's shipped list: AUROC 1 between the two sides
by_contrast        paired effect size beyond chance: works where no latent is silent or separates perfectly
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import auroc_rows
from latentlens.values.codes import Codes
from latentlens.values.off_topic import OffTopicDetectors, Rule

SILENT = 1e-8
_COLUMNS = 4096  # latents ranked at a time


def derangement(n: int, seed: int = 0, groups: Sequence[Hashable] | None = None) -> list[int]:
    """A random permutation p of 0..n-1 without p(i) = i, nor p(i) in the group of i.

    Args: n: questions. seed: of the draw. groups: what each question is about; one per question by default.
    Raises: BadInput: not one group a question, or a group holds more than half of the questions (no such permutation).
    Source: ESR, find_off_topic_detectors.py; groups are ours, for prompts that ask the same in other words.
    """
    names = list(range(n)) if groups is None else list(groups)
    if len(names) != n or n < 2:
        raise BadInput(f"{n} questions (at least 2) and {len(names)} groups: one group a question")
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(name, []).append(i)
    largest = max(map(len, members.values()))
    if 2 * largest > n:
        raise BadInput(f"{largest} of {n} questions are of one group: their answers cannot all move to another")
    draw = np.random.default_rng(seed)
    # Groups laid out one after the other and turned by at least the largest group: nobody stays in their own.
    order = [i for name in draw.permutation(len(members)) for i in draw.permutation(list(members.values())[name])]
    turn = int(draw.integers(largest, n - largest + 1))
    found = [0] * n
    for place, i in enumerate(order):
        found[int(i)] = int(order[(place + turn) % n])
    return found


def by_derangement(normal: Codes, shuffled: Codes, *, share: float = 0.8, silent: float = SILENT) -> OffTopicDetectors:
    """Latents below `silent` in every normal pair and at or above it in at least `share` of the shuffled ones.

    Ranked by that share, then by the mean on shuffled pairs.

    Args: normal, shuffled: largest values, one row a conversation (`latents.pooled`), the same answers in the same
        order.
    Raises: BadInput: rows or widths differ.
    Source: ESR's code, find_off_topic_detectors.py.
    """
    a, b = _sides(normal, shuffled)
    passes, fires = passes_derangement(a, b, share, silent)
    found = np.flatnonzero(passes)
    order = sorted(found.tolist(), key=lambda j: (-fires[j], -b[:, j].mean(), j))
    return _made("derangement", order, fires, "share of other answers", a, b, silent, normal)


def passes_derangement(
    normal: ArrayLike, shuffled: ArrayLike, share: float = 0.8, silent: float = SILENT
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which columns are below `silent` in all normal rows and fire in `share` of the shuffled ones, and that share.

    >>> normal = [[0, 0, .5], [0, 0, 0]]
    >>> passes_derangement(normal, [[1, 0, 2], [1, 3, 2], [1, 0, 2], [1, 1, 0], [0, 2, 1]])[0].tolist()
    [True, False, False]
    """
    a, b = np.asarray(normal, dtype=np.float64), np.asarray(shuffled, dtype=np.float64)
    fires = (b >= silent).mean(0)
    return (a < silent).all(0) & (fires >= share - 1e-12), fires


def by_separability(normal: Codes, shuffled: Codes, *, least: float = 1.0, silent: float = SILENT) -> OffTopicDetectors:
    """Latents whose AUROC between shuffled and normal pairs is at least `least`; ranked by paired effect size.

    Args: as `by_derangement`; least: AUROC.
    Raises: BadInput: rows or widths differ.
    Source: how the list that ESR ships was made; 16 of its 25 latents also fire on some normal pairs.
    """
    a, b = _sides(normal, shuffled)
    labels = np.r_[np.ones(len(b)), np.zeros(len(a))].astype(bool)
    area = np.concatenate(
        [
            auroc_rows(np.concatenate([b[:, at : at + _COLUMNS], a[:, at : at + _COLUMNS]]).T, labels)
            for at in range(0, a.shape[1], _COLUMNS)
        ]
    )
    effect = paired_effect(a, b)
    found = np.flatnonzero((area >= least - 1e-12) & (effect > 0))
    order = sorted(found.tolist(), key=lambda j: (-area[j], -effect[j], j))
    return _made("separability", order, area, "AUROC", a, b, silent, normal)


def by_contrast(
    normal: Codes, shuffled: Codes, *, k: int | None = None, silent: float = SILENT, n_permutations: int = 200
) -> OffTopicDetectors:
    """Latents whose paired effect size is beyond chance, the largest first, at most k.

        effect_j = mean_i (b_ij - a_ij) / sd_i (b_ij - a_ij)        a: normal, b: shuffled, i: answers
        chance: the 95% quantile, over random signs of the answers' differences, of the largest effect of all latents

    Args: as `by_derangement`; k: None takes all; n_permutations: draws of signs.
    Raises: BadInput: rows or widths differ, or k below 1.
    """
    if k is not None and k < 1:
        raise BadInput(f"k={k}: at least 1")
    a, b = _sides(normal, shuffled)
    effect = paired_effect(a, b)
    null = chance_effect(a, b, n_permutations)
    order = [int(j) for j in np.argsort(-effect, kind="stable") if effect[j] > null][:k]
    return _made("contrast", order, effect, "paired effect size", a, b, silent, normal, null)


RULES: dict[Rule, Any] = {
    "derangement": by_derangement,
    "separability": by_separability,
    "contrast": by_contrast,
}


def paired_effect(normal: ArrayLike, shuffled: ArrayLike) -> NDArray[np.float64]:
    """Mean over standard deviation of the paired differences of every column; 0 where nothing differs.

    >>> paired_effect([[0., 1.], [0., 1.]], [[1., 1.], [3., 1.]]).round(4).tolist()
    [1.4142, 0.0]
    """
    difference = np.asarray(shuffled, dtype=np.float64) - np.asarray(normal, dtype=np.float64)
    mean, spread = difference.mean(0), difference.std(0, ddof=1)
    # A latent that changes by the same amount in every pair has no spread: rounding must not make it infinite.
    floor = 1e-6 * np.abs(mean)
    return np.divide(mean, np.maximum(spread, floor), out=np.zeros_like(mean), where=mean != 0)


def chance_effect(normal: ArrayLike, shuffled: ArrayLike, n: int = 200, seed: int = 0) -> float:
    """95% quantile of the largest effect over all columns when the sign of each answer's difference is random."""
    difference = np.asarray(shuffled, dtype=np.float64) - np.asarray(normal, dtype=np.float64)
    difference = difference[:, difference.any(0)]
    if not difference.size:
        return 0.0
    rows = len(difference)
    square = (difference**2).sum(0)
    draw = np.random.default_rng(seed)
    largest = []
    for _ in range(n):
        mean = draw.choice((-1.0, 1.0), rows) @ difference / rows
        spread = np.sqrt(np.maximum(square / rows - mean**2, 0) * rows / (rows - 1))
        largest.append(float(np.max(mean / np.maximum(spread, 1e-6 * np.abs(mean) + 1e-300))))
    return float(np.quantile(largest, 0.95))


def _sides(normal: Codes, shuffled: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(normal) != len(shuffled) or normal.d_sae != shuffled.d_sae:
        raise BadInput(
            f"{len(normal)} normal pairs of {normal.d_sae} latents, {len(shuffled)} shuffled ones of {shuffled.d_sae}: "
            "give the same answers below their own and below another question"
        )
    if len(normal) < 2:
        raise TooFewExamples(f"{len(normal)} pair(s): at least two are needed")
    return normal.dense().double().numpy(), shuffled.dense().double().numpy()


def _made(
    rule: Rule,
    latents: Sequence[int],
    statistic: NDArray[Any],
    ranked_by: str,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    silent: float,
    source: Codes,
    null: float | None = None,
) -> OffTopicDetectors:
    return OffTopicDetectors(
        rule,
        tuple(latents),
        tuple(float(statistic[j]) for j in latents),
        ranked_by,
        (a >= silent).mean(0),
        (b >= silent).mean(0),
        a.mean(0),
        b.mean(0),
        paired_effect(a, b),
        chance_effect(a, b) if null is None else null,
        len(a),
        dict(source.about),
    )
