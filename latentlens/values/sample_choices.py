"""Samples of several questions as a table, ways of choosing among them, and what each choice gains and costs.

What `methods.selection` and `methods.early_stopping` share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.values.results import Estimate
from latentlens.values.selection import Policy

Vote = Literal["plurality", "half"]


class SampleTable(NamedTuple):
    """Questions x samples, in the order in which samples came. score: larger should mean right; NaN never accepted."""

    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    tokens: NDArray[np.float64]
    voted: NDArray[np.bool_]  # (questions,) whether the vote is right

    def rows(self, keep: NDArray) -> SampleTable:
        """Some of the questions."""
        return SampleTable(self.score[keep], self.right[keep], self.tokens[keep], self.voted[keep])


class Choice(NamedTuple):
    """Per question: right or not (or its chance), tokens written, samples begun."""

    right: NDArray[np.float64]
    tokens: NDArray[np.float64]
    samples: NDArray[np.float64]


def mean_choice(choices: list[Choice]) -> Choice | None:
    """Average of several choices on the same questions; None of none."""
    return Choice(*(np.mean(part, axis=0) for part in zip(*choices, strict=True))) if choices else None


def together(score: NDArray, rng: np.random.Generator) -> NDArray[np.float64]:
    """Scores given to other samples, except that samples of one question with equal scores keep an equal score.

    Samples that read alike have one score whatever it measures, and right samples often read alike where every wrong
    one is wrong in its own way. Of five samples of which four are alike, the largest of ANY function of their states is
    the odd one's half of the time, not a fifth of it. Moving each score on its own hides that.

    Args: score: (questions, samples).
    """
    codes, values = _equals(score)
    return rng.permutation(values)[codes].reshape(score.shape)


def alike(table: SampleTable) -> dict[str, float]:
    """How often two samples of a question that are both right, or both wrong, have equal scores; NaN without such."""
    codes = _equals(table.score)[0].reshape(table.score.shape)
    first, second = np.triu_indices(table.score.shape[1], 1)
    equal = codes[:, first] == codes[:, second]
    both = {"right": table.right[:, first] & table.right[:, second]}
    both["wrong"] = ~table.right[:, first] & ~table.right[:, second]
    return {name: float(equal[pairs].mean()) if pairs.any() else float("nan") for name, pairs in both.items()}


def _equals(score: NDArray) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """A code for each sample, the same for equal scores of one question, and the score of each code."""
    known = score[np.isfinite(score)]
    grain = (float(np.ptp(known)) if len(known) else 0.0) * 1e-6 or 1.0  # states of equal texts differ by rounding
    rounded = np.where(np.isfinite(score), np.round(score / grain), np.inf)
    rows = np.broadcast_to(np.arange(len(score))[:, None], score.shape)
    pairs = np.stack([rows.ravel(), rounded.ravel()], 1)
    _, at, codes = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    return codes.ravel(), score.ravel()[at]


def all_samples(table: SampleTable, right: NDArray) -> Choice:
    """A choice that every sample was written for."""
    n = table.right.shape[1]
    return Choice(right.astype(float), table.tokens.sum(1), np.full(len(right), float(n)))


def _shortest(table: SampleTable) -> Choice:
    n, at = table.right.shape[1], table.tokens.argmin(1)
    rows = np.arange(len(at))
    return Choice(table.right[rows, at].astype(float), n * table.tokens[rows, at], np.full(len(at), float(n)))


def _first(table: SampleTable) -> Choice:
    return Choice(table.right[:, 0].astype(float), table.tokens[:, 0], np.ones(len(table.right)))


def _random(table: SampleTable) -> Choice:
    return Choice(table.right.mean(1), table.tokens.mean(1), np.ones(len(table.right)))


SIMPLE: dict[str, Callable[[SampleTable], Choice]] = {
    "majority vote": lambda t: all_samples(t, t.voted),
    "more than half right": lambda t: all_samples(t, np.greater(t.right.mean(1), 0.5)),
    "shortest": _shortest,
    "first": _first,
    "random": _random,
    "best possible": lambda t: all_samples(t, np.asarray(t.right.any(1))),
}
NOTES = {
    "the same, scores shuffled": "control",
    "the same, equal scores shuffled together": "control",
    "the same, labels shuffled": "control",
    "more than half right": "needs the answers",
    "best possible": "needs the answers",
    "random": "expected value",
}


# -- numbers --------------------------------------------------------------------------------------


class PolicyNumbers(NamedTuple):
    """Means over tested questions, whole questions resampled (one may be tested in several splits)."""

    questions: NDArray
    all_tokens: float
    n_bootstrap: int
    seed: int
    level: float

    def policy(self, name: str, choice: Choice, reference: NDArray, everything: NDArray, note: str) -> Policy:
        """A choice in numbers. Args: reference: whether the vote is right. everything: tokens of all samples."""
        share = lambda spent, total: 1 - float(spent.sum() / total.sum())
        mean = lambda values: float(values.mean())
        return Policy(
            name,
            self._estimate(mean, choice.right),
            self._estimate(mean, choice.right - reference),
            self._estimate(mean, choice.tokens),
            self._estimate(share, choice.tokens, everything),
            float(choice.samples.mean()),
            note,
        )

    def _estimate(self, statistic: Callable[..., float], *arrays: NDArray) -> Estimate:
        ends = cluster_bootstrap(
            statistic, *arrays, groups=self.questions, n=self.n_bootstrap, seed=self.seed, level=self.level
        )
        return Estimate(statistic(*arrays), *ends, len(np.unique(self.questions)), self.level)


def sample_table(
    score: ArrayLike,
    correct: ArrayLike,
    questions: ArrayLike,
    tokens: ArrayLike | None,
    answers: ArrayLike | None,
    vote: Vote,
) -> tuple[SampleTable, NDArray]:
    """Rows sorted into questions x samples, order of samples kept."""
    s, y, q = np.asarray(score, dtype=np.float64), np.asarray(correct), np.asarray(questions)
    length = np.ones(len(s)) if tokens is None else np.asarray(tokens, dtype=np.float64)
    said = None if answers is None else np.asarray(answers, dtype=object)
    sizes = {len(v) for v in (s, y, q, length, *([] if said is None else [said]))}
    if s.ndim != 1 or len(sizes) > 1 or not len(s):
        raise BadInput(f"score, correct, questions, tokens and answers differ in length: {sorted(sizes)}")
    if y.dtype != bool and not np.isin(y, (0, 1)).all():
        raise BadInput("correct: bool, or 0 and 1")
    if vote not in ("plurality", "half"):
        raise BadInput(f"vote={vote!r}: allowed are 'plurality' and 'half'")
    if vote == "plurality" and said is None:
        raise BadInput("vote='plurality' needs answers=; vote='half' does without, as the published code does")
    ids, codes, counts = np.unique(q, return_inverse=True, return_counts=True)
    if len(set(counts.tolist())) > 1:
        raise BadInput(f"questions have {counts.min()} to {counts.max()} samples: give the same number for each")
    order = np.argsort(codes.ravel(), kind="stable")
    shape = (len(ids), int(counts[0]))
    right = y.astype(bool)[order].reshape(shape)
    voted = right.mean(1) > 0.5
    if vote == "plurality" and said is not None:
        voted = np.array([plurality(a, r) for a, r in zip(said[order].reshape(shape), right, strict=True)])
    return SampleTable(s[order].reshape(shape), right, length[order].reshape(shape), voted), ids


def plurality(said: NDArray, right: NDArray) -> bool:
    """Whether the commonest answer is right; None is no answer and never wins over one."""
    counts = Counter(a for a in said.tolist() if a is not None)
    if not counts:
        return False
    return bool(right[said.tolist().index(counts.most_common(1)[0][0])])
