"""Choosing among samples: by hand, with planted signals, and with none."""

import math

import numpy as np
import pytest

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.early_stopping import early_path
from latentlens.methods.selection import select, threshold

QUICK = {"n_bootstrap": 60}


def samples(n=120, k=5, strength=3.0, seed=0, rate=0.4):
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.normal(size=n), k)
    right = rng.random(n * k) < 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + hard)))
    answers = np.where(right, 0, rng.integers(1, 4, n * k))
    return {
        "score": strength * right + rng.normal(size=n * k),
        "correct": right,
        "questions": np.repeat(np.arange(n), k),
        "tokens": rng.integers(50, 150, n * k),
        "answers": answers,
    }


def test_a_good_signal_gains_accuracy_and_saves_tokens():
    found = select(**samples(), **QUICK)
    signal, control = found["first accepted, else vote"], found["the same, scores shuffled"]
    assert signal.gain.low > 0
    assert signal.saved.low > 0.2
    assert signal.accuracy.low > control.accuracy.high
    assert signal.accuracy.value <= found["best possible"].accuracy.value
    assert 1 <= signal.samples < 5


def test_a_signal_of_noise_does_as_its_control_does():
    found = [select(**samples(strength=0, seed=s), **QUICK) for s in range(4)]
    gap = [f["first accepted, else vote"].accuracy.value - f["the same, scores shuffled"].accuracy.value for f in found]
    assert abs(np.mean(gap)) < 0.06


def test_policies_by_hand():
    """Three questions are too few to split; count the simple policies over all tests of a tiny set."""
    found = select(
        score=np.zeros(8),
        correct=[1, 0, 0, 1, 1, 1, 0, 0],
        questions=[0, 0, 1, 1, 2, 2, 3, 3],
        tokens=[10, 20, 30, 40, 50, 60, 70, 80],
        answers=["x", "y", "x", "y", "z", "z", None, "q"],
        n_splits=40, calibration=0.25, n_controls=0, n_bootstrap=30, seed=1,
    )  # fmt: skip
    # over many splits every question is tested about equally often
    assert found["first"].accuracy.value == pytest.approx(0.5, abs=0.08)
    assert found["random"].accuracy.value == pytest.approx(0.5, abs=0.08)
    assert found["more than half right"].accuracy.value == pytest.approx(0.25, abs=0.08)
    assert found["majority vote"].accuracy.value == pytest.approx(0.5, abs=0.08)  # a tie goes to the earlier answer
    assert found["best possible"].accuracy.value == pytest.approx(0.75, abs=0.08)
    assert found["shortest"].tokens.value == pytest.approx(80, rel=0.1)  # 2 x (10, 30, 50, 70)
    assert found["majority vote"].saved.value == 0
    assert "the same, scores shuffled" not in [p.name for p in found]


def test_the_two_majority_votes_differ():
    """Two of five agree on the right answer, the others each on their own: plurality is right, half is not."""
    n = 8
    data = {
        "score": np.zeros(5 * n), "correct": np.tile([1, 1, 0, 0, 0], n), "questions": np.repeat(np.arange(n), 5),
        "tokens": np.ones(5 * n), "answers": np.tile([7, 7, 1, 2, 3], n),
    }  # fmt: skip
    found = select(**data, **QUICK)
    assert found["majority vote"].accuracy.value == 1
    assert found["more than half right"].accuracy.value == 0
    assert select(**{**data, "answers": None}, vote="half", **QUICK)["majority vote"].accuracy.value == 0


def test_a_score_without_meaning_accepts_odd_samples_and_its_control_shows_it():
    """Right samples of a question are one text, wrong ones differ: what passes a threshold alone is wrong."""
    rng = np.random.default_rng(0)
    right = rng.random((400, 5)) < 0.8
    score = np.where(right, rng.normal(size=(400, 1)), rng.normal(size=(400, 5))).ravel()
    found = select(
        score, right.ravel(), np.repeat(np.arange(400), 5), tokens=np.full(2000, 50), n_controls=10, calibration=0.02,
        answers=np.where(right, 0, 1 + np.arange(5)).ravel(), n_bootstrap=200,
    )  # fmt: skip
    accepted, together = found["first accepted, else vote"], found["the same, equal scores shuffled together"]
    assert accepted.accuracy.covers(together.accuracy.value)
    assert accepted.accuracy.high < found["the same, scores shuffled"].accuracy.value
    assert together.note == "control"
    assert found.about["equal scores"]["right"] == 1


def test_no_answer_wins_no_vote():
    n = 8
    found = select(
        np.zeros(5 * n), np.tile([0, 0, 0, 1, 0], n), np.repeat(np.arange(n), 5), tokens=np.ones(5 * n),
        answers=[None, None, None, "7", "7"] * n, **QUICK,
    )  # fmt: skip
    assert found["majority vote"].accuracy.value == 1


def test_the_threshold_is_taken_from_wrong_samples():
    data = samples(n=60, strength=6)
    score, right = data["score"], data["correct"]
    tau = threshold(score, right, data["questions"], answers=data["answers"])
    wrong = score[~right]
    assert np.percentile(wrong, 20) <= tau <= np.percentile(wrong, 99)
    assert (score[right] >= tau).mean() > 0.9
    few = threshold(score[:20], np.arange(20) > 3, data["questions"][:20], answers=data["answers"][:20])
    assert few == np.median(score[:20])


def test_the_threshold_by_brute_force():
    data = samples(n=40, strength=1.0, seed=3)
    s, y, q, a = (data[k] for k in ("score", "correct", "questions", "answers"))
    taus = np.percentile(s[~y], np.arange(20, 100))
    accuracy = []
    for tau in taus:
        hits = 0
        for one in range(40):
            rows = np.flatnonzero(q == one)
            passed = [i for i in rows if s[i] >= tau]
            values = a[rows].tolist()
            vote = max(dict.fromkeys(values), key=values.count) == 0
            hits += y[passed[0]] if passed else vote
        accuracy.append(hits / 40)
    best = sorted(range(80), key=lambda i: (-accuracy[i], i))[:2]
    assert threshold(s, y, q, answers=a) == pytest.approx(np.mean(taus[best]))


def test_the_threshold_used_on_a_test_question_is_that_of_the_others():
    data = samples(n=60, strength=1.0, seed=5)
    found = select(**data, n_splits=1, n_controls=0, seed=9, **QUICK)
    order = np.random.default_rng(9).permutation(60)
    fit = np.isin(data["questions"], order[:18])
    tau = threshold(*(data[k][fit] for k in ("score", "correct", "questions")), answers=data["answers"][fit])
    assert found.thresholds == (tau,)
    hits = []
    for one in order[18:]:
        rows = np.flatnonzero(data["questions"] == one)
        passed = [i for i in rows if data["score"][i] >= tau]
        said = data["answers"][rows].tolist()
        hits.append(data["correct"][passed[0]] if passed else max(dict.fromkeys(said), key=said.count) == 0)
    assert found["first accepted, else vote"].accuracy.value == pytest.approx(np.mean(hits))


def test_the_number_of_controls_changes_no_split():
    one, two = (select(**samples(n=40), n_controls=k, **QUICK) for k in (0, 3))
    assert one.thresholds == two.thresholds
    assert one["first accepted, else vote"] == two["first accepted, else vote"]


def test_calibration_questions_are_not_tested():
    data = samples(n=100, strength=0.0)
    found = select(**data, n_splits=1, calibration=0.3, **QUICK)
    assert found["first"].accuracy.n == 70


def test_a_sample_without_a_score_is_never_accepted():
    data = samples(n=40)
    data["score"] = np.where(np.arange(200) % 5 == 0, math.nan, data["score"])
    found = select(**data, **QUICK)
    assert found["first accepted, else vote"].samples > 1.99
    with pytest.raises(TooFewExamples):
        select(**{**data, "score": np.full(200, math.nan)}, **QUICK)


def test_the_same_seed_gives_the_same_table():
    assert repr(select(**samples(), **QUICK)) == repr(select(**samples(), **QUICK))
    frame = select(**samples(), **QUICK).to_frame()
    assert {"accuracy", "gain_low", "saved_high", "samples", "note"} <= set(frame.columns)


def test_an_early_path_is_chosen_by_its_start():
    data = samples(strength=3)
    features = np.stack([data.pop("score"), np.zeros(600)], 1)
    found = early_path(features, read=np.full(600, 20), n_trees=20, **data, **QUICK)
    chosen, control = found["finish the best start"], found["the same, labels shuffled"]
    assert chosen.accuracy.low > control.accuracy.high
    # five starts of 20 tokens and the rest of one of about 100
    assert chosen.tokens.value == pytest.approx(5 * 20 + 80, rel=0.05)
    assert chosen.saved.value == pytest.approx(1 - 180 / 500, abs=0.03)


def test_wrong_input_is_refused():
    data = samples(n=10)
    for change in (
        {"answers": None}, {"vote": "most"}, {"tokens": [1]}, {"questions": np.arange(50) // 7}, {"calibration": 1.0},
        {"correct": np.full(50, 2)},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            select(**{**data, **change})
    with pytest.raises(TooFewExamples):
        select(**samples(n=3))
    score = data.pop("score")
    with pytest.raises(BadInput):
        early_path(score[:, None], read=np.full(50, 1000), **data)
