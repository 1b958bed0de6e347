"""What is read while a model writes, and what `runs.effect()` says the edits did."""

import numpy as np
import pytest
import torch
from families import build
from interpreter import Interpreter
from tinytok import tokenizer

import latentlens as ll
from latentlens.access.editing.effect import kl_divergence
from latentlens.errors import BadInput
from latentlens.values.sites import Site
from latentlens.values.where import steered_positions

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW, D = 6, 32
BLOCK = Site("resid_post", 1)


def direction(seed, site="resid_post[1]"):
    return ll.Direction(torch.randn(D, generator=torch.Generator().manual_seed(seed)), site)


@pytest.fixture(scope="module", params=["Llama", "GPT-2", "OPT"])
def lm(request):
    return ll.load(build(request.param), cache=False)


PLANS = [[ll.Add(direction(0), 4.0)], None, [ll.Reflect(direction(1)), ll.Add(direction(2), 2.0, where="response")]]


@pytest.mark.parametrize("where", ["response", "all", "last_prompt+response", "prompt", "last"])
@pytest.mark.parametrize("stops", [(), range(0, 100, 3)])
def test_states_read_while_writing_equal_those_of_a_second_pass(lm, where, stops):
    record = ll.Record(["resid_post[*]", "mlp_out[0]"], where=where, last_token=True)
    runs = lm.generate(ROWS, NEW, 2, 1.0, seed=1, steer=PLANS, stop_ids=stops, record=record, allow_idle=True)
    read = runs.readings["after"]
    steer = [PLANS[run.prompt_index] for run in runs]
    again = lm.activations(runs, sites=["resid_post[*]", "mlp_out[0]"], where="all", steer=steer)
    keep = []
    for i, run in enumerate(runs):
        positions = steered_positions(ll.Where.of(where), run.row.continued(run.generated))
        rows = np.flatnonzero(again.labels["text"] == i)
        keep += [rows[p] for p in positions]
    for site in read:
        torch.testing.assert_close(read[site], again[site][keep], atol=3e-5, rtol=1e-4)
    for name in ("text", "position", "token_id", "generated", "special"):
        assert read.labels[name].tolist() == again.labels[name][keep].tolist(), name


def test_without_the_extra_forward_the_last_token_is_left_out(lm):
    runs = lm.generate(ROWS, NEW, stop_ids=(), record="resid_post[1]")
    read = runs.readings["after"]
    assert np.bincount(read.labels["text"]).tolist() == [NEW - 1] * 3
    one_more = lm.generate(ROWS, NEW, stop_ids=(), record=ll.Record("resid_post[1]", last_token=True)).readings["after"]
    assert np.bincount(one_more.labels["text"]).tolist() == [NEW] * 3


def test_before_and_after_an_edit_differ_by_the_edit(lm):
    edit = ll.Add(direction(0), 4.0)
    runs = lm.generate(ROWS, NEW, steer=edit, stop_ids=(), record=ll.Record("resid_post[1]", "all", "both"))
    moved = runs.readings["after"][BLOCK] - runs.readings["before"][BLOCK]
    torch.testing.assert_close(moved, (4.0 * direction(0).vector).expand_as(moved), atol=2e-5, rtol=1e-4)


def test_recording_changes_no_token(lm):
    how = {"samples": 2, "temperature": 1.0, "steer": PLANS, "stop_ids": range(0, 100, 7), "allow_idle": True}
    plain, read = lm.generate(ROWS, NEW, **how), lm.generate(ROWS, NEW, record=ll.Record("resid_post[*]"), **how)
    assert [run.generated for run in plain] == [run.generated for run in read]


def test_what_cannot_be_recorded_is_refused(lm):
    with pytest.raises(BadInput, match="last position only"):
        lm.generate(ROWS, NEW, record="logits")
    with pytest.raises(BadInput, match="nothing to read"):
        lm.generate(ROWS, NEW, record=ll.Record())
    with pytest.raises(BadInput, match="'after', 'before' and 'both'"):
        ll.Record("resid_post[0]", edits="during")
    with pytest.raises(ll.errors.SiteNotFound):
        lm.generate(ROWS, NEW, record="resid_post[9]")


# -- effect ---------------------------------------------------------------------------------------------


def test_kl_by_hand():
    for strength, expected in ((0.4717, 0.1),):
        p, q = torch.tensor([[strength, -strength]]), torch.zeros(1, 2)
        assert float(kl_divergence(p, q)) == pytest.approx(expected, abs=1e-4)
    assert float(kl_divergence(torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2))) == pytest.approx(
        np.log(2), abs=1e-6
    )


def test_effect_equals_brute_force(lm):
    runs = lm.generate(ROWS, NEW, temperature=1.0, seed=1, steer=PLANS, stop_ids=())
    effect, slow = runs.effect(), Interpreter(lm)
    for i, (run, plan) in enumerate(zip(runs, PLANS, strict=True)):
        row = run.row.continued(run.generated[:-1])
        clean, states = slow.forward(row, (), [BLOCK])
        steered, _ = slow.forward(row, lm._steered(plan, 1)[1][0])
        p, q = (x[run.row.n_prompt - 1 :].log_softmax(-1) for x in (steered, clean))
        expected = (p.exp() * (p - q)).sum(-1)
        assert effect.kl[i].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert len(effect.kl[i]) == NEW
        if i == 0:
            size = 4.0 * direction(0).norm
            assert effect.edits[0].delta_norm == pytest.approx(size, rel=1e-4)
            h = states[BLOCK].reshape(len(row), D).norm(dim=1)
            assert effect.edits[0].relative_norm == pytest.approx(float(np.median(size / h.numpy())), rel=1e-4)
    fired = [(edit.rollout, edit.fired) for edit in effect.edits]
    assert fired == [(0, 7 + NEW - 1), (2, 5 + NEW - 1), (2, NEW - 1)]
    frame = effect.to_frame()
    assert frame["kl_mean"][1] == 0
    assert frame["fired"].tolist() == [12, 0, 15]
    assert "KL to unsteered" in repr(effect)
    assert len(effect.by_edit()) == 3


def test_effect_of_a_slice_and_of_a_closed_gate(lm):
    never = ll.Gate(ll.Add(direction(0), 4.0), ll.Condition(direction(1, "resid_post[0]"), 1e9))
    runs = lm.generate(ROWS, NEW, steer=[[never], [ll.Add(direction(0), 1.0)], None], stop_ids=())
    effect = runs[:2].effect()
    assert len(effect.kl) == 2
    assert [edit.fired > 0 for edit in effect.edits] == [False, True]
    assert effect.kl[0].max() == 0
    with pytest.raises(BadInput, match="no model"):
        ll.Rollouts(runs.items).effect()


# -- units and sentences --------------------------------------------------------------------------------


def test_norm_units_are_median_norms_of_content_tokens():
    lm = ll.load(build("Llama"), tokenizer=tokenizer(), cache=False)
    lm.reference_texts = ["the cat sat on the mat", "a dog ran home"]
    acts = lm.activations(lm.reference_texts, sites=1, where="content")["resid_post[1]"]
    norm = float(acts.norm(dim=1).median())
    assert lm.median_norm("resid_post[1]") == pytest.approx(norm)
    assert lm.median_norm(-lm.layout.n_blocks + 1) == pytest.approx(norm)
    v = direction(0)
    unit = lm.activations(ROWS, sites=1, steer=ll.Add(v, 0.5, unit="norm"))
    raw = lm.activations(ROWS, sites=1, steer=ll.Add(v, 0.5 * norm / v.norm))
    torch.testing.assert_close(unit["resid_post[1]"], raw["resid_post[1]"])
    high = lm.activations(ROWS, sites=1, steer=ll.Clamp(v, high=0.1, unit="norm"))["resid_post[1]"]
    assert float(v.project(high).max()) <= 0.1 * norm + 1e-4


def test_a_schedule_per_sentence_follows_the_full_stops(organism):
    lm = organism
    v = ll.Direction(torch.randn(lm.layout.d_model, generator=torch.Generator().manual_seed(0)), "resid_post[3]")
    plan = ll.Add(v, 1.0, unit="norm", where="response", schedule=ll.Schedule(per_sentence=(0.0, 1.5, 0.0)))
    prompts = [[{"role": "user", "content": f"Tell me about the {topic}."}] for topic in ("sea", "garden")]
    special = frozenset(lm.tokenizer.all_special_ids)
    runs = lm.generate(prompts, 30, steer=plan)
    slow = Interpreter(lm, special)
    for run, prompt in zip(runs, prompts, strict=True):
        prepared = lm._steered(plan, 1)[1][0]
        assert prepared[0].schedule.ends == {
            i for i in range(len(lm.tokenizer)) if lm.tokenizer.decode([i]).rstrip(" ")[-1:] in set(".!?\n")
        }
        row, written = lm.tokens([prompt])[0], ()
        for _ in range(len(run.generated)):
            logits, _ = slow.forward(row.continued(written, special), prepared)
            written += (int(logits[-1].argmax()),)
        assert run.generated == written
    clean = lm.generate(prompts, 30)
    assert [a.generated for a in runs] != [b.generated for b in clean]
