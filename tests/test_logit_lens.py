"""The logit lens applies the model's own last steps: at the last block it is the model."""

import math

import numpy as np
import pytest
import torch
from families import FAMILIES, build

import latentlens as ll
from latentlens.access.logit_lens import logits_of
from latentlens.errors import BadInput, SiteNotFound

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20]]


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_block_the_lens_is_the_model(family):
    lm = ll.load(build(family), cache=False)
    acts = lm.activations(ROWS, sites=["resid_post[-1]", "logits"])
    torch.testing.assert_close(
        logits_of(lm.layout, acts["resid_post[-1]"]), acts["logits"].float(), rtol=1e-4, atol=1e-4
    )


def test_before_it_the_final_norm_and_the_unembedding_are_applied_by_hand(llama):
    lm = ll.load(llama, cache=False)
    x = lm.activations(ROWS, sites="resid_post[0]")["resid_post[0]"]
    norm = x * (x.pow(2).mean(-1, keepdim=True) + llama.config.rms_norm_eps).rsqrt() * llama.model.norm.weight
    logits = norm @ llama.lm_head.weight.T
    found = lm.logit_lens(ROWS, sites="resid_post[0]", k=3, watch=[7])
    p = logits.softmax(-1).detach()
    assert found.top[0].tolist() == p.topk(3).indices.tolist()
    np.testing.assert_allclose(found.p[0], p.topk(3).values.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.entropy[0], -(p * p.log()).sum(-1).numpy(), rtol=1e-4)
    q = lm.logits(ROWS, where="all").softmax(-1)
    np.testing.assert_allclose(found.kl[0], (q * (q.log() - p.log())).sum(-1).numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.watched["7"][0], p[:, 7].numpy(), rtol=1e-4)
    assert found.next_id.tolist() == [6, 7, 8, 9, 10, 11, -1, 31, 32, -1, -1]
    assert found.next_p[0, 0] == pytest.approx(float(p[0, 6]), rel=1e-4)
    assert found.next_rank[0, 0] == int((p[0] > p[0, 6]).sum())
    assert math.isnan(found.next_p[0, -1])


def test_the_last_site_has_no_distance_to_the_model_and_every_site_is_there(llama):
    found = ll.load(llama, cache=False).logit_lens(ROWS)
    assert [str(s) for s in found.sites] == ["resid_pre[0]", *(f"resid_post[{i}]" for i in range(3))]
    assert found.kl[-1].max() < 1e-6
    assert found.kl[0].min() > 1e-3
    assert len(found.to_frame()) == 4 * len(found)


def test_softcapped_logits_stay_inside_the_cap():
    lm = ll.load(build("Gemma2"), cache=False)
    cap = lm.model.config.final_logit_softcapping
    states = 1000 * torch.randn(5, lm.layout.d_model, generator=torch.Generator().manual_seed(0))
    assert float(logits_of(lm.layout, states).abs().max()) <= cap


def test_rows_in_parts_are_the_rows_at_once(llama, monkeypatch):
    lm = ll.load(llama, cache=False)
    whole = lm.logit_lens(ROWS)
    monkeypatch.setattr("latentlens.access.logit_lens._VALUES", 5 * 120)
    parts = lm.logit_lens(ROWS)
    np.testing.assert_allclose(whole.p, parts.p, rtol=1e-4)
    assert whole.top.tolist() == parts.top.tolist()


def test_a_plan_is_read_as_it_acts_and_surrounding_steers_are_not_applied_twice(llama):
    lm = ll.load(llama, cache=False)
    push = ll.Add(ll.Direction(torch.ones(lm.layout.d_model), "resid_post[2]"), 2.0)
    plain, steered = lm.logit_lens(ROWS), lm.logit_lens(ROWS, steer=push)
    assert not np.allclose(plain.p[-1], steered.p[-1])
    np.testing.assert_allclose(plain.p[:-1], steered.p[:-1], rtol=1e-5)
    with lm.steer(push):
        around = lm.logit_lens(ROWS)
    np.testing.assert_allclose(around.p, steered.p, rtol=1e-5)


def test_no_hook_is_left_and_the_cache_answers_the_second_time(llama, tmp_path):
    lm = ll.load(llama, cache=tmp_path)
    first = lm.logit_lens(ROWS)
    second = lm.logit_lens(ROWS)
    assert (first.about["forwards"], second.about["forwards"]) == (1, 0)
    assert not sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.modules())


def test_words_to_watch_and_views_on_the_embedded_model(organism):
    text = organism.tokens("the cat")[0].ids
    word = organism.tokenizer.decode([text[-1]])
    found = organism.logit_lens(["the cat", "a dog"], watch=[int(text[-1])])
    assert list(found.watched) == [word]
    one = found.of_text(1)
    assert set(one.labels["text"]) == {1}
    said = one.says("resid_post[5]")
    assert len(said) == 5
    assert said == sorted(said, key=lambda pair: -pair[1])
    assert "<script" not in found._repr_html_()
    assert "resid_post[5]" in found._repr_html_()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda lm: lm.logit_lens(ROWS, sites="mlp_out[0]"), BadInput, "residual stream"),
        (lambda lm: lm.logit_lens(ROWS, k=0), BadInput, "k=0"),
        (lambda lm: lm.logit_lens(ROWS, watch=[120]), BadInput, "0 to 119"),
        (lambda lm: lm.logit_lens(ROWS, watch=["word"]), BadInput, "token ids"),
        (lambda lm: lm.logit_lens(ROWS).of_text(9), BadInput, "0 to 2"),
        (lambda lm: lm.logit_lens(ROWS).says("resid_post[7]"), SiteNotFound, "Held"),
    ],
)
def test_bad_arguments_are_named(llama, call, error, says):
    with pytest.raises(error, match=says):
        call(ll.load(llama, cache=False))
