import doctest
import math

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods import calibrate
from latentlens.methods.calibrate import bisect_score, bisect_score_batch, kl_budget, kl_budget_batch
from latentlens.methods.dose import dose_response

LOG_HALF = math.log(0.5)


def two_logits(strength: float) -> torch.Tensor:
    """KL of softmax(C, -C) to softmax(0, 0), the worked example of the KL budget."""
    log_p = torch.log_softmax(torch.tensor([strength, -strength], dtype=torch.float64), 0)
    return (log_p.exp() * (log_p - LOG_HALF)).sum()[None]


def line_score(strength: float) -> float:
    return max(0.0, 1 - strength / 20)


def step_score(strength: float) -> float:
    return float(strength < 14)


def test_the_docstrings_run():
    assert doctest.testmod(calibrate).failed == 0


# -- KL budget ------------------------------------------------------------------------------------


def test_kl_of_a_tenth_is_reached_at_the_printed_strength():
    found = kl_budget(two_logits, target=0.1, tol=1e-5)
    assert found.coeff == pytest.approx(0.4717, abs=5e-5)
    assert found.converged
    assert found.bracketed
    assert float(two_logits(0.2) / two_logits(0.1)) == pytest.approx(3.94, abs=5e-3)


def test_a_square_law_is_solved_in_three_questions():
    found = kl_budget(lambda c: np.full(20, 0.37 * c * c))
    assert found.coeff == pytest.approx(math.sqrt(1 / 0.37), rel=1e-9)
    assert found.iterations == 3
    assert found.n_tokens == 20


def test_the_quantile_and_not_the_mean_is_solved_for():
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=20)
    found = kl_budget(lambda c: weights * c * c, tol=1e-3)
    assert np.quantile(weights, 0.95) * found.coeff**2 == pytest.approx(1, rel=1e-3)
    half = kl_budget(lambda c: weights * c * c, tol=1e-3, quantile=0.5)
    assert half.coeff > found.coeff


@pytest.mark.parametrize("ceiling", [1.1, 2.0, 30.0])
@pytest.mark.parametrize("scale", [0.2, 1.0, 40.0])
def test_saturating_curves_are_solved_within_twelve_questions(ceiling, scale):
    def saturating(c):
        return [ceiling * -math.expm1(-((scale * c) ** 2) / ceiling)]

    found = kl_budget(saturating)
    assert found.converged
    assert abs(found.achieved - 1) <= 0.05
    assert found.iterations <= 12


@pytest.mark.parametrize(
    ("kl", "end", "coeff"), [(lambda c: [c * 0.01], "high", 16.0), (lambda c: [5 + c], "low", 0.01)]
)
def test_a_budget_that_is_not_bracketed_is_reported_with_its_end(kl, end, coeff):
    found = kl_budget(kl)
    assert not found.bracketed
    assert (found.end, found.coeff) == (end, coeff)
    assert not found.converged
    assert "NOT BRACKETED" in repr(found)


def test_an_edit_without_any_effect_lies_above_the_largest_strength():
    found = kl_budget(lambda c: [0.0, 0.0])
    assert (found.end, found.coeff, found.achieved) == ("high", 16.0, 0.0)


def test_a_curve_that_jumps_past_the_target_gives_the_nearest_strength_and_says_so():
    found = kl_budget(lambda c: [c * c if c < 0.5 else 9.0])
    assert found.bracketed
    assert not found.converged
    assert found.achieved < 1
    assert found.coeff == pytest.approx(0.5, abs=0.03)
    assert "NOT CONVERGED" in repr(found)


def test_a_jump_is_given_up_when_its_sides_are_close():
    found = kl_budget(lambda c: [c * c if c < 0.5 else 9.0], max_iterations=100)
    assert found.bracketed
    assert found.iterations < 40
    assert found.coeff == pytest.approx(0.5, rel=0.0025)


@pytest.mark.parametrize(
    "kl",
    [
        lambda c: [1.06 * -math.expm1(-((0.5 * c) ** 4) / 1.06)],  # flat just above the target: 39 without
        lambda c: [math.expm1(min((0.5 * c) ** 3, 600))],  # explodes: 20 without
        lambda c: [math.expm1(min((20 * c) ** 2, 600))],  # 34 without
    ],
)
def test_bent_curves_need_the_end_that_stays_to_count_half(kl):
    found = kl_budget(kl)
    assert found.converged
    assert found.iterations <= 12


def test_the_first_question_may_be_the_answer():
    found = kl_budget(lambda c: [6.3 * c * c])
    assert (found.iterations, found.bracketed, found.end) == (1, True, "")


def test_kl_just_below_zero_is_rounding():
    found = kl_budget(lambda c: [-1e-9] * 3)
    assert (found.achieved, found.end) == (0.0, "high")


def test_overflow_above_the_answer_is_bisected_and_never_shown_as_nan():
    found = kl_budget(lambda c: [c * c / 100] * 17 + [math.nan, math.inf, -0.0] * (c > 11), quantile=0.99)
    assert found.coeff == pytest.approx(10, rel=0.03)
    values = [value for _, value, _ in found.trace]
    assert math.inf in values
    assert not any(math.isnan(value) for value in values)


def test_overflow_counts_as_more_than_any_budget():
    found = kl_budget(lambda c: [c * c] * 3 + [math.nan if c > 2 else 0.1, math.inf if c > 3 else 0.1])
    assert found.coeff == pytest.approx(1, rel=0.05)


def test_problems_in_a_batch_are_solved_as_if_alone_and_asked_together():
    scales = [0.1, 0.5, 3.0, 1e-6]
    calls = []

    def many(coeffs):
        calls.append(list(coeffs))
        return [None if c is None else two_logits(s * c) for s, c in zip(scales, coeffs, strict=True)]

    together = kl_budget_batch(many, 4, target=0.3)
    alone = [kl_budget(lambda c, s=s: two_logits(s * c), target=0.3) for s in scales]
    assert together == alone
    assert len(calls) == max(found.iterations for found in alone)
    assert sum(c is not None for call in calls for c in call) == sum(found.iterations for found in alone)


def test_never_more_questions_than_allowed():
    for limit in (1, 2, 5):
        found = kl_budget(lambda c: [c * c if c < 0.5 else 9.0], max_iterations=limit)
        assert found.iterations <= limit
        assert len(found.to_frame()) == found.iterations


@pytest.mark.parametrize(
    "wrong",
    [{"low": 0.0}, {"low": 2.0, "high": 1.0}, {"target": -1.0}, {"tol": 0.0}, {"quantile": 0.0}, {"max_iterations": 0}],
)
def test_senseless_budgets_are_refused(wrong):
    with pytest.raises(BadInput):
        kl_budget(two_logits, **wrong)


def test_no_token_and_negative_kl_and_missing_answers_are_refused():
    with pytest.raises(TooFewExamples, match="end-of-text"):
        kl_budget(lambda c: [])
    with pytest.raises(BadInput, match="not negative"):
        kl_budget(lambda c: [-0.1])
    with pytest.raises(BadInput, match="1 answers to 2"):
        kl_budget_batch(lambda coeffs: [[1.0]], 2)


# -- probabilistic bisection ----------------------------------------------------------------------


def test_the_published_trace_of_a_falling_line():
    found = bisect_score(line_score)
    printed = [7.5108, 10.4510, 12.1612, 13.1513, 13.7014, 13.9914, 14.1414, 14.2214, 14.2614, 14.2714]
    assert [round(b, 4) for b, _ in found.trace] == printed
    assert found.trace[0][1] == pytest.approx(0.6245, abs=5e-5)
    assert round(found.coeff, 4) == 14.2914
    assert found.bracketed
    assert found.complete
    assert found.low < found.coeff < found.high


def test_the_published_trace_of_a_step():
    found = bisect_score(step_score)
    printed = [7.511, 10.701, 13.011, 14.891, 13.881, 14.411, 14.151, 14.021, 13.951, 13.991]
    assert [round(b, 3) for b, _ in found.trace] == printed
    assert round(found.coeff, 4) == 14.0114


def test_the_certainty_of_one_answer_as_printed():
    assert calibrate._right(0.6245, 0.3, 5, "published") == pytest.approx(0.9373, abs=5e-5)
    assert calibrate._right(0.65, 0.3, 5, "published") == pytest.approx(0.9501, abs=5e-5)


def test_the_published_update_converges_below_the_target_and_the_centred_one_to_it():
    published = bisect_score(line_score, rounds=200)
    assert published.effective_target == pytest.approx(0.2851, abs=5e-5)
    assert published.coeff == pytest.approx(14.297, abs=0.02)
    centred = bisect_score(line_score, rounds=200, update="centred")
    assert centred.effective_target == 0.3
    assert centred.coeff == pytest.approx(14.0, abs=0.02)


def test_latents_in_a_batch_are_solved_as_if_alone_and_asked_together():
    scores = [line_score, step_score, lambda b: 1.0, lambda b: 0.0]
    calls = []

    def many(coeffs):
        calls.append(list(coeffs))
        return [None if c is None else f(c) for f, c in zip(scores, coeffs, strict=True)]

    assert bisect_score_batch(many, 4) == [bisect_score(f) for f in scores]
    assert len(calls) == 10


def test_a_score_that_stays_on_one_side_is_reported_as_not_bracketed():
    above, below = bisect_score(lambda b: 0.9), bisect_score(lambda b: 0.0)
    assert (above.bracketed, above.end) == (False, "high")
    assert (below.bracketed, below.end) == (False, "low")
    assert "NOT BRACKETED" in repr(above)
    at_end = bisect_score(lambda b: 0.9, prior=(10, 10), bounds=(0, 11), rounds=60)
    assert (at_end.bracketed, at_end.end, at_end.coeff) == (False, "high", 11.0)


def test_no_attempts_are_asked_again_and_do_not_count_as_a_round():
    answers = iter([None, float("nan"), None] + [None if i % 2 else 0.5 for i in range(40)])
    found = bisect_score(lambda b: next(answers))
    assert found.complete
    assert found.resampled == 3 + 9
    assert len(found.trace) == 10


def test_a_question_that_is_never_answered_ends_the_search_and_not_the_batch():
    silent, line = bisect_score_batch(lambda coeffs: [None, None if coeffs[1] is None else line_score(coeffs[1])], 2)
    assert not silent.complete
    assert (silent.bracketed, silent.end, silent.resampled, silent.trace) == (False, "", 4, ())
    assert "no answers" in repr(silent)
    assert line == bisect_score(line_score)


def test_a_score_that_rises_and_falls_does_not_crash():
    found = bisect_score(lambda b: float(np.clip(math.sin(b), 0, 1)), bounds=(0.0, 50.0), prior=(10.0, 10.0), rounds=30)
    assert 0 <= found.coeff <= 50
    assert math.isfinite(found.low + found.high)


def test_even_certain_answers_can_be_revised():
    answers = iter([1.0] * 5 + [0.0] * 60)
    found = bisect_score(lambda b: next(answers), rounds=65, trials=10_000)
    assert found.coeff < found.trace[4][0]


def test_certain_answers_that_contradict_each_other_for_long_leave_a_belief():
    answers = iter([1.0, 0.0] * 60)
    found = bisect_score(lambda b: next(answers), rounds=120, trials=10_000)
    assert 0 < found.low <= found.coeff <= found.high < 100


def test_a_median_at_the_end_of_the_grid_is_not_bracketed_although_both_sides_were_seen():
    answers = iter([0.0] + [1.0] * 60)
    found = bisect_score(lambda b: next(answers), prior=(5, 5), bounds=(0, 11), rounds=61, trials=1)
    assert (found.coeff, found.bracketed, found.end) == (11.0, False, "high")


@pytest.mark.parametrize(
    "wrong",
    [{"bounds": (5, 5)}, {"prior": (1, 0)}, {"target": 1.0}, {"rounds": 0}, {"grid": 1}, {"update": "x"}, {"level": 1}],
)
def test_senseless_bisections_are_refused(wrong):
    with pytest.raises(BadInput):
        bisect_score(line_score, **wrong)
    with pytest.raises(BadInput, match="divide by 100"):
        bisect_score(lambda b: 62.0)
    with pytest.raises(BadInput, match="1 answers to 2"):
        bisect_score_batch(lambda coeffs: [0.5], 2)


# -- dose and response ----------------------------------------------------------------------------

STRENGTHS = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]


def items(curve, n=60, noise=0.3, seed=0):
    """Paired outcomes: every item has its own level, shared by all strengths."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(n, 1))
    return own + np.array([curve(c) for c in STRENGTHS]) + noise * rng.normal(size=(n, len(STRENGTHS)))


def test_means_and_paired_changes_by_hand():
    effect = [[0.0, 1.0, 3.0], [1.0, 3.0, 5.0], [2.0, 2.0, 4.0]]
    found = dose_response([0, 1, 2], effect, nll=[[1, 1, 2], [2, 2, 3], [3, 3, 4]], n_fit=2)
    assert [e.value for e in found.effect] == [1, 2, 4]
    assert [e.value for e in found.change] == [0, 1, 3]
    assert [e.value for e in found.nll_increase] == [0, 0, 1]
    assert found.slope.value == pytest.approx(1)
    assert found.predicted == pytest.approx((1, 2, 3))
    assert [g.value for g in found.gap] == pytest.approx([0, 0, 1])
    assert found.valid == (True, True, False)
    assert found.valid_up_to == 1


def test_pairing_makes_the_interval_of_a_change_narrow():
    found = dose_response(STRENGTHS, items(lambda c: c, noise=0.05))
    level, change = found.effect[2], found.change[2]
    assert change.high - change.low < (level.high - level.low) / 5
    assert change.covers(1.0)


def test_a_straight_line_never_fails_and_a_saturating_one_fails_where_it_bends():
    assert dose_response(STRENGTHS, items(lambda c: 2 * c)).fails_at is None
    assert dose_response(STRENGTHS, items(lambda c: 2 * min(c, 3.0), noise=0.1)).fails_at == 4.0
    exact = dose_response(STRENGTHS, np.tile(np.array(STRENGTHS) * 0.1, (5, 1)))
    assert exact.fails_at is None


def test_a_line_fails_beyond_the_strengths_it_was_fitted_to():
    """A parabola leaves its line at once, but a line is not tested where it was fitted."""
    curve = np.tile(np.array(STRENGTHS) ** 2, (5, 1))
    assert dose_response(STRENGTHS, curve).fails_at == 2.0
    assert dose_response(STRENGTHS, curve, n_fit=4).fails_at == 4.0


def test_the_gap_interval_covers_zero_as_often_as_it_says():
    covered = [
        dose_response(STRENGTHS, items(lambda c: c, n=40, seed=s), n_bootstrap=300).gap[-1].covers(0) for s in range(60)
    ]
    assert np.mean(covered) > 0.85


def test_noise_in_the_small_strengths_is_part_of_the_gap():
    """The line's own uncertainty grows with distance: the forecast is vaguer at 8 than at 2."""
    found = dose_response(STRENGTHS, items(lambda c: c))
    width = [g.high - g.low for g in found.gap]
    assert width[5] > 2 * width[3]


def test_the_valid_range_ends_at_the_first_strength_that_is_not_fluent():
    nll = np.tile([2.0, 2.1, 2.4, 2.6, 2.2, 0.5], (4, 1))
    found = dose_response(STRENGTHS, items(lambda c: c, n=4), nll=nll)
    assert found.valid == (True, True, True, False, True, False), "text that loops is too likely, and not fluent"
    assert found.valid_up_to == 1.0
    assert dose_response(STRENGTHS, items(lambda c: c, n=4)).valid_up_to == 8.0


def test_seeds_of_one_prompt_are_resampled_together():
    effect = np.repeat(items(lambda c: c, n=8), 20, axis=0)
    alone = dose_response(STRENGTHS, effect)
    grouped = dose_response(STRENGTHS, effect, groups=np.repeat(np.arange(8), 20))
    assert grouped.effect[0].high - grouped.effect[0].low > 3 * (alone.effect[0].high - alone.effect[0].low)


def test_the_frame_has_a_row_a_strength_and_only_what_was_given():
    found = dose_response(STRENGTHS, items(lambda c: c), norm_ratio=items(lambda c: c), about={"model": "x"})
    frame = found.to_frame()
    assert frame["strength"].tolist() == STRENGTHS
    assert {"effect", "effect_low", "change_high", "norm_ratio", "gap", "valid", "fitted", "predicted"} <= set(frame)
    assert "nll_increase" not in frame
    assert found.about["model"] == "x"
    assert "<table" in found._repr_html_()
    assert "holds at every strength" in repr(found)


@pytest.mark.parametrize(
    ("strengths", "effect", "more", "says"),
    [
        ([1.0, 2.0, 3.0], np.ones((3, 3)), {}, "ascending from 0"),
        ([0.0, 2.0, 1.0], np.ones((3, 3)), {}, "ascending"),
        ([0.0, 1.0, 2.0], np.ones((3, 2)), {}, "one column a strength"),
        ([0.0, 1.0, 2.0], np.full((3, 3), np.nan), {}, "NaN"),
        ([0.0, 1.0, 2.0], np.ones((3, 3)), {"nll": np.ones((2, 3))}, "same items"),
        ([0.0, 1.0, 2.0], np.ones((3, 3)), {"n_fit": 4}, "n_fit"),
        ([0.0, 1.0, 2.0], np.ones((3, 3)), {"nll_limits": (0.1, 0.5)}, "fall"),
    ],
)
def test_senseless_doses_are_refused(strengths, effect, more, says):
    with pytest.raises(BadInput, match=says):
        dose_response(strengths, effect, **more)


def test_one_group_is_too_few():
    with pytest.raises(TooFewExamples):
        dose_response([0, 1, 2], np.ones((3, 3)), groups=[0, 0, 0])
