"""SAE edits inside a model: prefill and cached decoding, one batch of many edits, capture, gates, files."""

from dataclasses import replace

import pytest
import torch
from families import build
from interpreter import Interpreter
from sae_kinds import KINDS, make

import latentlens as ll
from latentlens.values.latents import EditLatents, ablate
from latentlens.values.plan_files import load_plan, save_plan

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW = 6
SITE = "resid_post[1]"


@pytest.fixture(scope="module")
def models():
    found = {}
    for family in ("Llama", "GPT-2"):
        lm = ll.load(build(family), cache=False)
        lm.reference_texts = [[3, 4, 5, 6, 7], [8, 9, 10]]
        found[family] = (lm, Interpreter(lm))
    return found


def sae(kind, **options):
    return make(kind, d_in=32, d_sae=64, site=SITE, scale=0.5, **options)


def edits(kind):
    one = sae(kind)
    return {
        "add": [EditLatents(one, add={3: 6.0})],
        "ablate half": [ablate(one, range(32))],
        "clamp and bounds": [EditLatents(one, clamp={1: 3.0}, low={2: 1.0}, high={5: 0.5})],
        "response": [EditLatents(one, add={3: 6.0}, clamp={4: 4.0}, where="response")],
        "prompt, decaying": [EditLatents(one, clamp={4: 4.0}, where="all", schedule=ll.Schedule(decay=0.5))],
        "at another block": [EditLatents(one, clamp={4: 4.0}, site="resid_post[0]")],
        "at the heads": [EditLatents(one, clamp={4: 4.0}, add={5: 1.0}, site="z[1]")],
        "in median norms": [EditLatents(one, add={3: 0.8}, unit="norm")],
        "with an addition before and after": [
            ll.Add(one.direction(9), 2.0),
            ablate(one, range(20)),
            ll.Add(one.direction(11), 2.0),
        ],
        "gated": [ll.Gate(EditLatents(one, add={3: 6.0}), ll.Condition(one.direction(2), 0.0))],
        "normalising": [EditLatents(sae(kind, normalisation="layer_norm"), clamp={1: 4.0}, add={2: 3.0})],
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_batched_cached_decoding_equals_full_recomputation_of_each_row(models, family, kind):
    """all edits in one batch, each row its own; against the slow reference, token for token, greedy and sampled"""
    lm, slow = models[family]
    names, chosen = zip(*edits(kind).items(), strict=True)
    prompts = [ROWS[i % 3] for i in range(len(chosen))]
    for temperature in (0.0, 1.0):
        runs = lm.generate(prompts, NEW, 1, temperature, seed=2, steer=list(chosen), stop_ids=(), allow_idle=True)
        for name, plan, run in zip(names, chosen, runs, strict=True):
            (prepared,) = lm._steered(plan, 1)[1]
            assert run.generated == slow.generate(run.row.ids, prepared, NEW, temperature, 2), (name, temperature)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_sees_what_an_encode_edit_decode_hook_with_error_term_gives(models, kind):
    """the splice that SAELens users write, as a plain torch hook"""
    lm, _ = models["Llama"]
    one, ids = sae(kind), ROWS[0]
    item = EditLatents(one, add={3: 2.0}, clamp={7: 1.0, 8: 0.0})

    def splice(_module, _inputs, out):
        states = out if torch.is_tensor(out) else out[0]
        codes = one.encode(states)
        changed = codes.clone()
        changed[..., 7], changed[..., 8] = 1.0, 0.0
        changed[..., 3] += 2.0
        new = states + one.decode(changed) - one.decode(codes)
        return new if torch.is_tensor(out) else (new, *out[1:])

    handle = lm.layout.blocks[1].register_forward_hook(splice)
    try:
        with torch.no_grad():
            expected = lm.model(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()
    torch.testing.assert_close(lm.logits([ids], where="all", steer=item), expected.float(), atol=2e-5, rtol=1e-5)
    with lm.steer(item), torch.no_grad():
        torch.testing.assert_close(lm.model(torch.tensor([ids])).logits[0], expected, atol=2e-5, rtol=1e-5)


def test_ablating_silent_latents_leaves_the_model_bit_for_bit(models):
    lm, _ = models["Llama"]
    one = sae("jumprelu")
    x = lm.activations(ROWS, sites=SITE)[SITE]
    silent = torch.nonzero((one.encode(x) == 0).all(0)).flatten().tolist()
    assert silent
    clean = lm.activations(ROWS, sites="resid_post[*]")
    edited = lm.activations(ROWS, sites="resid_post[*]", steer=ablate(one, silent))
    for site in clean:
        assert torch.equal(clean[site], edited[site])


def test_an_ablated_latent_stays_silent_where_the_sae_reads_it(models):
    """after the edit the decoder row is gone; with orthonormal rows so is the code"""
    lm, _ = models["Llama"]
    one = make("relu", d_in=32, d_sae=32, site=SITE)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    one = replace(one, W_enc=basis, W_dec=basis.T.contiguous(), b_enc=torch.zeros(32), b_dec=torch.zeros(32))
    acts = lm.activations(ROWS, sites=SITE, steer=ablate(one, [3, 4]))
    assert float(one.encode(acts[SITE], [3, 4]).max()) < 1e-5
    assert float(one.encode(lm.activations(ROWS, sites=SITE)[SITE], [3, 4]).max()) > 0.01


def test_edited_activations_are_cached_under_the_sae_and_its_numbers(tmp_path):
    lm = ll.load(build("Llama"), cache=ll.ActivationCache(tmp_path))
    item = EditLatents(sae("topk"), clamp={1: 2.0})
    first = lm.activations(ROWS, steer=item)
    assert lm.activations(ROWS, steer=EditLatents(sae("topk"), clamp={1: 2.0})).about["forwards"] == 0
    assert lm.activations(ROWS, steer=EditLatents(sae("topk"), clamp={1: 2.5})).about["computed_rows"] == 3
    assert lm.activations(ROWS, steer=EditLatents(sae("topk", seed=1), clamp={1: 2.0})).about["computed_rows"] == 3
    assert first.about["computed_rows"] == 3


def test_a_model_in_bfloat16_and_an_sae_in_float32_meet(llama):
    lm = ll.load(llama.to(torch.bfloat16), cache=False)
    item = EditLatents(sae("jumprelu"), add={3: 2.0}, clamp={1: 1.0})
    clean = lm.activations(ROWS[:1], sites=SITE)[SITE]
    new = lm.activations(ROWS[:1], sites=SITE, steer=item)[SITE]
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, item.edit(clean.float()).to(torch.bfloat16))


def test_plans_with_latents_are_saved_by_the_fingerprint_of_their_sae(tmp_path):
    one = sae("gated")
    plan = [EditLatents(one, add={3: 2.0}, low={1: 0.5}, where="response"), ablate(one, [4, 5], site="resid_post[0]")]
    back = load_plan(save_plan(plan, tmp_path / "plan"), saes=[one])
    assert [item.fingerprint for item in back] == [item.fingerprint for item in plan]
    assert back[0].sae is one


def test_an_sae_of_another_width_is_refused(models):
    lm, _ = models["Llama"]
    with pytest.raises(ll.errors.BadInput, match="6"):
        lm.activations(ROWS, steer=ablate(make("relu", site=SITE), [1]))
