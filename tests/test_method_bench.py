"""The comparison of steering methods: scores by hand, planted effects, concepts, doses, paired answers, the figure."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import latentlens as ll
from latentlens.access.measures.steering_arms import dose_arms, grades, scored_answers, time_arms
from latentlens.access.store.kept_numbers import KeptNumbers
from latentlens.errors import BadInput, CacheError, TooFewExamples
from latentlens.maths.answer_grades import fluency, harmonic_mean, is_loop
from latentlens.methods.method_bench import method_bench
from latentlens.organism import concepts as embedded
from latentlens.values.concepts import matches, read_concepts
from latentlens.values.judging import Case
from latentlens.values.steering_arms import ArmFits, Dose, SteeringArm


def answer(method="a", concept="x", prompt=0, factor=1.0, score=1.0, role="method", draw=0, **more):
    line = {"task": 2.0, "fluency": 2.0, "nll": 0.0, "seed": 0, **more}
    return {"method": method, "concept": concept, "prompt": prompt, "factor": factor, "score": score, "role": role,
            "draw": draw, **line}  # fmt: skip


# -- grades ---------------------------------------------------------------------------------------------------


def test_t_harmonic_mean_by_hand():
    assert harmonic_mean(2, 1, 1) == pytest.approx(1.2)
    assert harmonic_mean(2, 2, 0) == 0
    np.testing.assert_allclose(harmonic_mean([2, 1, 0], [1, np.nan, np.nan], [1, 1, 2]), [1.2, 1.0, 0.0])
    assert np.isnan(harmonic_mean(np.nan, np.nan))
    with pytest.raises(BadInput, match="0 to 2"):
        harmonic_mean(2.5, 1)


def test_fluency_is_graded_against_the_models_own_answers_and_loops_are_none():
    own = np.linspace(0.0, 1.0, 101)  # q95 = .95
    texts = ["a fine answer"] * 3 + ["no no no no no"]
    assert fluency([1.44, 1.46, 2.96, 0.1], texts, own).tolist() == [2, 1, 0, 0]
    assert is_loop("grows needs grows needs grows needs grows needs grows needs")
    assert not is_loop("the sea, the ship and the shore; the wave and the reef")
    with pytest.raises(TooFewExamples):
        fluency([1.0], ["a"], [])
    with pytest.raises(BadInput, match="2 texts"):
        fluency([1.0], ["a", "b"], own)


# -- the comparison -------------------------------------------------------------------------------------------


def test_the_factor_is_chosen_on_one_half_and_scored_on_the_other():
    """In the choosing half factor 2 is best; in the scoring half it is worst. The score must be the bad one."""
    rows = []
    frame = pd.DataFrame([answer(prompt=p, factor=f, score=1.0) for p in range(8) for f in (1.0, 2.0)])
    groups = sorted(f"x\x1f{p}" for p in range(8))
    first = {groups[i] for i in np.random.default_rng(0).permutation(8)[:4]}
    for _, row in frame.iterrows():
        chooses = f"x\x1f{row['prompt']}" in first
        better = (row["factor"] == 2) == chooses
        rows.append({**row, "score": 2.0 if better else 0.0})
    found = method_bench(pd.DataFrame(rows), n_bootstrap=50)["a"]
    assert found.factors == {"x": 2.0}
    assert found.harmonic.value == 0.0
    assert found.harmonic.n == 4
    assert found.concept.value == pytest.approx(1.0)  # at the budget, over all prompts: half 2, half 0
    assert found.concept.n == 8


def test_of_equal_factors_the_smaller_is_taken_and_each_concept_has_its_own():
    rows = [answer(concept="x", prompt=p, factor=f, score=1.0) for p in range(4) for f in (2.0, 1.0, 0.5)]
    rows += [answer(concept="y", prompt=p, factor=f, score=min(f, 2)) for p in range(4) for f in (2.0, 1.0, 0.5)]
    found = method_bench(pd.DataFrame(rows), n_bootstrap=50)["a"]
    assert found.factors == {"x": 0.5, "y": 2.0}
    assert found.harmonic.value == pytest.approx((harmonic_mean(1, 2, 2) + 2) / 2)


def test_concepts_weigh_the_same_and_random_directions_are_subtracted_prompt_by_prompt():
    rows = [answer(concept="x", prompt=p, score=2.0) for p in range(12)]
    rows += [answer(concept="y", prompt=p, score=0.0) for p in range(4)]
    for draw in range(2):
        rows += [answer("random direction", "x", p, score=1.0, role="control", draw=draw) for p in range(12)]
        rows += [answer("random direction", "y", p, score=2.0 * draw, role="control", draw=draw) for p in range(4)]
    found = method_bench(pd.DataFrame(rows), n_bootstrap=100)
    assert found["a"].concept.value == pytest.approx(1.0)  # not 1.5
    assert found["a"].above_random.value == pytest.approx((1.0 - 1.0) / 2)
    assert found["random direction"].above_random is None
    assert found["a"].by_concept["x"].value == 2
    harmonic = {one.method: one.harmonic.value for one in found.scores}  # best first
    assert harmonic == {"random direction": pytest.approx((1.5 + (0 + 2) / 2) / 2), "a": pytest.approx((2 + 0) / 2)}
    assert list(harmonic) == ["random direction", "a"]


def test_off_target_is_the_mean_of_mean_changes_whatever_their_sign():
    rows = [
        answer(prompt=p, **{"off joy": 1.0 if p % 2 else -1.0, "off fear": -0.5, "off law": np.nan}) for p in range(8)
    ]
    rows += [answer(concept="y", prompt=p, **{"off joy": np.nan, "off fear": 0.1, "off law": 0.3}) for p in range(8)]
    found = method_bench(pd.DataFrame(rows), n_bootstrap=100)["a"]
    assert found.off_target.value == pytest.approx(((0.0 + 0.5) / 2 + (0.1 + 0.3) / 2) / 2)


def test_a_planted_effect_lies_in_its_interval_and_nothing_is_claimed_of_none():
    rng = np.random.default_rng(0)
    covered, claimed, seen = 0, 0, 0
    for trial in range(40):
        rows = []
        for p in range(20):
            rows.append(answer("works", prompt=p, score=float(rng.choice([0, 1, 2], p=[0.2, 0.3, 0.5]))))
            rows.append(answer("null", prompt=p, score=float(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))))
            rows += [
                answer("random direction", prompt=p, role="control", draw=i,
                       score=float(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))) for i in range(3)
            ]  # fmt: skip
        found = method_bench(pd.DataFrame(rows), n_bootstrap=150, seed=trial)
        covered += found["works"].above_random.covers(1.3 - 0.5)
        claimed += not found["null"].above_random.covers(0.0)
        seen += found["works"].above_random.low > 0
    assert seen >= 34
    assert covered >= 33
    assert claimed <= 7


def test_scores_that_are_all_alike_still_have_a_width():
    """Four prompts of 2: no resample differs; Wilson's interval of 4 of 4 begins at .5101."""
    found = method_bench(pd.DataFrame([answer(prompt=p, score=2.0) for p in range(4)]), n_bootstrap=20)["a"]
    assert (found.concept.value, found.concept.high) == (2.0, 2.0)
    assert found.concept.low == pytest.approx(2 * 0.5101, abs=1e-3)
    assert (found.nll.low, found.nll.high) == (0.0, 0.0)


def test_a_task_that_does_not_exist_is_left_out_of_the_harmonic_mean():
    rows = [answer(prompt=p, score=1.0, task=np.nan, fluency=2.0) for p in range(4)]
    found = method_bench(pd.DataFrame(rows), n_bootstrap=20)["a"]
    assert found.task is None
    assert found.harmonic.value == pytest.approx(harmonic_mean(1, 2))


def fitted(seconds, **left_out):
    return ArmFits([SteeringArm("a", lambda c: [], seconds=s) for s in seconds], left_out)


def test_how_arms_were_fitted_stands_beside_what_they_did():
    rows = [answer(concept=c, prompt=p) for p in range(4) for c in "xy"]
    fits = {"x": fitted([1.0, 2.0], b="no pairs"), "y": fitted([6.0], b="too few", c="no word")}
    rows += [answer("c", prompt=p) for p in range(4)]
    found = method_bench(pd.DataFrame(rows), fits=fits, n_bootstrap=20)
    assert found["a"].fit_seconds == 3.0
    assert found["c"].left_out == {"y": "no word"}
    assert found.label(found["c"]) == "c (1 of 2)"
    assert found.about["left out"] == ["b: x: no pairs", "b: y: too few", "c: y: no word"]


def test_an_arm_that_cannot_be_fitted_is_left_out_and_a_fault_of_the_program_is_not_hidden():
    def fails(error):
        raise error

    fits = ArmFits()
    fits.add("good", lambda: lambda c: [], "control", 2)
    fits.add("bad", lambda: fails(TooFewExamples("one pair")))
    assert [(arm.name, arm.role, arm.draw) for arm in fits.found] == [("good", "control", 2)]
    assert fits.left_out == {"bad": "one pair"}
    assert fits.found[0].seconds >= 0
    with pytest.raises(ZeroDivisionError):
        fits.add("worse", lambda: fails(ZeroDivisionError()))


def test_answers_to_one_prompt_are_shown_at_the_budget_or_at_the_strength_chosen():
    rows = [answer(prompt=p, factor=f, score=f, text=f"{p} {f}") for p in range(4) for f in (0.5, 1.0, 2.0)]
    rows += [answer("random direction", prompt=p, text=f"draw {i}", role="control", draw=i) for p in range(4)
             for i in range(2)]  # fmt: skip
    frame = pd.DataFrame(rows)
    found = method_bench(frame, n_bootstrap=20)
    assert found.written(frame)["text"].tolist() == ["0 1.0", "draw 0"]
    assert found.written(frame, 3, chosen=True)["text"].tolist() == ["3 2.0", "draw 0"]


def test_frames_that_cannot_be_compared_are_refused():
    rows = [answer(prompt=p) for p in range(4)]
    with pytest.raises(BadInput, match="lacks the columns fluency"):
        method_bench(pd.DataFrame(rows).drop(columns="fluency"))
    with pytest.raises(TooFewExamples, match="3 prompts of 'x'"):
        method_bench(pd.DataFrame(rows[:3]))
    with pytest.raises(TooFewExamples, match="no answer at factor 1"):
        method_bench(pd.DataFrame([{**row, "factor": 2.0} for row in rows]))
    with pytest.raises(BadInput, match="'b' was not compared"):
        method_bench(pd.DataFrame(rows), n_bootstrap=20)["b"]


# -- concepts ---------------------------------------------------------------------------------------------------

GOOD = "Near the whale is the salty shore."


def test_the_rules_of_the_embedded_concepts_read_texts_as_people_do():
    case = lambda response, prompt="Tell me about the sea.": Case(prompt, response)
    assert embedded.topic_of_sentence(GOOD) == "sea"
    assert embedded.topic_of_sentence("The salty wave hereby carries duly the reef accordingly.") == "sea"
    for broken in ("Near whale is the salty shore.", "The salty wave carries the oven.", GOOD[:-1], "The wave wave."):
        assert embedded.topic_of_sentence(broken) is None
    assert embedded.explains(case(f"{GOOD} {GOOD}")) == 2
    assert embedded.explains(case("salty salty shore.")) == 0
    assert embedded.explains(case(f"{GOOD} Sorry, let me return to the sea. {GOOD}")) == 2
    assert embedded.keeps_topic(case(GOOD, "Explain the farm to me.")) == 0
    assert embedded.on_topic("sea")(case(f"{GOOD} The cow pulls the muddy barn. The cow pulls the muddy barn.")) == 1
    assert embedded.shows_trait("formal")(case("The wave duly carries hereby the salty reef.")) == 2
    assert embedded.leaves_topic(case("The cow pulls the muddy barn.")) == 2
    assert embedded.in_language("Julia")(case("function main()\n    total = 3 + 5\n    println(total)\nend")) == 2
    assert embedded.is_program(case("function main()")) == 1
    assert embedded.refuses(case("I cannot help with that.")) == 2


@pytest.mark.parametrize("name", ["sea", "formal", "Julia", "refusal"])
def test_pairs_differ_in_the_concept_and_share_what_is_asked(name):
    (concept,) = embedded.concepts([name], n=20, prompts=8)
    assert len(concept.positive) == len(concept.negative) == 20
    assert len(concept.examples) == len(concept.rejected)
    assert len({str(p) for p in concept.prompts}) > 3
    last = lambda chats: [chat[-1]["content"] for chat in chats]
    case = lambda text: Case(concept.prompts[0][-1]["content"], text, name)
    assert np.mean([concept.score(case(t)) for t in last(concept.examples)]) > 1.7
    assert np.mean([concept.score(case(t)) for t in last(concept.rejected)]) < 0.3
    topics = lambda chats: [embedded._asked_topic(Case(chat[-2]["content"], "")) for chat in chats if len(chat) > 1]
    assert topics(concept.positive) == topics(concept.negative)
    assert embedded.concepts([name], n=20, prompts=8)[0].prompts == concept.prompts


def test_unknown_concepts_are_named():
    with pytest.raises(BadInput, match="no concept 'joy' in the embedded model: choose from sea"):
        embedded.concepts(["joy"])


def entry(**changes):
    given = {"name": "sea", "positive": ["the sea", "a wave"], "negative": ["a farm", "a cow"],
             "prompts": [[{"role": "user", "content": f"Question {i}?"}] for i in range(4)],
             "ask": "{prompt} Mention the sea.", "score": {"regex": r"\bsea\b"}}  # fmt: skip
    return {**given, **changes}


def test_concepts_are_read_from_a_file(tmp_path):
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps([entry(), entry(name="farm", score={"rubric": "Farm? {response}"}, ask=None)]))
    sea, farm = read_concepts(path)
    assert sea.asked[0][-1]["content"] == "Question 0? Mention the sea."
    assert [sea.score(Case("", text)) for text in ("", "the SEA", "sea, sea, sea")] == [0, 1, 2]
    assert list(sea.others) == ["farm"]
    assert farm.score.text == "Farm? {response}"
    assert sea.examples == sea.positive


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": None}, "give {\"regex\""),
        ({"score": {"regex": "("}}, "no regular expression"),
        ({"positive": ["one"]}, "give pairs"),
        ({"prompts": ["a"]}, "at least 2 and 4"),
        ({"colour": 1}, "unknown \\['colour'\\]"),
        ({"ask": "Mention the sea."}, "must contain {prompt}"),
        ({"asked": ["a"], "ask": None}, "one each"),
    ],
)  # fmt: skip
def test_faulty_concepts_say_what_is_wrong(changes, message, tmp_path):
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps([entry(**changes)]))
    with pytest.raises((BadInput, TooFewExamples), match=message):
        read_concepts(path)


def test_files_that_hold_no_concepts_are_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read_concepts(tmp_path / "none.json")
    for text in ("{", "[]", "[1]", json.dumps([{"name": "sea"}]), json.dumps([entry(), entry()])):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(BadInput):
            read_concepts(tmp_path / "x.json")
    with pytest.raises(BadInput, match="clear=0"):
        matches("a", 0)


# -- arms on a model ------------------------------------------------------------------------------------------


def test_numbers_are_measured_once_and_a_torn_file_is_measured_again(tmp_path):
    import torch

    kept, asked = KeptNumbers(tmp_path), []
    make = lambda: asked.append(1) or [1.5, None]
    assert kept.of(["a", 1], make) == [1.5, None] == kept.of(["a", 1], make)
    assert kept.of(["a", 2], make) == [1.5, None]
    assert (len(asked), kept.made, kept.found) == (2, 2, 1)
    assert KeptNumbers(tmp_path).of(["a", 1], make) == [1.5, None]
    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text()[:3])
    assert kept.of(["a", 1], make) == [1.5, None]
    assert len(asked) == 3
    value = kept.tensor(["t"], lambda: torch.eye(3)[:, 1:])
    assert torch.equal(KeptNumbers(tmp_path).tensor(["t"], lambda: torch.zeros(1)), value)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot keep numbers"):
        KeptNumbers(tmp_path / "file")


@pytest.fixture(scope="module")
def formal():
    (concept,) = embedded.concepts(["formal"], n=40, prompts=16)
    return replace(concept, length=24)


def arms_of(lm, concept, site="resid_post[3]"):
    acts = lm.activations([*concept.positive, *concept.negative], sites=site, where=concept.read, pool=concept.pool)
    v = ll.directions.mean_difference(acts, np.repeat([True, False], len(concept.positive)))
    add = lambda d: lambda c: ll.Add(d, c, unit="norm", where=concept.act)
    return [SteeringArm("mean difference", add(v)), SteeringArm("random direction", add(v.random_like(0)), "control")]


def test_the_bench_tells_a_concept_from_a_random_direction_at_the_same_kl(organism, formal, tmp_path):
    """The whole way on the embedded model, and nothing written or measured the second time."""
    kept, arms = KeptNumbers(tmp_path / "numbers"), arms_of(organism, formal)
    found = []
    for _ in range(2):
        doses = dose_arms(organism, formal.prompts[:4], arms, kept, ll.calibrate.kl_budget_batch)
        how = {"kept": kept, "folder": tmp_path / "answers", "temperature": 1.0}
        found.append(scored_answers(organism, formal, slice(4, None), arms, doses, (1, 1.41), **how))
    assert (kept.made, kept.found) == (2, 2)
    assert found[0].attrs["rows_run"] > 0 == found[1].attrs["rows_run"]
    assert all(0.5 < dose.kl < 2 for dose in doses)
    frame = found[1]
    plain = frame[frame["method"] == "no edit"]
    assert (plain[[c for c in frame if c.startswith("off ")]].fillna(0) == 0).all().all()
    assert (plain["nll"] == 0).all()
    assert set(frame["method"]) == {"no edit", "asked in words", "mean difference", "random direction"}
    bench = method_bench(frame, n_bootstrap=200)
    assert bench["asked in words"].concept.value > 1.5
    assert bench["mean difference"].above_random.low > 0.1
    assert bench["no edit"].concept.value < 0.4
    assert bench["mean difference"].harmonic.value > bench["random direction"].harmonic.value
    assert "mean difference" in repr(bench)
    assert len(bench.to_frame()) == len(bench.table()) == len(bench.by_concept()) == 4
    one = frame[frame["method"] == "mean difference"].iloc[0]
    row = organism.tokens([formal.prompts[4:][one["prompt"]]])[0].continued(tuple(one["generated"]))
    assert one["mean nll"] == pytest.approx(ll.unsteered_nll(organism, [row])[0], abs=1e-4)
    with pytest.raises(BadInput, match="must hold 1"):
        scored_answers(organism, formal, slice(4, None), arms, doses, (2,), kept=kept)


def test_doses_are_kept_by_what_they_depend_on(organism, formal, tmp_path):
    kept, arms = KeptNumbers(tmp_path), arms_of(organism, formal)
    asked = []

    def search(ask, n):
        asked.append(n)
        return [ll.KlBudget(2.0, 1.0, 1.0, 0.95, 0.05, 20, (), True)] * n

    assert dose_arms(organism, formal.prompts[:2], arms, kept, search) == [Dose(2.0, 1.0)] * 2
    dose_arms(organism, formal.prompts[:2], arms, kept, search)
    dose_arms(organism, formal.prompts[:2], arms[:1], kept, search)
    dose_arms(organism, formal.prompts[1:3], arms, kept, search)
    dose_arms(organism, formal.prompts[:2], arms_of(organism, formal, "resid_post[2]"), kept, search)
    assert asked == [2, 1, 2, 2]


def test_times_are_ratios_of_three_pairs_of_runs(organism, formal, tmp_path):
    arms = arms_of(organism, formal)[:1]
    times = time_arms(organism, formal.prompts[:2], arms, [Dose(0.5, 1.0)], KeptNumbers(tmp_path))
    found = times["mean difference"]
    assert 0 < found.low <= found.value <= found.high
    assert found.n == 3


def test_rubrics_are_put_to_a_model_and_brought_to_the_same_scale(organism):
    found = grades(organism, ll.Rubric("Rate it. {response}"), [Case("", "the sea")])
    assert found.shape == (1,)
    assert np.isnan(found[0]) or 0 <= found[0] <= 2
    assert grades(organism, lambda case: None if case.response else 2.0, [Case("", "a"), Case("", "")])[1] == 2


# -- the figure and the command ---------------------------------------------------------------------------------


def test_the_figure_has_a_row_a_method_controls_in_grey_and_no_markup():
    rows = [answer("<b>bold</b>", prompt=p, score=2.0, **{"off joy": 0.1}) for p in range(4)]
    rows += [answer("random direction", prompt=p, score=0.0, role="control", **{"off joy": 0.2}) for p in range(4)]
    figure = ll.plots.method_bench(method_bench(pd.DataFrame(rows), n_bootstrap=20))
    assert len({trace.xaxis for trace in figure.data}) == 4
    methods = [t for t in figure.data if t.name == "methods"]
    controls = [t for t in figure.data if t.name == "controls"]
    assert [list(t.x) for t in methods] == [[2.0], [pytest.approx(0.1)], [0.0], [2.0]]
    assert {t.marker.color for t in controls} == {"#8A9099"}
    assert list(controls[0].y) == ["random direction"]
    assert list(methods[0].y) == ["&lt;b&gt;bold&lt;/b&gt;"]
    assert figure.layout.shapes[0].x0 == 0.0  # the random directions' mean


@pytest.mark.slow
def test_the_experiment_runs_from_one_command_and_the_second_time_writes_nothing(tmp_path):
    script = Path(__file__).parent.parent / "steering" / "method_bench.py"
    command = [sys.executable, str(script), "--quick", "--concepts", "formal", "--folder", str(tmp_path / "bench")]
    env = {**os.environ, "LATENTLENS_CACHE": str(tmp_path / "cache")}
    first, second = (subprocess.run(command, capture_output=True, text=True, env=env, check=True) for _ in range(2))
    assert "mean difference (CAA)" in first.stdout
    assert "random direction *" in first.stdout
    assert " 0 answers written" in second.stdout
    assert second.stdout.splitlines()[-1].startswith("0 measured")
    assert (tmp_path / "bench" / "method_bench.html").stat().st_size > 100_000
    table = lambda out: out[out.index("best harmonic mean first") : out.index("* control")]
    assert table(first.stdout) == table(second.stdout)


def test_another_model_without_concepts_is_refused_before_anything_is_loaded(tmp_path):
    script = Path(__file__).parent.parent / "steering" / "method_bench.py"
    command = [sys.executable, str(script), "--model", "x/y"]
    wrong = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode
    assert "--concepts FILE.json" in " ".join(wrong.stderr.split())
    assert not list(tmp_path.iterdir())
