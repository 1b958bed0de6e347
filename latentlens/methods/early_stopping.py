"""Begin several answers to a question, and go on with those that look right after their first segments.

    scorer = early_stopping.fit_starts(features, correct)                              # labelled questions
    found  = early_stopping.early_stop(scorer(new), right, questions, tokens=n, read=r, answers=a)   # stored samples
    keep   = early_stopping.keep_best(lambda runs: scorer(start_of(runs)), after=32, record="resid_post[*]")
    lm.generate(prompts, 512, samples=5, temperature=1, keep=keep)                     # the others stop there

`early_stop` and `keep_best` ask the same question (`going_on`), so stored samples that are cut and samples that are
stopped end in the same answers. Beside it stand the same choice on shuffled scores, and every choice that needs no
signal.

The largest of several scores belongs to a sample that stands out, and wrong samples stand out: right ones read alike.
So the best start may be right less often than a random one although the score says nothing, or even something; the
control in which equal scores are shuffled together does as it does. `typical` turns this round: it needs no labels, and
goes on with the start that is most like the others.

Source: Tracing the Traces (arXiv 2510.10494), table 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.rollouts import Keep, Rollouts
from latentlens.values.sample_choices import (
    NOTES,
    SIMPLE,
    Choice,
    PolicyNumbers,
    SampleTable,
    Vote,
    alike,
    mean_choice,
    plurality,
    sample_table,
    together,
)
from latentlens.values.selection import Selection

_BEST, _ACCEPTED = "go on with the best start", "go on from the threshold, then vote"


@dataclass(frozen=True, eq=False)
class StartScorer:
    """Chance that a sample ends right, read from its first segments. Made by `fit_starts`.

    n: samples it has learned from. fingerprint: digest of what it has learned from.
    """

    forest: Any = field(repr=False)
    n: int
    fingerprint: str

    def __call__(self, features: ArrayLike) -> NDArray[np.float64]:
        """(n, k) features, NaN counting as 0 -> (n,)."""
        at = np.flatnonzero(self.forest.classes_)
        x = np.nan_to_num(np.asarray(features, dtype=np.float64))
        return self.forest.predict_proba(x)[:, at[0]] if len(at) else np.zeros(len(x))


def fit_starts(features: ArrayLike, correct: ArrayLike, *, n_trees: int = 200, seed: int = 42) -> StartScorer:
    """Learn from labelled samples which starts end right: a random forest, as in the paper.

    Args: features: (n, k) read from the first segments, such as net and cumulative change; NaN counts as 0. correct:
        (n,) bool. Test it on other questions.
    Raises: BadInput: lengths differ. TooFewExamples: no sample.
    """
    from sklearn.ensemble import RandomForestClassifier

    x, y = np.nan_to_num(np.asarray(features, dtype=np.float64)), np.asarray(correct).astype(bool)
    if x.ndim != 2 or y.shape != (len(x),):
        raise BadInput(f"features {x.shape} and {y.shape} labels: they must be (n, k) and (n,)")
    if not len(x):
        raise TooFewExamples("no sample to learn from")
    forest = RandomForestClassifier(n_trees, random_state=seed, n_jobs=1).fit(x, y)
    digest = hashlib.sha256(x.tobytes() + y.tobytes() + f"{x.shape}|{n_trees}|{seed}".encode()).hexdigest()
    return StartScorer(forest, len(x), digest)


def typical(features: ArrayLike, questions: ArrayLike) -> NDArray[np.float64]:
    """How like the other starts of its question each start is: minus the median distance to them; 0 is equal to most.

    A vote before there are answers. Distances are Euclidean, every feature in units of its spread among the samples of
    the question, so that a score depends on these samples only. Compare states with what needs no model inside, such as
    counts of the tokens written so far.

    Args: features: (n, k), NaN counting as 0. questions: (n,).
    Returns: (n,), rounded to three digits (states of equal texts differ by rounding); 0 for a sample on its own.
    Raises: BadInput: lengths differ.
    """
    x, q = np.nan_to_num(np.asarray(features, dtype=np.float64)), np.asarray(questions)
    if x.ndim != 2 or q.shape != (len(x),):
        raise BadInput(f"features {x.shape} and questions {q.shape}: they must be (n, k) and (n,)")
    found = np.zeros(len(x))
    for question in np.unique(q):
        mine = np.flatnonzero(q == question)
        if len(mine) > 1:
            spread = x[mine].std(0)
            varies = spread > 1e-4 * np.abs(x[mine]).max(0)
            z = x[mine][:, varies] / spread[varies]
            gaps = np.linalg.norm(z[:, None] - z[None], axis=-1)
            others = gaps[~np.eye(len(mine), dtype=bool)].reshape(len(mine), -1)
            found[mine] = -np.median(others, axis=1)
    return found.round(3) + 0.0


def going_on(scores: ArrayLike, questions: ArrayLike, tau: float | None = None) -> NDArray[np.bool_]:
    """Which samples go on: those with a score of at least `tau`; of a question without any, the best one.

    Without `tau` the best one of each question, the earlier of equals. NaN is never accepted and never best, unless a
    question has nothing else: then its first sample goes on.

    Args: scores, questions: (n,), samples of a question in their order.
    Raises: BadInput: lengths differ.
    """
    s, q = np.asarray(scores, dtype=np.float64), np.asarray(questions)
    if s.ndim != 1 or s.shape != q.shape:
        raise BadInput(f"scores {s.shape} for {q.shape} samples: one each")
    kept = np.zeros(len(s), dtype=bool) if tau is None else s >= tau
    for question in np.unique(q):
        mine = np.flatnonzero(q == question)
        if not kept[mine].any():
            kept[mine[np.where(np.isnan(s[mine]), -np.inf, s[mine]).argmax()]] = True
    return kept


def keep_best(
    score: Callable[[Rollouts], ArrayLike],
    after: int,
    *,
    tau: float | None = None,
    record: Any = "resid_post[*]",
    name: str = "",
) -> Keep:
    """The question for `lm.generate(keep=...)` and `ll.sweep(keep=...)`: after so many tokens, who goes on?

    Args:
        score: from the `Rollouts` so far (with the states of all their tokens in `readings["after"]`) to a score each.
        after: tokens.
        tau: as for `going_on`.
        record: which states to read for it, as for `lm.generate`; nothing is read once it has been asked.
        name: of the question, for a resumed sweep: put into it whatever the score depends on, such as
            `scorer.fingerprint`.
    Raises: BadInput: `after` is no number of tokens; while writing, not one score a sample.
    """

    def ask(runs: Rollouts) -> Sequence[bool]:
        found = np.asarray(score(runs), dtype=np.float64)
        if found.shape != (len(runs),):
            raise BadInput(f"score= gave {found.shape} scores for {len(runs)} samples: one each")
        return going_on(found, [run.prompt_index for run in runs], tau).tolist()

    return Keep(ask, after, after, record, name)


def early_stop(
    scores: ArrayLike,
    correct: ArrayLike,
    questions: ArrayLike,
    *,
    tokens: ArrayLike,
    read: ArrayLike,
    answers: ArrayLike | None = None,
    tau: float | None = None,
    vote: Vote = "plurality",
    n_controls: int = 20,
    n_bootstrap: int = 500,
    seed: int = 42,
    level: float = 0.95,
) -> Selection:
    """What stopping would have given on samples that were written to their end.

    Args:
        scores: (n,) of the starts; fitted on OTHER questions.
        correct, questions, answers, vote: as for `selection.select`; samples of a question in their order.
        tokens: (n,) of the whole sample. read: (n,) that were written when it was asked, at most `tokens`.
        tau: as for `going_on`; several samples that go on vote.
        n_controls: shuffles of the scores, of either kind. n_bootstrap, seed, level: of intervals over questions.

    Returns: Selection; `about["equal scores"]`: how often two samples of a question that are both right, or both wrong,
        have the same score.
    Raises: as `selection.select`.
    """
    _check_read(read, tokens, correct)
    table, ids = sample_table(scores, correct, questions, tokens, answers, vote)
    begun = sample_table(read, correct, questions, tokens, answers, vote)[0].score
    said = None
    if answers is not None:
        order = np.argsort(np.unique(np.asarray(questions), return_inverse=True)[1].ravel(), kind="stable")
        said = np.asarray(answers, dtype=object)[order].reshape(table.right.shape)
    name = _BEST if tau is None else _ACCEPTED
    rng, moved = np.random.default_rng(seed), {"scores shuffled": [], "equal scores shuffled together": []}
    for _ in range(n_controls):
        apart = rng.permutation(table.score.ravel()).reshape(table.score.shape)
        for score, drawn in zip((apart, together(table.score, rng)), moved.values(), strict=True):
            drawn.append(_stopped(table._replace(score=score), begun, said, tau))
    made = {name: _stopped(table, begun, said, tau)}
    made |= {f"the same, {how}": choice for how, drawn in moved.items() if (choice := mean_choice(drawn))}
    about = {"tau": tau, "n_controls": n_controls, "seed": seed, "equal scores": alike(table)}
    return _selection(made, table, ids, vote, about, n_bootstrap, seed, level)


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
    from sklearn.model_selection import GroupKFold

    x, y, q = np.nan_to_num(np.asarray(features, float)), np.asarray(correct), np.asarray(questions)
    seen = np.asarray(read, float)
    if x.ndim != 2 or len(x) != len(y) or seen.shape != (len(y),) or (seen > np.asarray(tokens, float)).any():
        raise BadInput(f"features {x.shape}, read {seen.shape} for {len(y)} samples: (n, k) and (n,), read <= tokens")
    table, ids = sample_table(np.zeros(len(y)), y, q, tokens, answers, vote)
    if len(ids) < max(4, n_folds) or table.right.shape[1] < 2:
        raise TooFewExamples(f"{len(ids)} questions with {table.right.shape[1]} samples: too few for {n_folds} folds")
    rng = np.random.default_rng(seed)
    likes = {"finish the best start": np.full(len(y), np.nan), "the same, labels shuffled": np.full(len(y), np.nan)}
    for train, test in GroupKFold(n_folds).split(x, y, q):
        for name, scores in likes.items():
            labels = y[train].astype(bool) if "shuffled" not in name else rng.permutation(y[train].astype(bool))
            scores[test] = fit_starts(x[train], labels, n_trees=n_trees, seed=seed)(x[test])
    begun = sample_table(seen, y, q, tokens, answers, vote)[0].score
    made = {
        name: _stopped(sample_table(scores, y, q, tokens, answers, vote)[0], begun, None, None)
        for name, scores in likes.items()
    }
    return _selection(made, table, ids, vote, {"n_folds": n_folds, "seed": seed}, n_bootstrap, seed, level)


def _check_read(read: ArrayLike, tokens: ArrayLike, correct: ArrayLike) -> None:
    seen, n = np.asarray(read, dtype=np.float64), len(np.asarray(correct))
    if seen.shape != (n,) or (seen > np.asarray(tokens, dtype=np.float64)).any():
        raise BadInput(f"read {seen.shape} for {n} samples: one number of tokens each, at most `tokens`")


def _stopped(table: SampleTable, begun: NDArray, said: NDArray | None, tau: float | None) -> Choice:
    """Per question the answer of what goes on, and what has been written of all samples."""
    n, k = table.right.shape
    kept = going_on(table.score.ravel(), np.repeat(np.arange(n), k), tau).reshape(n, k)
    written = np.where(kept, table.tokens, begun).sum(1)
    right = np.array([
        float(plurality(said[i, kept[i]], table.right[i, kept[i]])) if said is not None and kept[i].sum() > 1
        else float(table.right[i, kept[i]].mean() > 0.5)
        for i in range(n)
    ])  # fmt: skip
    return Choice(right, written, np.full(n, float(k)))


def _selection(
    made: dict[str, Choice], table: SampleTable, ids: NDArray, vote: Vote, about: dict[str, Any], n: int, seed: int,
    level: float,
) -> Selection:  # fmt: skip
    """The choices beside those that need no signal."""
    made = made | {name: policy(table) for name, policy in SIMPLE.items()}
    numbers = PolicyNumbers(np.arange(len(ids)), float(table.tokens.sum(1).mean()), n, seed, level)
    reference, everything = made["majority vote"].right, table.tokens.sum(1)
    policies = tuple(numbers.policy(name, c, reference, everything, NOTES.get(name, "")) for name, c in made.items())
    return Selection(policies, (), len(ids), table.right.shape[1], vote, about)
