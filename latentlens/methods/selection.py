"""Choose among several answers to a question by a signal, and stop writing when one is good enough.

    found = selection.select(signals.oriented("aligned"), correct, questions, tokens=n_tokens, answers=answers)
    tau = selection.threshold(score[cal], correct[cal], questions[cal])         # to use while writing

Thresholds are calibrated on questions that are not tested. Beside the signal stand the same procedure on SHUFFLED
scores (accepting early saves tokens whatever the score says), both meanings of "majority vote", the shortest, the first
and a random answer, and the best possible choice.

Source: Tracing the Traces (arXiv 2510.10494), tables 1 and 2, and its code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.values.results import Estimate
from latentlens.values.selection import Policy, Selection

Vote = Literal["plurality", "half"]
_FEWEST_WRONG = 15
_PERCENTILES = np.arange(20, 100)


class _Table(NamedTuple):
    """Questions x samples, in the order in which samples came. score: larger should mean right; NaN never accepted."""

    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    tokens: NDArray[np.float64]
    voted: NDArray[np.bool_]  # (questions,) whether the vote is right

    def rows(self, keep: NDArray) -> _Table:
        return _Table(self.score[keep], self.right[keep], self.tokens[keep], self.voted[keep])


class _Choice(NamedTuple):
    """Per question: right or not (or its chance), tokens written, samples begun."""

    right: NDArray[np.float64]
    tokens: NDArray[np.float64]
    samples: NDArray[np.float64]


def threshold(
    score: ArrayLike,
    correct: ArrayLike,
    questions: ArrayLike,
    *,
    answers: ArrayLike | None = None,
    vote: Vote = "plurality",
) -> float:
    """Score from which a sample is accepted, calibrated on labelled samples.

    Of the 20th to 99th percentiles of the score among WRONG samples, the two that give the highest accuracy of "first
    accepted sample, else the vote"; their mean. With fewer than 15 wrong samples, the median score.

    Args: score: (n,), larger should mean right; NaN is never accepted. correct, questions, answers, vote: as `select`.
    Raises: TooFewExamples: no finite score. BadInput: as `select`.
    """
    table, _ = _table(score, correct, questions, None, answers, vote)
    return _threshold(table)


def select(
    score: ArrayLike,
    correct: ArrayLike,
    questions: ArrayLike,
    *,
    tokens: ArrayLike,
    answers: ArrayLike | None = None,
    vote: Vote = "plurality",
    n_splits: int = 3,
    calibration: float = 0.3,
    n_controls: int = 5,
    n_bootstrap: int = 500,
    seed: int = 42,
    level: float = 0.95,
) -> Selection:
    """Accept the first sample whose score passes a threshold, else take a vote; against everything simpler.

    Samples of a question count in the order of the rows. `n_splits` times, 30% of the QUESTIONS calibrate and the rest
    are tested; all policies are averaged over the same tests. Tokens of a policy: all samples up to the one accepted,
    all of them for a vote, and for the shortest n_samples times its length (all run side by side and stop with it).

    Args:
        score: (n,) one a sample, larger should mean right: `signals.oriented(name)`. NaN is never accepted.
        correct: (n,) bool. questions: (n,) which question; each has the same number of samples.
        tokens: (n,) length of each sample.
        answers: (n,) what each sample answers; needed for the vote "plurality".
        vote: "plurality": the commonest answer, the earliest of equals (what a user can do). "half": right when more
            than half of the samples are right, which is what the published code calls majority vote and nobody
            without the answers can do.
        n_splits, calibration: as above. n_controls: shuffles of the scores. n_bootstrap: resamples of questions.
        seed: of splits, shuffles and bootstrap. level: coverage.

    Raises: TooFewExamples: fewer than four questions, or one sample each. BadInput: lengths differ, unequal numbers of
        samples, a vote without answers.
    Source: arXiv 2510.10494, table 1.
    """
    table, ids = _table(score, correct, questions, tokens, answers, vote)
    n_questions, n_samples = table.right.shape
    if n_questions < 4 or n_samples < 2:
        raise TooFewExamples(f"{n_questions} questions with {n_samples} samples: at least 4 with 2 are needed")
    if not 0 < calibration < 1:
        raise BadInput(f"calibration={calibration}: a share of the questions, for instance .3")
    rng = np.random.default_rng(seed)
    tested: list[NDArray] = []
    found: dict[str, list[_Choice]] = {}
    taus: list[float] = []
    for _ in range(n_splits):
        order = rng.permutation(n_questions)
        cut = int(np.clip(round(calibration * n_questions), 1, n_questions - 1))
        fit, test = table.rows(order[:cut]), table.rows(order[cut:])
        tested.append(order[cut:])
        taus.append(_threshold(fit))
        made: dict[str, _Choice | None] = {"first accepted, else vote": _accept(test, taus[-1])}
        made["the same, scores shuffled"] = _mean_of(
            [_shuffled(fit, test, rng) for _ in range(n_controls)] if n_controls else []
        )
        made |= {name: policy(test) for name, policy in _SIMPLE.items()}
        for name, choice in made.items():
            if choice is not None:
                found.setdefault(name, []).append(choice)
    rows = np.concatenate(tested)
    numbers = _Numbers(rows, float(table.tokens.sum(1).mean()), n_bootstrap, seed, level)
    joined = {name: _Choice(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in found.items()}
    everything = table.tokens.sum(1)[rows]
    reference = joined["majority vote"].right
    policies = tuple(numbers.policy(n, c, reference, everything, _NOTES.get(n, "")) for n, c in joined.items())
    about = {"n_splits": n_splits, "calibration": calibration, "seed": seed, "questions": len(ids)}
    return Selection(policies, tuple(taus), n_questions, n_samples, vote, about)


def early_path(
    features: ArrayLike,
    correct: ArrayLike,
    questions: ArrayLike,
    *,
    tokens: ArrayLike,
    read: ArrayLike,
    answers: ArrayLike | None = None,
    vote: Vote = "plurality",
    n_folds: int = 3,
    n_trees: int = 200,
    n_bootstrap: int = 500,
    seed: int = 42,
    level: float = 0.95,
) -> Selection:
    """Begin all samples, finish only the one that looks best after its first segments.

    A random forest learns from the features of other questions' samples (grouped folds); each test question finishes
    the sample it likes best. Tokens: what all samples have written by then, plus the rest of the chosen one.

    Args:
        features: (n, k) read from the first segments, such as net and cumulative change by step; NaN becomes 0.
        correct, questions, tokens, answers, vote, n_bootstrap, seed, level: as `select`.
        read: (n,) tokens that the features have read, at most `tokens`. (The published code charges one segment less
            than it reads.)
        n_folds: of questions. n_trees: of the forest.

    Returns: Selection; the control is the same forest trained on shuffled labels.
    Raises: as `select`.
    Source: arXiv 2510.10494, table 2.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GroupKFold

    x, y, q = np.nan_to_num(np.asarray(features, float)), np.asarray(correct), np.asarray(questions)
    seen = np.asarray(read, float)
    if x.ndim != 2 or len(x) != len(y) or seen.shape != (len(y),) or (seen > np.asarray(tokens, float)).any():
        raise BadInput(f"features {x.shape}, read {seen.shape} for {len(y)} samples: (n, k) and (n,), read <= tokens")
    table, ids = _table(np.zeros(len(y)), y, q, tokens, answers, vote)
    if len(ids) < max(4, n_folds) or table.right.shape[1] < 2:
        raise TooFewExamples(f"{len(ids)} questions with {table.right.shape[1]} samples: too few for {n_folds} folds")
    rng = np.random.default_rng(seed)
    likes = {"finish the best start": np.full(len(y), np.nan), "the same, labels shuffled": np.full(len(y), np.nan)}
    for train, test in GroupKFold(n_folds).split(x, y, q):
        for name, scores in likes.items():
            labels = y[train].astype(bool) if "shuffled" not in name else rng.permutation(y[train].astype(bool))
            forest = RandomForestClassifier(n_trees, random_state=seed, n_jobs=1).fit(x[train], labels)
            at = np.flatnonzero(forest.classes_)
            scores[test] = forest.predict_proba(x[test])[:, at[0]] if len(at) else 0.0
    begun = _table(seen, y, q, tokens, answers, vote)[0].score
    made = {}
    for name, scores in likes.items():
        liked = _table(scores, y, q, tokens, answers, vote)[0].score.argmax(1)
        pick = (np.arange(len(liked)), liked)
        cost = begun.sum(1) + table.tokens[pick] - begun[pick]
        made[name] = _Choice(table.right[pick].astype(float), cost, np.full(len(liked), float(table.right.shape[1])))
    made |= {name: policy(table) for name, policy in _SIMPLE.items()}
    numbers = _Numbers(np.arange(len(ids)), float(table.tokens.sum(1).mean()), n_bootstrap, seed, level)
    reference, everything = made["majority vote"].right, table.tokens.sum(1)
    policies = tuple(numbers.policy(n, c, reference, everything, _NOTES.get(n, "")) for n, c in made.items())
    return Selection(policies, (), len(ids), table.right.shape[1], vote, {"n_folds": n_folds, "seed": seed})


# -- policies -------------------------------------------------------------------------------------


def _accept(table: _Table, tau: float) -> _Choice:
    n = table.right.shape[1]
    passed = table.score >= tau  # NaN never does
    first = np.where(passed.any(1), passed.argmax(1), n)
    spent = np.cumsum(table.tokens, axis=1)
    last = np.minimum(first, n - 1)
    rows = np.arange(len(first))
    right = np.where(first < n, table.right[rows, last], table.voted)
    return _Choice(right.astype(float), spent[rows, last], last + 1.0)


def _shuffled(fit: _Table, test: _Table, rng: np.random.Generator) -> _Choice:
    """Thresholds and decisions of the same procedure when scores belong to other samples."""
    move = lambda t: t._replace(score=rng.permutation(t.score.ravel()).reshape(t.score.shape))
    return _accept(move(test), _threshold(move(fit)))


def _mean_of(choices: list[_Choice]) -> _Choice | None:
    return _Choice(*(np.mean(part, axis=0) for part in zip(*choices, strict=True))) if choices else None


def _all(table: _Table, right: NDArray) -> _Choice:
    n = table.right.shape[1]
    return _Choice(right.astype(float), table.tokens.sum(1), np.full(len(right), float(n)))


def _shortest(table: _Table) -> _Choice:
    n, at = table.right.shape[1], table.tokens.argmin(1)
    rows = np.arange(len(at))
    return _Choice(table.right[rows, at].astype(float), n * table.tokens[rows, at], np.full(len(at), float(n)))


def _first(table: _Table) -> _Choice:
    return _Choice(table.right[:, 0].astype(float), table.tokens[:, 0], np.ones(len(table.right)))


def _random(table: _Table) -> _Choice:
    return _Choice(table.right.mean(1), table.tokens.mean(1), np.ones(len(table.right)))


_SIMPLE: dict[str, Callable[[_Table], _Choice]] = {
    "majority vote": lambda t: _all(t, t.voted),
    "more than half right": lambda t: _all(t, np.greater(t.right.mean(1), 0.5)),
    "shortest": _shortest,
    "first": _first,
    "random": _random,
    "best possible": lambda t: _all(t, np.asarray(t.right.any(1))),
}
_NOTES = {
    "the same, scores shuffled": "control",
    "the same, labels shuffled": "control",
    "more than half right": "needs the answers",
    "best possible": "needs the answers",
    "random": "expected value",
}


def _threshold(table: _Table) -> float:
    usable = np.isfinite(table.score)
    if not usable.any():
        raise TooFewExamples("no sample used for calibration has a finite score")
    wrong = table.score[usable & ~table.right]
    if len(wrong) < _FEWEST_WRONG:
        return float(np.median(table.score[usable]))
    taus = np.percentile(wrong, _PERCENTILES)
    accuracy = np.array([_accept(table, tau).right.mean() for tau in taus])
    return float(np.median(taus[np.argsort(-accuracy, kind="stable")[:2]]))


# -- numbers --------------------------------------------------------------------------------------


class _Numbers(NamedTuple):
    """Means over tested questions, whole questions resampled (one may be tested in several splits)."""

    questions: NDArray
    all_tokens: float
    n_bootstrap: int
    seed: int
    level: float

    def policy(self, name: str, choice: _Choice, reference: NDArray, everything: NDArray, note: str) -> Policy:
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


def _table(
    score: ArrayLike,
    correct: ArrayLike,
    questions: ArrayLike,
    tokens: ArrayLike | None,
    answers: ArrayLike | None,
    vote: Vote,
) -> tuple[_Table, NDArray]:
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
        voted = np.array([_plurality(a, r) for a, r in zip(said[order].reshape(shape), right, strict=True)])
    return _Table(s[order].reshape(shape), right, length[order].reshape(shape), voted), ids


def _plurality(said: NDArray, right: NDArray) -> bool:
    """Whether the commonest answer is right; None is no answer and never wins over one."""
    counts = Counter(a for a in said.tolist() if a is not None)
    if not counts:
        return False
    return bool(right[said.tolist().index(counts.most_common(1)[0][0])])
