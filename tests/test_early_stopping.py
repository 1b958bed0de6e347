"""Stopping samples early: by hand, planted signals, and stored samples against samples stopped while written."""

import numpy as np
import pytest
import torch
from families import build

import latentlens as ll
from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods import early_stopping, trajectory

QUICK = {"n_bootstrap": 60, "n_controls": 5}


def samples(n=120, k=5, strength=3.0, seed=0):
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.normal(size=n), k)
    right = rng.random(n * k) < 1 / (1 + np.exp(-hard))
    return {
        "scores": strength * right + rng.normal(size=n * k),
        "correct": right,
        "questions": np.repeat(np.arange(n), k),
        "tokens": rng.integers(50, 150, n * k),
        "answers": np.where(right, 0, rng.integers(1, 4, n * k)),
        "read": np.full(n * k, 20),
    }


def test_who_goes_on_by_hand():
    scores, questions = [0.1, 0.9, 0.9, np.nan, 0.2, np.nan, np.nan], ["a", "a", "a", "b", "b", "c", "c"]
    best = early_stopping.going_on(scores, questions)
    assert best.tolist() == [False, True, False, False, True, True, False]
    above = early_stopping.going_on(scores, questions, tau=0.9)
    assert above.tolist() == [False, True, True, False, True, True, False]  # b and c have none above: their best
    with pytest.raises(BadInput, match="one each"):
        early_stopping.going_on([0.1], ["a", "b"])


def test_stopping_by_hand():
    found = early_stopping.early_stop(
        [0.9, 0.1, 0.2, 0.8], [True, False, False, False], [0, 0, 1, 1],
        tokens=[100, 50, 60, 40], read=[10, 10, 10, 10], answers=["x", "y", "z", "w"], **QUICK,
    )  # fmt: skip
    stopped = found["go on with the best start"]
    assert stopped.accuracy.value == 0.5
    assert stopped.tokens.value == (110 + 50) / 2  # 100 + 10 and 10 + 40
    assert stopped.saved.value == pytest.approx(1 - 160 / 250)


def test_several_that_go_on_vote_and_one_decides_alone():
    data = {
        "scores": [0.9, 0.9, 0.9, 0.1], "correct": [True, True, False, False], "questions": [0, 0, 0, 0],
        "answers": ["x", "x", "y", "y"], "tokens": [40, 40, 40, 40], "read": [10] * 4,
    }  # fmt: skip
    data = {name: value * 2 if name != "questions" else [0] * 4 + [1] * 4 for name, value in data.items()}
    data["scores"][4:] = [0.1, 0.1, 0.2, 0.1]
    found = early_stopping.early_stop(**data, tau=0.5, **QUICK)["go on from the threshold, then vote"]
    assert found.accuracy.value == 0.5  # question 0: x by two to one; question 1: its best start says y
    assert found.tokens.value == (40 * 3 + 10 + 40 + 30) / 2


def test_a_planted_signal_gains_and_saves_and_noise_does_as_its_control_does():
    found = early_stopping.early_stop(**samples(), **QUICK)
    stopped, control = found["go on with the best start"], found["the same, scores shuffled"]
    assert stopped.accuracy.low > control.accuracy.high
    assert stopped.saved.low > 0.5
    noise = [early_stopping.early_stop(**samples(strength=0, seed=s), **QUICK) for s in range(4)]
    gap = [f["go on with the best start"].accuracy.value - f["the same, scores shuffled"].accuracy.value for f in noise]
    assert abs(np.mean(gap)) < 0.06


def look_alikes(n=300, k=5, seed=0):
    """Right samples of a question are one text, every wrong one is a text of its own; the score knows texts only."""
    rng = np.random.default_rng(seed)
    right = rng.random((n, k)) < rng.uniform(0.2, 0.9, n)[:, None]
    text = np.where(right, rng.normal(size=(n, 1)), rng.normal(size=(n, k)))
    return {
        "scores": text.ravel(), "correct": right.ravel(), "questions": np.repeat(np.arange(n), k),
        "tokens": np.full(n * k, 60), "read": np.full(n * k, 20),
        "answers": np.where(right, 0, 1 + np.arange(k)).ravel(),
    }  # fmt: skip


def test_a_score_without_meaning_picks_odd_samples_and_its_control_shows_it():
    data = look_alikes()
    found = early_stopping.early_stop(**data, n_bootstrap=200, n_controls=10)
    best, together = found["go on with the best start"], found["the same, equal scores shuffled together"]
    assert best.accuracy.high < found["random"].accuracy.value - 0.05  # worse than chance, with nothing known
    assert best.accuracy.covers(together.accuracy.value)
    assert found["the same, scores shuffled"].accuracy.value == pytest.approx(found["random"].accuracy.value, abs=0.04)
    assert found.about["equal scores"] == {"right": 1.0, "wrong": 0.0}
    chosen = early_stopping.going_on(
        early_stopping.typical(data["scores"][:, None], data["questions"]), data["questions"]
    )
    assert data["correct"][chosen].mean() > found["random"].accuracy.high


def test_equal_scores_of_a_question_stay_equal_when_they_are_shuffled_together():
    from latentlens.values.sample_choices import together

    score = np.array([[1.0, 1.0 + 1e-9, 1.0, 1.0, 5.0], [7.0, 2.0, np.nan, 2.0, np.nan]])
    rng, odd = np.random.default_rng(0), []
    for _ in range(600):
        moved = together(score, rng)
        assert len(set(moved[0, :4].tolist())) == 1 or np.isnan(moved[0, :4]).all()
        assert moved[1, 1] == moved[1, 3] or np.isnan(moved[1, [1, 3]]).all()
        if np.isfinite(moved[0]).all():
            odd.append(moved[0, 4] > moved[0, 0])
    assert np.mean(odd) == pytest.approx(0.5, abs=0.07)  # one text of two: not one sample of five


def test_the_most_typical_start_by_hand():
    x = [[0.0, 7.0], [0.0, 7.0], [4.0, 7.0], [9.0, 1.0], [9.0, np.nan]]
    found = early_stopping.typical(x, ["a", "a", "a", "b", "c"])
    spread = np.std([0, 0, 4])
    # the third is 4 away from both; the first two are 0 and 4 away; a question with one sample has nothing to compare
    assert found == pytest.approx([-2 / spread, -2 / spread, -4 / spread, 0, 0], abs=1e-3)
    noisy = np.array(x[:3]) * (1 + 1e-7 * np.random.default_rng(0).normal(size=(3, 2)))
    assert early_stopping.typical(noisy, ["a"] * 3).tolist() == found[:3].tolist()
    with pytest.raises(BadInput, match="must be"):
        early_stopping.typical(x, ["a"])


def test_a_scorer_learns_from_other_questions_and_is_known_by_what_it_learned():
    rng = np.random.default_rng(0)
    right = rng.random(300) < 0.5
    features = np.stack([right + rng.normal(0, 0.5, 300), rng.normal(size=300)], 1)
    scorer = early_stopping.fit_starts(features[:200], right[:200], n_trees=30)
    assert (scorer(features[200:])[right[200:]].mean() - scorer(features[200:])[~right[200:]].mean()) > 0.3
    assert scorer.fingerprint == early_stopping.fit_starts(features[:200], right[:200], n_trees=30).fingerprint
    assert scorer.fingerprint != early_stopping.fit_starts(features[:199], right[:199], n_trees=30).fingerprint
    missing = features[200:].copy()
    missing[0] = np.nan
    assert np.isfinite(scorer(missing)).all()
    assert early_stopping.fit_starts(features[:9], np.zeros(9), n_trees=5)(features[:3]).tolist() == [0, 0, 0]
    with pytest.raises(BadInput, match="must be"):
        early_stopping.fit_starts(features, right[:5])
    with pytest.raises(TooFewExamples, match="no sample"):
        early_stopping.fit_starts(np.zeros((0, 2)), [])


def test_wrong_input_is_refused():
    data = samples(n=6)
    with pytest.raises(BadInput, match="at most `tokens`"):
        early_stopping.early_stop(**{**data, "read": np.full(30, 1000)}, **QUICK)
    with pytest.raises(BadInput, match="needs answers"):
        early_stopping.early_stop(**{**data, "answers": None}, **QUICK)
    with pytest.raises(BadInput, match="at least 1"):
        early_stopping.keep_best(lambda runs: [], 0)
    lm = ll.load(build("Llama"), cache=False)
    keep = early_stopping.keep_best(lambda runs: [0.5], 2, record=None)
    with pytest.raises(BadInput, match=r"scores for 4 samples"):
        lm.generate([[5, 6], [7, 8]], 6, 2, 1.0, stop_ids=(), keep=keep)


AFTER, SIZE, LONG = 12, 4, 30


def start(acts, lengths):
    """Net, cumulative and aligned change of the first segments."""
    found = trajectory.signals(trajectory.pooled(trajectory.paths(acts), SIZE, lengths), net="code")
    return np.stack([found[name] for name in ("net", "cumulative", "aligned")], 1)


@pytest.mark.parametrize("tau", [None, 0.5])
def test_samples_stopped_while_written_end_as_stored_samples_that_are_cut(tau):
    lm = ll.load(build("Llama"), cache=False)
    prompts = [[5, 6, 7, 8], [30, 31, 32], [20, 21, 22, 23, 24], [50, 51, 52]]
    how = {"samples": 4, "temperature": 1.0, "seed": 1, "stop_ids": range(0, 120, 40)}
    full = lm.generate(prompts, LONG, **how)
    cut = [row.continued(run.generated[:AFTER]) for row, run in zip((r.row for r in full), full, strict=True)]
    acts = lm.activations(cut, "resid_post[*]", where="response")
    right = np.array([run.generated[-1] % 2 == 0 for run in full])
    features = start(acts, [min(len(run.generated), AFTER) for run in full])
    scorer = early_stopping.fit_starts(features, right, n_trees=20)
    offline = early_stopping.going_on(scorer(features), [run.prompt_index for run in full], tau)

    def score(runs):
        return scorer(start(runs.readings["after"], [len(run.generated) for run in runs]))

    online = lm.generate(prompts, LONG, **how, keep=early_stopping.keep_best(score, AFTER, tau=tau))
    assert 4 <= offline.sum() < len(full)
    for one, two, goes_on in zip(full, online, offline, strict=True):
        assert two.generated == (one.generated if goes_on else one.generated[:AFTER])
    written = sum(len(run.generated) for run in online)
    expected = early_stopping.early_stop(
        scorer(features), right, [run.prompt_index for run in full], answers=[str(run.generated[-1]) for run in full],
        tokens=[len(run.generated) for run in full], read=[min(len(run.generated), AFTER) for run in full], tau=tau,
        **QUICK,
    )  # fmt: skip
    assert written == pytest.approx(4 * next(iter(expected)).tokens.value)
    assert torch.is_grad_enabled()
