"""A study on a tiny random model: plans, replays, resuming, thresholds, layers, quantised and offloaded models."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import build, configured
from sae_kinds import make
from test_off_topic import planted
from test_placement import offloaded
from tinytok import tokenizer

import latentlens as ll
from latentlens.access.judging.attempt_judges import SegmentJudge
from latentlens.access.judging.judge import RuleJudge
from latentlens.access.measures.finetune import Lora
from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods import esr, latents
from latentlens.methods.off_topic import RULES, by_separability
from latentlens.resistance import ablation, core, detection, detectors, inducing, sampling, thresholds
from latentlens.resistance.study import Study
from latentlens.resistance.task import Task, read_labels, read_prompts
from latentlens.values.calibration import ScoreThreshold
from latentlens.values.codes import Codes
from latentlens.values.esr import Condition, ThresholdSet, Trial

PROMPTS = ("the cat", "red dog", "one two three", "blue mat on")
JUDGE = SegmentJudge(RuleJudge(lambda case: 100.0 * (1 - case.response.count("five") / 6), "no five"))
TASK = Task(PROMPTS, JUDGE, labels={j: f"label {j}" for j in range(64)}, max_new_tokens=6, temperature=1.0)
TRIALS = [Trial(j, p, 10 * j + p, 3.0) for j in (3, 9) for p in range(4)]


def sae(d=32, **options):
    return make("relu", d_in=d, d_sae=64, site="resid_post[1]", scale=0.5, **options)


def study(lm=None, folder=None, task=TASK, **options):
    lm = lm or ll.load(build("Llama"), tokenizer=tokenizer(), cache=False)
    options.setdefault("unit", "raw")
    return Study(lm, sae(), task, folder=folder, **options)


@pytest.fixture(scope="module")
def one():
    return study()


def test_clamps_come_first_and_the_steered_latent_is_never_clamped(one):
    trial = TRIALS[0]
    clamp, add = one.plan(trial, Condition("x", "transient", ablated=(2, 3, 5)))
    assert (clamp.clamp, add.add) == ({2: 0.0, 5: 0.0}, {3: 3.0})
    assert (str(clamp.where), str(add.where), add.schedule.stop) == ("all", "last_prompt+response", 8)
    assert one.plan(trial, Condition("x", steer=False)) == ()
    (off,) = one.plan(trial, Condition("x", steer=False, ablated=(2, 3)))
    assert off.clamp == {2: 0.0, 3: 0.0}
    (alone,) = one.plan(trial, Condition("x", ablated=(3,)))
    assert alone.add == {3: 3.0}


def test_the_edit_is_the_published_closed_form(one):
    """h' = h + a d_s - sum_j f_j d_j over the clamped latents, the error term kept"""
    trial, off = TRIALS[0], (1, 2, 3, 4)
    row = [one.task.chat(0)]
    plain = one.lm.activations(row, "resid_post[1]")["resid_post[1]"]
    moved = one.lm.activations(row, "resid_post[1]", steer=list(one.plan(trial, Condition("x", ablated=off))))
    f, d = one.sae.encode(plain), one.sae.W_dec
    by_hand = plain + 3.0 * d[3] - sum(f[:, [j]] * d[j] for j in (1, 2, 4))
    torch.testing.assert_close(moved["resid_post[1]"], by_hand, atol=1e-5, rtol=1e-5)


def test_replays_are_identical_and_conditions_that_do_nothing_are_paired(one):
    made = [Condition("steered"), Condition("again"), Condition("none", steer=False), Condition("zero", strength=0.0)]
    first, second = one.answers(TRIALS, made), one.answers(TRIALS[::-1], made)
    assert first["steered"].tokens == first["again"].tokens == second["steered"].tokens[::-1]
    assert first["none"].tokens == first["zero"].tokens != first["steered"].tokens
    alone = one.answers(TRIALS[5:6], made[:1])["steered"]
    assert alone.tokens[0] == first["steered"].tokens[5]
    assert esr.paired(first["none"], first["zero"]).p == 1.0


def test_each_trial_has_its_own_seed(one):
    same = [Trial(3, 0, s, 0.0) for s in range(6)]
    assert len(set(one.answers(same, [Condition("x", steer=False)])["x"].tokens)) > 1


def test_meta_prompts_reach_the_prompt_with_the_label():
    asking = study()
    chat = asking.task.chat(0, "ignore_latent_label", asking.subject(7))
    assert chat[-1]["content"].startswith("the cat ")
    assert "label 7" in chat[-1]["content"]
    assert asking.subject(-1) == ""
    with pytest.raises(BadInput, match="dont_get_distracted"):
        asking.task.chat(0, "nonsense")
    system = replace(TASK, meta={"self_monitor": ("system", "stay")})
    assert system.chat(1, "self_monitor")[0] == {"role": "system", "content": "stay"}


def test_a_second_run_on_the_folder_writes_nothing(tmp_path):
    made = [Condition("steered"), Condition("off", ablated=(1, 2))]
    one, two = study(folder=tmp_path), study(folder=tmp_path)
    first = one.answers(TRIALS, made)
    more = two.answers([*TRIALS, Trial(11, 0, 5, 3.0)], made)
    assert (one.rows_run, two.rows_run, two.rows_found) == (16, 2, 16)
    assert more["off"].tokens[:8] == first["off"].tokens


def test_hook_and_readout_are_separate_from_the_saes_own_layer():
    other = study(hook="resid_post[0]", readout=2)
    assert (str(other.sae.site), str(other.hook), str(other.reading.site)) == (
        "resid_post[1]", "resid_post[0]", "resid_post[2]",
    )  # fmt: skip
    assert {str(e.site) for e in other.plan(TRIALS[0], Condition("x", ablated=(2,)))} == {"resid_post[0]"}
    codes = other.codes([other.task.chat(0)])
    states = other.lm.activations([other.task.chat(0)], "resid_post[2]")["resid_post[2]"]
    torch.testing.assert_close(codes.dense(), other.sae.encode(states))
    for wrong in ("mlp_post[0]", "resid_post[*]"):
        with pytest.raises(BadInput):
            study(hook=wrong)


def test_a_forecast_is_measured_on_a_batch_as_large_as_batches_will_be(monkeypatch):
    mine, sizes = study(), []
    monkeypatch.setattr(mine.lm, "generate", lambda chats, *_, **__: sizes.append(len(chats)))
    longest = max(map(len, mine.lm.tokens([TASK.chat(p) for p in range(4)]))) + 6
    for budget, rows in ((longest * 40 + 1, 40), (longest * 1000, 256), (1, 1)):
        mine.lm.token_budget = budget
        mine.seconds_per_row()
        assert sizes[-1] == rows
    mine.seconds_per_row(n=7)
    assert sizes[-1] == 7


# -- thresholds --------------------------------------------------------------------------------------------


def sampled(latents=(3, 9, 20), allowed=(0, 1, 2, 3)):
    made = {j: tuple(allowed) for j in latents}
    return sampling.SampledLatents(tuple(latents), {j: str(j) for j in latents}, {}, made, {})


HOW = {"prior": (4.0, 3.0), "bounds": (0.0, 20.0), "rounds": 4, "per_round": 3}


def test_thresholds_in_one_batch_equal_thresholds_alone(one):
    together = thresholds.find(one, sampled(), **HOW)
    for latent in (3, 9, 20):
        alone = thresholds.find(one, sampled((latent,)), **HOW)
        assert alone.found[latent] == together.found[latent]
    assert set(together) == {3, 9, 20}


def test_thresholds_are_kept_with_their_configuration(tmp_path):
    one = study(folder=tmp_path)
    first = thresholds.find(one, sampled((3, 9)), **HOW)
    n = one.rows_run
    again = thresholds.find(one, sampled((9, 3)), **HOW)
    assert (one.rows_run, again.found[3]) == (n, first.found[3])
    thresholds.find(one, sampled((3, 20)), **HOW)
    assert one.rows_run == n + 12  # one new latent: 4 rounds of 3
    fewer = thresholds.find(one, sampled((3,), (0, 1)), **HOW)
    assert one.rows_run > n + 12  # the same latent on other prompts is another question
    assert fewer.found[3].trace != first.found[3].trace
    n = one.rows_run - 12
    other = thresholds.find(one, sampled((3, 9)), "transient", **HOW)
    assert one.rows_run > n + 12
    assert other.config["schedule"] == "transient"
    held = json.loads((tmp_path / "thresholds.json").read_text())
    assert len(held) == 2
    (tmp_path / "thresholds.json").write_text('{"cut sh')
    assert thresholds.find(study(folder=tmp_path), sampled((3, 9)), **HOW).found == first.found


def test_the_threshold_of_a_known_curve_is_found_and_what_never_falls_says_so():
    """the judge sees the strength itself: score 100 (1 - strength / 8), so 30 is reached at 5.6"""

    class Known(Study):
        def answers(self, trials, conditions, **options):
            made = super().answers(trials, conditions, **options)
            name = conditions[0].name
            falls = {3: lambda s: 100 * (1 - s / 8), 9: lambda s: 90.0}
            parts = [
                tuple(replace(a, score=float(np.clip(falls[t.latent](t.strength), 0, 100))) for a in row[:1])
                for t, row in zip(trials, [JUDGE.attempts([c])[0] for c in self.cases(made[name])], strict=True)
            ]
            parts = [p or (ablated_attempt(falls, t),) for p, t in zip(parts, trials, strict=True)]
            return {name: made[name].rejudged(parts)}

    def ablated_attempt(falls, trial):
        from latentlens.values.attempts import Attempt

        return Attempt(0, 0, "", float(np.clip(falls[trial.latent](trial.strength), 0, 100)))

    lm = ll.load(build("Llama"), tokenizer=tokenizer(), cache=False)
    found = thresholds.find(Known(lm, sae(), TASK, unit="raw"), sampled((3, 9)), **{**HOW, "rounds": 10})
    assert found.bracketed == {3: pytest.approx(5.6, abs=0.4)}
    assert found.found[9].end == "high"
    assert found.to_frame()["bracketed"].tolist() == [True, False]


def test_a_latent_without_an_allowed_prompt_has_no_threshold(one):
    few = sampled((3, 9))
    few = replace(few, allowed={3: (0,), 9: ()})
    assert set(thresholds.find(one, few, **HOW)) == {3}
    drawn = sampling.trials(few, {3: 2.0, 9: 2.0}, 5)
    assert [(t.latent, t.prompt) for t in drawn] == [(3, 0)]


# -- sampling, detectors, parts -----------------------------------------------------------------------------


def test_sampled_latents_are_labelled_silent_and_allowed_where_answers_are_silent(one):
    sparse = make("topk", d_in=32, d_sae=64, site="resid_post[1]", scale=0.5, k=3)
    one = Study(one.lm, sparse, TASK, unit="raw")
    baseline = one.baseline(2)
    found = sampling.sample(one, 6, baseline=baseline, exclude=(0,))
    prompts = one.codes([one.task.chat(p) for p in range(4)]).dense()
    answers = one.codes(one.conversations(baseline), "response")
    for j in found.latents:
        assert float(prompts[:, j].max()) == 0.0
        for p in range(4):
            mine = np.isin(answers.labels["text"], np.flatnonzero(baseline.prompt_indices == p))
            silent = float(answers.dense([j])[mine].max()) == 0.0
            assert (p in found.allowed[j]) == silent
    assert 0 not in found.latents
    again = sampling.sample(one, 6, baseline=baseline, exclude=(0,))
    assert again.latents == found.latents
    with pytest.raises(BadInput, match="top-100"):
        sampling.sample(one, 2, relevance="loud")


def test_detectors_and_controls_are_disjoint_and_shown_where_they_fire():
    """planted: latent 0 fires in wrong answers only, 1 more in wrong ones; 3 is as strong and fires in both"""
    normal, shuffled = planted()
    labels = {"text": np.arange(40), "position": np.zeros(40, int), "token": np.array([f"w{i}" for i in range(40)])}
    made = {name: rule(normal, shuffled) for name, rule in RULES.items()}
    fires = latents.firing(Codes.concatenated([normal, shuffled]))
    found = detectors.Detected(made, fires, Codes.from_dense(shuffled.dense(), labels=labels))
    chosen = found.chosen()
    assert (chosen.rule, set(chosen.latents)) == ("separability", {0, 1})  # no rule finds three: the first in order
    none = {**made, "separability": by_separability(normal, normal)}
    assert detectors.Detected(none, fires, found.codes).chosen().rule == "derangement"  # of those that find any
    two = found.chosen("contrast")
    assert set(two.latents) == {0, 1}
    sets = found.controls(two, n_sets=3)
    assert list(sets) == [f"{kind} {i}" for kind in ("uniform", "matched") for i in (1, 2, 3)]
    for them in sets.values():
        assert len(set(them)) == 2
        assert not set(them) & {0, 1}
    assert len({tuple(sorted(them)) for them in sets.values()}) > 1
    close = np.abs(fires.mean[list(sets["matched 1"])] - fires.mean[list(two.latents)])
    assert close.mean() < np.abs(fires.mean[2:, None] - fires.mean[list(two.latents)]).mean()
    assert set(found.frame_of({"detectors": two.latents, **sets})["set"]) == {"detectors", *sets}
    shown = found.where(two, k=1, texts=2)
    assert shown["latent"].tolist() == [two.latents[0]] * 2
    assert shown["value"].is_monotonic_decreasing
    with pytest.raises(BadInput, match="separability"):
        found.chosen("best")
    empty = Codes.from_dense(torch.zeros(4, 9))
    nothing = detectors.Detected({name: rule(empty, empty) for name, rule in RULES.items()}, fires, empty)
    with pytest.raises(TooFewExamples, match="another SAE"):
        nothing.chosen()


def test_conditions_of_the_headline():
    made = ablation.conditions({"detectors": (1, 2), "other rule": (3,)}, {"uniform 1": (5, 6)}, "transient")
    assert [c.name for c in made] == [
        "unsteered", "steered", "detectors ablated", "other rule ablated", "ablated, unsteered", "uniform 1 ablated",
    ]  # fmt: skip
    assert [c.steer for c in made] == [False, True, True, True, False, True]
    assert made[4].ablated == (1, 2)


def test_halves_are_cut_at_the_restart_or_in_the_middle():
    assert detection.halves("A b c d. Wait, no. E.") == ("A b c d.", "Wait, no. E.")
    assert detection.halves("A b. C d. E f. G h.") == ("A b. C d.", "E f. G h.")
    assert detection.halves("one sentence only") == ("one sentence only", "")


def test_training_texts_learn_from_the_acknowledgement_on(one):
    talking = replace(TASK, acknowledge=lambda p: "ten nine")
    mine = Study(one.lm, one.sae, talking, unit="raw")
    baseline = mine.baseline(3)
    ends = frozenset(t for ids in baseline.tokens for t in ids[1:3])
    mine.lm._ends = ends
    try:
        rows = inducing.corrections(mine, baseline)
        for row in rows:
            learnt = [t for t in row.labels if t != -100]
            at = len(row.ids) - len(learnt)
            assert list(row.ids[at:]) == learnt
            assert mine.lm.tokenizer.decode(learnt[:2]) == "ten nine"
            assert row.ids[at - 1] in ends
        for row in inducing.uncorrected(mine, baseline):
            assert any(row.labels[i] == -100 and row.ids[i] in ends for i in range(len(row.ids)))
        plain = inducing.plain(mine, baseline)
        assert [sum(t != -100 for t in row.labels) for row in plain] == [len(ids) for ids in baseline.tokens]
    finally:
        mine.lm._ends = None


def test_files_of_prompts_and_labels(tmp_path):
    (tmp_path / "p.txt").write_text("How?\n\n Why? \n")
    assert read_prompts(tmp_path / "p.txt") == ("How?", "Why?")
    (tmp_path / "l.json").write_text('[{"index": 3, "label": "sea"}, {"latent": 4, "label": " "}]')
    assert read_labels(tmp_path / "l.json") == {3: "sea"}
    (tmp_path / "l.json").write_text('{"7": "drums"}')
    assert read_labels(tmp_path / "l.json") == {7: "drums"}
    (tmp_path / "one.txt").write_text("How?")
    for read, name in (
        (read_prompts, "one.txt"),
        (read_prompts, "none"),
        (read_labels, "p.txt"),
        (read_labels, "none"),
    ):
        with pytest.raises(BadInput):
            read(tmp_path / name)


# -- other placements ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_model_is_studied_with_the_same_calls(quantization, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = 64  # nf4 works on blocks of 64 weights
    configured("Llama", hidden_size=wide, intermediate_size=128)().save_pretrained(tmp_path)
    lm = ll.load(tmp_path, quantization=quantization, tokenizer=tokenizer(), cache=False)
    its = Study(lm, sae(wide), TASK, unit="raw")
    made = its.answers(TRIALS, [Condition("steered"), Condition("off", ablated=(1, 2)), Condition("none", steer=False)])
    assert made["steered"].tokens != made["none"].tokens
    assert esr.rates(made["off"]).n + esr.rates(made["off"]).dropped == 8
    assert thresholds.find(its, sampled((3,)), **HOW).found[3].trace
    ready = core.prepare(its, 3, samples=2, rule="contrast", k=2, **HOW) if _has_contrast(its) else None
    assert ready is None or len(ready.chosen) <= 2


def taught(its, monkeypatch, shares, **how):
    """`by_share` at fixed thresholds: what is tested is which weights answered"""

    def fixed(study, drawn, schedule, **options):
        point = ScoreThreshold(3.0, 2.0, 4.0, 0.95, 0.3, 0.3, ((3.0, 0.3),), 0, True)
        return ThresholdSet(dict.fromkeys(options["latents"], point))

    monkeypatch.setattr(inducing.thresholds, "find", fixed)
    baseline = its.baseline(3)
    its.lm._ends = frozenset(t for ids in baseline.tokens for t in ids[1:3])
    ready = core.Core(its, baseline, None, None, {}, sampled((3, 9)), {})
    how = {"epochs": 3, "batch": 4, "n_rows": 12, "lr": 2e-2, "lora": Lora(4, 8, 0.0), **how}
    return inducing.by_share(ready, "persistent", shares=shares, per_latent=4, **how)


def quantised(folder):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    if not (folder / "model").exists():
        configured("Llama", hidden_size=64, intermediate_size=128)().save_pretrained(folder / "model")
    return ll.load(folder / "model", quantization="nf4", tokenizer=tokenizer(), cache=False)


def test_shares_of_corrections_are_taught_to_one_quantised_model_without_touching_each_other(tmp_path, monkeypatch):
    one = Study(quantised(tmp_path), sae(64), TASK, unit="raw")
    before = one.answers(TRIALS, [Condition("steered")])["steered"].tokens
    both = taught(one, monkeypatch, (0.1, 0.9))
    alone = taught(Study(quantised(tmp_path), sae(64), TASK, unit="raw"), monkeypatch, (0.9,))
    assert [i.share for i in both] == [None, 0.1, 0.9]
    assert both[2].loss == alone[1].loss
    assert [repr(both[i].rates) for i in (0, 2)] == [repr(i.rates) for i in alone]
    assert both[1].loss != both[2].loss
    assert one.answers(TRIALS, [Condition("steered")])["steered"].tokens == before
    with pytest.raises(BadInput, match="unlearn"):
        taught(one, monkeypatch, (0.9,), unlearn=True)


def test_teaching_goes_on_where_it_was_and_counts_what_tuned_models_write(tmp_path, monkeypatch):
    first, again = (Study(quantised(tmp_path), sae(64), TASK, unit="raw", folder=tmp_path / "runs") for _ in range(2))
    made = taught(first, monkeypatch, (0.1, 0.9))
    assert first.rows_run == 12 + 3 * (8 + 8)  # unsteered answers; three models, eight trials in two conditions
    assert [repr(i) for i in taught(again, monkeypatch, (0.1, 0.9))] == [repr(i) for i in made]
    assert again.rows_run == 0


def test_adapters_are_taught_on_top_of_what_was_unlearnt(monkeypatch):
    pytest.importorskip("peft")
    found = taught(study(), monkeypatch, (0.5,), unlearn=True, epochs=6)
    assert [i.share for i in found] == [None, None, 0.5]
    assert "unlearnt" in found[1].name


def _has_contrast(its):
    return len(detectors.detect(its, its.baseline(2)).by_rule["contrast"]) > 0


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_an_offloaded_model_answers_as_in_memory(kind, tmp_path, one):
    there = Study(ll.load(offloaded(kind, tmp_path), tokenizer=tokenizer(), cache=False), sae(), TASK, unit="raw")
    made = [Condition("steered"), Condition("off", ablated=(1, 2))]
    for name, found in there.answers(TRIALS, made).items():
        assert found.tokens == one.answers(TRIALS, made)[name].tokens
