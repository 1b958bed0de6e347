"""Choose among several answers to a question by a signal, and stop writing when one is good enough.

    found = selection.select(signals.oriented("aligned"), correct, questions, tokens=n_tokens, answers=answers)
    tau = selection.threshold(score[cal], correct[cal], questions[cal])         # to use while writing

Thresholds are calibrated on questions that are not tested. Beside the signal stand the same procedure on SHUFFLED
scores (accepting early saves tokens whatever the score says), on scores shuffled so that equal ones stay equal (what
stands out is accepted more often than its share, whatever the score says), both meanings of "majority vote", the
shortest, the first and a random answer, and the best possible choice.

`methods.early_stopping` chooses while texts are being written.

Source: Tracing the Traces (arXiv 2510.10494), table 1, and its code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.sample_choices import (
    NOTES,
    SIMPLE,
    Choice,
    PolicyNumbers,
    SampleTable,
    Vote,
    alike,
    mean_choice,
    sample_table,
    together,
)
from latentlens.values.selection import Selection

_FEWEST_WRONG = 15
_PERCENTILES = np.arange(20, 100)


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
    table, _ = sample_table(score, correct, questions, None, answers, vote)
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
    table, ids = sample_table(score, correct, questions, tokens, answers, vote)
    n_questions, n_samples = table.right.shape
    if n_questions < 4 or n_samples < 2:
        raise TooFewExamples(f"{n_questions} questions with {n_samples} samples: at least 4 with 2 are needed")
    if not 0 < calibration < 1:
        raise BadInput(f"calibration={calibration}: a share of the questions, for instance .3")
    rng, chance = np.random.default_rng(seed), np.random.default_rng([seed, 1])  # controls do not move the splits
    tested: list[NDArray] = []
    found: dict[str, list[Choice]] = {}
    taus: list[float] = []
    for _ in range(n_splits):
        order = rng.permutation(n_questions)
        cut = int(np.clip(round(calibration * n_questions), 1, n_questions - 1))
        fit, test = table.rows(order[:cut]), table.rows(order[cut:])
        tested.append(order[cut:])
        taus.append(_threshold(fit))
        made: dict[str, Choice | None] = {"first accepted, else vote": _accept(test, taus[-1])}
        for name, move in (("scores shuffled", _apart), ("equal scores shuffled together", together)):
            drawn = [_moved(fit, test, move, chance) for _ in range(n_controls)]
            made[f"the same, {name}"] = mean_choice(drawn)
        made |= {name: policy(test) for name, policy in SIMPLE.items()}
        for name, choice in made.items():
            if choice is not None:
                found.setdefault(name, []).append(choice)
    rows = np.concatenate(tested)
    numbers = PolicyNumbers(rows, float(table.tokens.sum(1).mean()), n_bootstrap, seed, level)
    joined = {name: Choice(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in found.items()}
    everything = table.tokens.sum(1)[rows]
    reference = joined["majority vote"].right
    policies = tuple(numbers.policy(n, c, reference, everything, NOTES.get(n, "")) for n, c in joined.items())
    about = {"n_splits": n_splits, "calibration": calibration, "seed": seed, "questions": len(ids)}
    about |= {"equal scores": alike(table)}
    return Selection(policies, tuple(taus), n_questions, n_samples, vote, about)


# -- the signal ------------------------------------------------------------------------------------


def _accept(table: SampleTable, tau: float) -> Choice:
    n = table.right.shape[1]
    passed = table.score >= tau  # NaN never does
    first = np.where(passed.any(1), passed.argmax(1), n)
    spent = np.cumsum(table.tokens, axis=1)
    last = np.minimum(first, n - 1)
    rows = np.arange(len(first))
    right = np.where(first < n, table.right[rows, last], table.voted)
    return Choice(right.astype(float), spent[rows, last], last + 1.0)


def _apart(score: NDArray, rng: np.random.Generator) -> NDArray:
    return rng.permutation(score.ravel()).reshape(score.shape)


def _moved(
    fit: SampleTable, test: SampleTable, move: Callable[..., NDArray], rng: np.random.Generator
) -> Choice:  # fmt: skip
    """Thresholds and decisions of the same procedure when scores belong to other samples."""
    fit, test = (t._replace(score=move(t.score, rng)) for t in (fit, test))
    return _accept(test, _threshold(fit))


def _threshold(table: SampleTable) -> float:
    usable = np.isfinite(table.score)
    if not usable.any():
        raise TooFewExamples("no sample used for calibration has a finite score")
    wrong = table.score[usable & ~table.right]
    if len(wrong) < _FEWEST_WRONG:
        return float(np.median(table.score[usable]))
    taus = np.percentile(wrong, _PERCENTILES)
    accuracy = np.array([_accept(table, tau).right.mean() for tau in taus])
    return float(np.median(taus[np.argsort(-accuracy, kind="stable")[:2]]))
