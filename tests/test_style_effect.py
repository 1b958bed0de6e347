"""Shares of styles, what was measured of them, and tasks asked with and without naming a style."""

import math

import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens.access.measures.style_runs import StyledTasks
from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import difference_of_proportions, wilson
from latentlens.methods.code_language import is_valid, language_of
from latentlens.organism.judges import language_of as judged
from latentlens.values.style_effect import StyleArm, StyleEffect, arms_by_target, pooled_difference

BASE = StyleArm(
    "no edit", (0, 0, 1, 1), (0, 1, 0, 1), ("py", "py", "jl", "unknown"), (True, False, True, None), (0,) * 4
)
STEERED = StyleArm("add", (0, 0, 1, 1), (0, 1, 0, 1), ("jl", "jl", "jl", "py"), (True, False, True, True), (1, 2, 3, 6))


def close(estimate, value, low, high, n):
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == pytest.approx((value, low, high, n))


def test_shares_count_every_answer_and_validity_only_what_can_be_judged():
    close(BASE.share("py"), 0.5, *wilson(2, 4), 4)
    close(BASE.share("unknown"), 0.25, *wilson(1, 4), 4)
    assert sum(e.value for e in BASE.shares(["py", "jl"]).values()) == 1
    close(BASE.validity("py"), 0.5, *wilson(1, 2), 2)
    close(STEERED.hit("jl"), 0.5, *wilson(2, 4), 4)
    nothing = StyleArm("x", (0,), (0,), ("jl",), (None,))
    assert math.isnan(nothing.validity("jl").value)
    assert nothing.validity("jl").n == 0
    assert nothing.hit("jl").value == 1, "what cannot be parsed here is not known to be wrong"
    assert math.isnan(nothing.nats().value)


def test_nats_of_an_answer_are_resampled_by_prompt():
    close(StyleArm("x", (0, 1), (0, 0), ("a", "b"), kl=(2.0, 2.0)).nats(), 2, 2, 2, 2)
    found = STEERED.nats()
    assert found.value == 3
    assert found.low <= 1.5
    assert found.high >= 4.5


def test_arms_are_compared_answer_by_answer():
    effect = StyleEffect("jl", ("py", "jl"), (BASE, STEERED))
    assert effect.difference("add", "no edit").value == 0.25
    assert effect.difference("no edit", "no edit").value == 0
    same = effect.difference("add", "add")
    assert (same.value, same.low, same.high) == pytest.approx(difference_of_proportions(2, 4, 2, 4))
    other = StyleEffect("py", ("py", "jl"), (BASE, STEERED))
    both = pooled_difference([effect, other], "add", "no edit")
    assert both.value == pytest.approx((0.25 + other.difference("add", "no edit").value) / 2)
    assert both.n == 8
    one = [StyleArm(name, (1, 1), (0, 1), styles) for name, styles in (("no edit", ("py", "jl")), ("a", ("jl", "jl")))]
    with pytest.raises(TooFewExamples):
        StyleEffect("jl", ("py", "jl"), one).difference("a", "no edit")
    apart = StyleArm("apart", (7,), (0,), ("py",))
    with pytest.raises(BadInput, match="no prompt and seed in common"):
        StyleEffect("jl", ("py", "jl"), (BASE, apart)).difference("apart", "no edit")


def test_what_does_not_fit_is_refused():
    for make, error, says in (
        (lambda: StyleArm("x", (), (), ()), TooFewExamples, "no answer"),
        (lambda: StyleArm("x", (0, 1), (0,), ("a",)), BadInput, "columns of"),
        (lambda: StyleArm("x", (0,), (0,), ("a",), kl=(1.0, 2.0)), BadInput, "columns of"),
        (lambda: StyleEffect("jl", ("jl",), ()), TooFewExamples, "no arm 'no edit'"),
        (lambda: StyleEffect("jl", ("jl",), (BASE, BASE)), BadInput, "names of their own"),
        (lambda: StyleEffect("jl", ("jl",), (BASE,))["add"], BadInput, "there are no edit"),
    ):
        with pytest.raises(error, match=says):
            make()


def test_tables_hold_every_arm_and_style():
    effect = StyleEffect("jl", ("py", "jl"), (BASE, STEERED))
    frame = effect.to_frame()
    assert list(frame["arm"]) == ["no edit", "add"]
    assert frame["share unknown"][0].value == 0.25
    both = arms_by_target([effect, StyleEffect("py", ("py", "jl"), (BASE,))])
    assert list(both.columns) == ["arm", "jl", "py", "unknown", "valid", "nats"]
    assert both["jl"][1].value == 0.5
    assert both["nats"].tolist() == [0, 3]
    assert both["unknown"][0].n == 8
    assert "valid answers in jl" in repr(effect)
    assert "jl" in effect._repr_html_()


# -- asking --------------------------------------------------------------------------------------------

TASKS = ["adds 3 and 5", "counts 12 times", "prints 9 if it is above 4", "takes 2 from 11"]
STYLES = ("Python", "C++", "Java", "Julia")


@pytest.fixture(scope="module")
def ask(organism, tmp_path_factory):
    how = {"max_new_tokens": 48, "temperature": 1.0}
    return StyledTasks(organism, STYLES, language_of, is_valid, folder=tmp_path_factory.mktemp("rows"), options=how)


def test_a_task_is_asked_in_turns_of_wordings_with_and_without_the_style(ask):
    assert [p[0]["content"] for p in ask.prompts(TASKS[:2])] == [
        "Write a program that adds 3 and 5.",
        "Show me a program that counts 12 times.",
    ]
    assert ask.prompts(TASKS[:1], "C++", 1)[0][0]["content"] == "Show me a C++ program that adds 3 and 5."
    plain = StyledTasks(ask.lm, ("a", "b"), language_of, wordings=[("{task}", "{task} ({style})")], chat=False)
    assert plain.prompts(["x", "y"], "a") == ["x (a)", "y (a)"]


def test_answers_are_judged_and_kept(ask):
    arms = ask.answers(TASKS, {"asked": None}, [0, 1], style="Julia")
    assert arms["asked"].share("Julia").value > 0.7
    assert arms["asked"].validity("Julia").value > 0.7
    run = ask.counts["rows_run"]
    again = ask.answers(TASKS, {"asked": None}, [0, 1], style="Julia")
    assert again == arms
    assert ask.counts["rows_run"] == run
    assert ask.counts["rows_found"] >= 8


def test_the_detector_and_the_models_own_judge_agree_on_what_it_writes(ask):
    runs = ask.lm.generate(ask.prompts(TASKS), 48, 10, 1.0, seed=3)
    ours, theirs = [language_of(t) for t in runs.texts], [judged(t) or "unknown" for t in runs.texts]
    assert np.mean([a == b for a, b in zip(ours, theirs)]) > 0.97


def test_the_telling_token_is_the_first_that_differs_between_the_styles(ask):
    found = ask.telling_tokens(TASKS)
    assert {s: ask.lm.tokenizer.decode([t]) for s, t in found.items()} == {
        "Python": "def",
        "C++": "int",
        "Java": "public",
        "Julia": "function",
    }


def test_states_come_by_point_at_the_last_prompt_token(ask):
    found = ask.states(TASKS, "Java", sites=["resid_post[2:4]", "z[1]"])
    assert set(found) == {"resid_post", "z"}
    assert found["resid_post"].stack().shape[:2] == (2, 4)
    direct = ask.lm.activations(ask.prompts(TASKS, "Java"), sites="resid_post[3]", where="last")
    assert torch.equal(found["resid_post"]["resid_post[3]"], direct["resid_post[3]"])


def test_nats_answer_the_question_of_a_budget(ask):
    acts = {s: ask.states(TASKS, s)["resid_post"] for s in STYLES}
    d = ll.gact.differences(acts["Java"], [acts[s] for s in STYLES if s != "Java"])
    v = ll.Direction(d[3].mean(0), "resid_post[3]")
    question = ask.nats(TASKS, [lambda c: ll.Add(v, c, where="last_prompt"), lambda c: ll.Add(v, 0.0 * c)], [0])
    some = question([0.5, None])
    more = question([1.0, 1.0])
    assert some[1] is None
    assert 0 < some[0][0] < more[0][0]
    assert more[1] == [0.0]
    best = ask.best_of(TASKS, {"none": None, "add": ll.Add(v, 2.0, where="last_prompt")}, "Java", [0, 1])
    assert best == "add"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"styles": ("Python",)}, "two different names"),
        ({"styles": ("Python", "unknown")}, "no style"),
        ({"wordings": [("Do it", "Do {task} in {style}")]}, "wording"),
        ({"wordings": [("Do {task}", "Do {task}")]}, "wording"),
    ],
)
def test_wrong_styles_and_wordings_get_one_clear_error(ask, options, says):
    with pytest.raises(BadInput, match=says):
        StyledTasks(ask.lm, **{"styles": STYLES, "judge": language_of, **options})


def test_time_is_compared_round_by_round(organism):
    prompts = [[{"role": "user", "content": "Write a program that adds 3 and 5."}]] * 2
    v = ll.Direction(torch.randn(organism.layout.d_model), "resid_post[2]")
    frame = ll.overhead(organism, prompts, {"add": ll.Add(v)}, tokens=2, rounds=2)
    assert list(frame["plan"]) == ["no edit", "add"]
    assert frame["over no edit"][0] == 1
    assert (frame["lowest"] <= frame["over no edit"]).all()
    assert (frame["microseconds a token"] > 0).all()
    with pytest.raises(BadInput, match="at least 1"):
        ll.overhead(organism, prompts, {}, rounds=0)
