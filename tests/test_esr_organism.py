"""Steering resistance where it was planted: found, carried by the detectors and not by latents like them; reopened."""

import numpy as np
import pytest

import latentlens as ll
from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods import esr
from latentlens.methods.latent_sampling import outside_top
from latentlens.methods.latents import pooled
from latentlens.resistance import ablation, corrections, detection, inducing
from latentlens.resistance.core import prepare
from latentlens.resistance.detectors import detect
from latentlens.resistance.opening import forecast, reopen
from latentlens.resistance.task import asked_topic, embedded_task, on_topic, one_topic, topical_words
from latentlens.values.esr import Condition
from latentlens.values.judging import Case

SCHEDULE = "transient"


def rates_of(answers):
    found = {name: esr.rates(one) for name, one in answers.items()}
    return {name: (r.n, r.multi.value, r.resisted.value, r.first.value) for name, r in found.items()}


HOW = {"samples": 2, "n_sets": 2, "rounds": 6, "per_round": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("esr")


@pytest.fixture(scope="module")
def core(folder):
    return prepare(ll.open_study(cache=False, folder=folder), 16, **HOW)


@pytest.fixture(scope="module")
def answers(core):
    trials = core.trials(SCHEDULE, 4)
    return core.study.answers(trials, ablation.conditions(core.rules, core.controls, SCHEDULE))


def test_latents_about_a_topic_are_found_without_being_told_the_topics(core):
    subjects = [core.study.subject(j) for j in core.sampled.latents]
    assert len(set(subjects)) >= 4
    pairs = [
        (subject, asked_topic(core.study.task.prompts[p]))
        for latent, subject in zip(core.sampled.latents, subjects, strict=True)
        for p in core.sampled.allowed[latent]
    ]
    assert np.mean([mine == asked for mine, asked in pairs]) < 0.05  # 0.1 if prompts were drawn at random


def test_the_model_starts_over_when_steered_and_hardly_ever_without(answers):
    steered, plain = esr.rates(answers["steered"]), esr.rates(answers["unsteered"])
    assert plain.multi.value <= 0.05
    assert steered.multi.low > 0.05
    assert esr.paired(answers["unsteered"], answers["steered"]).change.low > 0
    assert steered.first.value < 75 < plain.first.value


def test_ablating_the_detectors_takes_it_away_and_ablating_latents_like_them_does_not(answers, core):
    found = {t.second: t for t in ablation.effects(answers, ["detectors"], core.controls)[1:]}
    off = esr.paired(answers["steered"], answers["detectors ablated"])
    assert off.change.high < 0
    assert off.p < 0.05
    sets = [answers[f"{name} ablated"] for name in core.controls if name.startswith("matched")]
    alike = esr.paired(answers["steered"], sets)
    assert abs(alike.change.value) < abs(off.change.value) / 2
    against = esr.paired(answers["detectors ablated"], sets)
    assert against.change.low > 0
    assert any("matched" in name for name in found)
    assert esr.rates(answers["ablated, unsteered"]).first.value > 90


def test_raised_detectors_break_off_an_answer_in_which_nothing_is_wrong(core):
    sets = {
        "detectors": core.chosen.latents[:3],
        "matched": next(v for k, v in core.controls.items() if "matched" in k)[:3],
    }
    found = {
        (r.name, r.level): r for r in ablation.raised(core.study, core.baseline, core.found, sets, levels=(2.0, 3.0))
    }
    best = max(found["detectors", level].at_once.value for level in (2.0, 3.0))
    worst = max(found["matched", level].at_once.value for level in (2.0, 3.0))
    assert best > worst + 0.15
    assert found["nothing", 0.0].at_once.value == 0.0
    assert found["nothing, sentence of another answer", 0.0].at_once.value > 0.2


def test_detectors_peak_before_the_correction(core, answers):
    found = corrections.around(core.study, answers["steered"], core.baseline, {"detectors": core.chosen.latents})
    peak = found.tests[0]
    assert (peak.first, peak.second) == ("off topic, peak", "after, peak")
    assert peak.mean_first > peak.mean_second
    assert peak.wilcoxon < 0.05
    trace = dict(zip(found.traces.offsets, (e.value for e in found.traces.series["detectors"]), strict=True))
    assert trace[-1] > 3 * trace[1]  # the full stop before it, against its first words


def test_saying_so_and_doing_better_are_counted_apart(core, answers):
    found = detection.separate(core.study, answers["steered"], core.chosen)
    assert not found.steering_goes_on
    assert 0 < found.both.value <= min(found.says.value, found.recovers.value)
    assert found.n <= found.of == len(answers["steered"])
    assert found.recovers_if_said.value > found.recovers_if_not.value


def test_new_prompts_are_read_with_what_the_other_prompts_chose(core):
    """neither trials nor detectors of the held-out half come from the half that chose them"""
    held = detection.held_out(core, SCHEDULE, per_latent=2)
    asked = set(held.prompts)
    choosing = [p for p in range(len(core.study.task.prompts)) if p not in asked]
    assert {core.study.task.groups[p] for p in asked}.isdisjoint(core.study.task.groups[p] for p in choosing)
    assert set(held.answers["steered"].prompt_indices.tolist()) <= asked
    own = detect(core.study, core.baseline, seed=core.seed, keep=choosing).chosen(k=len(core.chosen))
    assert held.chosen.latents == own.latents
    assert held.chosen.n_pairs == len(choosing) * 2  # two answers to each prompt
    assert np.array_equal(held.chosen.shuffled_mean, own.shuffled_mean)
    assert not np.array_equal(held.chosen.shuffled_mean, core.chosen.shuffled_mean)


def test_the_papers_relevance_filter_takes_latents_outside_every_prompts_hundred(core):
    found = prepare(core.study, 4, relevance="top-100", **HOW).sampled
    prompts = core.study.codes([core.study.task.chat(p) for p in range(len(core.study.task.prompts))])
    outside = outside_top(pooled(prompts))
    assert all(outside[j] for j in found.latents)


def test_corrections_can_be_unlearnt(core):
    tuned = inducing.untaught(core.study, core.baseline, epochs=3, lr=5e-4)
    its = ll.Study(tuned.lm, core.study.sae, core.study.task)
    its.labels = core.study.labels
    trials = core.trials(SCHEDULE, 2)
    before, after = (
        esr.rates(one.answers(trials, [Condition("steered", SCHEDULE)])["steered"]) for one in (core.study, its)
    )
    assert after.multi.value < before.multi.value / 2


def test_a_study_is_reopened_from_its_folder_and_nothing_is_written_twice(core, answers, folder):
    again = reopen(folder)
    assert (again.hook, again.unit, again.task.prompts) == (core.study.hook, core.study.unit, core.study.task.prompts)
    same = prepare(again, 16, **HOW)
    assert same.chosen.latents == core.chosen.latents
    trials = same.trials(SCHEDULE, 4)
    found = again.answers(trials, ablation.conditions(same.rules, same.controls, SCHEDULE))
    assert again.rows_run == 0
    assert rates_of(found) == rates_of(answers)


def test_any_model_is_opened_with_its_sae_and_a_file_of_prompts(tmp_path):
    asked = [f"Tell me about the {topic}." for topic in ("sea", "music", "farm", "city", "space")]
    (tmp_path / "prompts.txt").write_text("\n".join(asked))
    words = {"prompts": str(tmp_path / "prompts.txt"), "judge": "likelihood", "max_new_tokens": 40}
    words["other_judges"] = ["local"]
    paths = str(ll.organism.path()), str(ll.organism.sae_path())
    study = ll.open_study(*paths, hook="2", readout="resid_post[4]", folder=tmp_path / "study", cache=False, **words)
    assert (str(study.hook), str(study.reading.site)) == ("resid_post[2]", "resid_post[4]")
    core = prepare(study, 3, samples=2, n_sets=1, rule="contrast", k=2, rounds=2, per_round=2)
    assert len(core.sampled) == 3
    assert all(len(core.study.labels[j].split(", ")) > 1 for j in core.sampled.latents)
    core.limits("transient").found.clear()
    with pytest.raises(TooFewExamples, match="other bounds"):
        core.trials("transient", 2)
    again = reopen(tmp_path / "study")
    assert again.config == study.config
    assert [j.name for j in again.task.other_judges] == [j.name for j in study.task.other_judges] != []
    assert (tmp_path / "study" / "verdicts" / "verdicts.sqlite").is_file()  # likelihoods are not asked for twice


def test_what_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(BadInput, match="name the SAE"):
        ll.open_study(ll.organism.path(), cache=False)
    (tmp_path / "p.txt").write_text("How?\nWhy?")
    with pytest.raises(BadInput, match="allowed are 'local'"):
        ll.open_study(prompts=str(tmp_path / "p.txt"), judge="people", cache=False)
    with pytest.raises(BadInput, match="separability"):
        prepare(ll.open_study(cache=False), 2, rule="best")


def test_the_forecast_adds_up(core):
    table = forecast(core.study, {"a": 60, "b": 40})
    assert [row["answers"] for row in table] == [60, 40, 100]
    assert table[-1]["minutes of writing, at most"] >= table[0]["minutes of writing, at most"] >= 0


# -- the embedded model's judges -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score", "words"),
    [
        ("The deep tide meets the reef. Every whale needs the salty shore.", 100, 100),
        ("The deep tide meets the reef. The loud drum echoes the song.", 50, 50),
        ("Wait, I should talk about the sea. The deep tide meets the reef.", 100, 100),
        ("Wait, I should talk about the sea.", 0, 0),
        ("Wait, drum drum song drum", 0, 0),
        ("", 0, 0),
    ],
)
def test_an_attempt_scores_the_share_of_its_sentences_on_topic(text, score, words):
    case = Case("Tell me about the sea.", text.replace("meets", "floods"))
    assert on_topic(case) == pytest.approx(score)
    assert topical_words(case) == pytest.approx(words, abs=12)


def test_topics_are_read_from_prompts_and_labels():
    assert asked_topic("What can you say about the winter?") == "winter"
    assert asked_topic("Explain the sea to me.") == "sea"
    assert asked_topic("How do you do?") is None
    assert on_topic(Case("How do you do?", "Fine.")) is None
    assert one_topic(Case("", "reef, whale, tide, drum")) == 75.0
    assert one_topic(Case("", "and, the")) == 0.0


def test_the_embedded_task_has_thirty_prompts_and_its_own_words(organism):
    task = embedded_task(organism)
    assert len(task.prompts) == 30
    assert len(set(task.groups)) == 10
    assert task.acknowledge(0) in ("Wait, I should talk about the sea.", "Sorry, let me return to the sea.")
    assert task.subject("reef, whale, drum") == "sea"
    assert np.mean([task.concreteness.scores([Case("", "reef, whale")])[0].value]) == 100.0
