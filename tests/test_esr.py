"""Metrics of steering resistance against numbers worked out by hand, and planted effects."""

import math

import numpy as np
import pytest

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods import esr
from latentlens.resistance import published
from latentlens.values.attempts import Attempt
from latentlens.values.esr import Answers, Condition, Trial


def answers(scores, name="x", latents=None, prompts=None, texts=None):
    n = len(scores)
    trials = tuple(Trial((latents or range(n))[i], (prompts or range(n))[i], i, 1.0) for i in range(n))
    parts = tuple(None if s is None else tuple(Attempt(0, 1, "t", v) for v in s) for s in scores)
    return Answers(name, trials, ("p",) * n, tuple(texts or ["t"] * n), ((1,),) * n, parts)


def test_the_metrics_of_five_trials_are_those_worked_out_by_hand():
    found = esr.rates(answers([[30], [0, 75], [50, 20], [], [10, None, 60]]))
    assert (found.n, found.dropped, found.n_multi) == (4, 1, 3)
    assert found.multi.value == 0.75
    assert found.resisted.value == 0.5
    assert found.improved.value == pytest.approx(2 / 3)
    assert found.gain.value == pytest.approx(31.667, abs=1e-3)
    assert found.first.value == 22.5
    wald = found.intervals["resisted"]["wald"]
    assert (wald.high - wald.low) / (2 * 1.959964) == pytest.approx(0.25)
    lines = {line["metric"]: line for line in found.lines()}
    assert (lines["multi"]["value"], lines["multi"]["n"]) == (0.75, 4)
    assert lines["resisted"]["wald"] is wald
    assert lines["first"]["wilson"] is None
    assert found.intervals["first"]["wald"].high - 22.5 == pytest.approx(1.959964 * np.std([30, 0, 50, 10], ddof=1) / 2)


def test_rates_are_nan_where_undefined_and_have_a_width_at_zero():
    found = esr.rates(answers([[30], [40], [50]]))
    assert math.isnan(found.improved.value)
    assert math.isnan(found.gain.value)
    assert found.improved.n == 0
    assert (found.multi.value, found.multi.low) == (0.0, 0.0)
    assert found.multi.high == pytest.approx(0.5615, abs=1e-4)  # Wilson, 0 of 3
    assert found.intervals["multi"]["wald"].high == 0.0


def test_a_trial_without_a_score_is_dropped_and_a_condition_without_any_is_an_error():
    assert esr.rates(answers([[30], None, [None], []])).dropped == 3
    with pytest.raises(TooFewExamples, match="none of 2"):
        esr.rates(answers([[], None]))


def test_degraded_answers_are_counted():
    assert esr.rates(answers([[1], [2]], texts=["reef reef reef reef reef", "fine"])).degraded.value == 0.5


def test_repeated_latents_and_prompts_widen_the_interval():
    """40 trials of 4 latents that always, or never, start over tell as much as 4 trials"""
    scores = [[10, 20] if i % 4 < 2 else [10] for i in range(40)]
    alone, repeated = esr.rates(answers(scores)), esr.rates(answers(scores, latents=[i % 4 for i in range(40)]))
    wide, narrow = (r.multi.high - r.multi.low for r in (repeated, alone))
    assert wide > 2 * narrow
    assert repeated.multi.low == repeated.intervals["multi"]["latent"].low


def test_paired_changes_count_discordant_pairs_and_share_trials():
    plain = answers([[1, 2]] * 8 + [[1]] * 4, "plain")
    ablated = answers([[1]] * 7 + [[1, 2]] + [[1]] * 3 + [[1, 2]], "ablated")
    found = esr.paired(plain, ablated)
    assert (found.before, found.after) == pytest.approx((8 / 12, 2 / 12))
    assert (found.gained, found.lost) == (1, 7)
    assert found.p == pytest.approx(18 / 256)  # 2 (C(8,0) + C(8,1)) / 2^8
    assert found.change.value == pytest.approx(-0.5)
    assert found.change.high < 0
    sets = esr.paired(plain, [plain, ablated, ablated], name="controls")
    assert sets.change.value == pytest.approx(-1 / 3)
    assert sets.second == "controls"
    assert math.isnan(sets.p)
    assert sets.gained is None
    assert sets.p_flip == pytest.approx(found.p_flip)  # the same signs: two thirds of each difference
    first = esr.paired(plain, ablated, "first")
    assert math.isnan(first.p)
    assert first.change.value == 0.0
    assert first.p_flip == 1.0


def test_a_planted_reduction_is_found_within_its_interval_and_absent_between_replays():
    draw = np.random.default_rng(0)
    latents, prompts = [i // 8 for i in range(480)], [i % 20 for i in range(480)]
    uniform = draw.random(480)  # common randomness: what a trial would do is fixed

    def condition(rate, name):
        return answers([[10, 60] if u < rate else [10] for u in uniform], name, latents, prompts)

    drop = esr.paired(condition(0.4, "steered"), condition(0.15, "ablated"))
    assert drop.change.covers(-0.25)
    assert drop.change.high < -0.15
    assert drop.p < 1e-6
    same = esr.paired(condition(0.4, "steered"), condition(0.4, "replayed"))
    assert (same.change.value, same.p) == (0.0, 1.0)


def test_pairs_of_other_trials_are_refused():
    with pytest.raises(BadInput, match="same trials"):
        esr.paired(answers([[1], [2]]), answers([[1], [2]], latents=[5, 6]))
    with pytest.raises(TooFewExamples, match="both"):
        esr.paired(answers([[1], []]), answers([[], [2]]))
    with pytest.raises(BadInput, match="outcome"):
        answers([[1]]).outcome("last")


def test_boost_levels_surround_the_mean_threshold():
    wanted = [0.2918, 2.2084, 4.1251, 6.0417, 7.9583, 9.8749, 11.7916, 13.7082]
    assert esr.boost_levels([4, 6, 8, 10]).round(4).tolist() == wanted
    assert esr.boost_levels([1, 9], width=3)[0] == 0.0
    with pytest.raises(BadInput, match="two"):
        esr.boost_levels([4])


@pytest.mark.parametrize(
    ("p1", "n1", "p2", "n2", "z", "p"),
    [
        (0.074, 4877, 0.055, 4875, 3.82, 1.3e-4),
        (0.038, 4877, 0.028, 4875, 2.76, 0.0057),
        (0.079, 14450, 0.074, 4877, 1.13, 0.26),
        (0.079, 14450, 0.055, 4875, 5.57, 2.5e-8),
        (0.042, 14450, 0.028, 4875, 4.39, 1.1e-5),
    ],
)
def test_the_published_differences_have_the_published_z(p1, n1, p2, n2, z, p):
    found = esr.two_proportions(p1 * n1, n1, p2 * n2, n2)
    assert found[0] == pytest.approx(z if p1 > p2 else -z, abs=0.006)
    assert found[1] == pytest.approx(p, rel=0.04)


def test_the_published_table_stands_beside_ones_own():
    own = [esr.rates(answers([[10, 60], [10]], name)) for name in ("steered", "unsteered", "matched 1 ablated")]
    own.append(esr.rates(answers([[10, 60], [10]], "self_monitor")))
    frame = published.beside({"persistent": own, "transient": []})
    assert frame["multi"].tolist() == [0.074, 0.055, 0.079, 0.317, 0.0]
    filled = [e is not None for e in frame["persistent: multi"]]
    assert filled == [True, False, True, True, True]
    assert not any(e is not None for e in frame["transient: multi"])
    tests = published.tests()
    assert tests[tests.rate == "multi-attempt"]["z"].round(1).tolist() == [-3.8, 1.1, -5.6]


def test_texts_stand_side_by_side_with_their_scores():
    plain = answers([[10], [10, 60]], "steered", texts=["A.", "B. Wait, no. C."])
    off = answers([[12], [10]], "ablated", texts=["D.", "E."])
    frame = esr.side_by_side(plain, off, k=1)
    assert frame["steered"].tolist() == ["B. Wait, no. C."]
    assert frame["steered, scores"].tolist() == ["10, 60"]
    assert frame["ablated"].tolist() == ["E."]
    with pytest.raises(BadInput, match="same trials"):
        esr.side_by_side(plain, answers([[1]]))


def test_agreement_of_judges():
    scores = [[10, 60], [20], [30, 5], [40, 90], [50], [60, 70]] * 5
    one = answers(scores, latents=[i % 10 for i in range(30)])
    other = one.rejudged([tuple(Attempt(0, 1, "t", s / 2) for s in row) for row in scores])
    blind = one.rejudged([(Attempt(0, 1, "t", 50.0),)] * 30)
    frame = esr.agreement({"a": one, "b": other, "c": blind})
    same, poor, _ = frame.to_dict("records")
    assert same["multi, kappa"].value == pytest.approx(1.0)
    assert same["first, Spearman"].value == pytest.approx(1.0)
    assert same["direction, same"].value == 1.0
    assert same["both say several"] == 20
    assert poor["multi, same"].value == pytest.approx(1 / 3)
    assert poor["first, Spearman"] is None
    assert poor["direction, same"] is None
    with pytest.raises(BadInput, match="two or more"):
        esr.agreement({"a": one})


def test_a_condition_never_steers_below_zero_and_names_its_schedule():
    trial = Trial(3, 0, 0, 2.0)
    assert Condition("a").strength_of(trial) == 2.0
    assert Condition("a", shift=-5).strength_of(trial) == 0.0
    assert Condition("a", strength=1.5).strength_of(trial) == 1.5
    assert Condition("a", steer=False).strength_of(trial) == 0.0
    with pytest.raises(BadInput, match="transient"):
        Condition("a", schedule="forever")
    with pytest.raises(BadInput, match="as many"):
        Answers("x", (trial,), (), (), (), ())
