"""Steering models whose weights are quantised or live elsewhere: edits need no weights, only states."""

import copy

import pytest
import torch
from families import build, configured
from interpreter import Interpreter
from tinytok import tokenizer

import latentlens as ll

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW, D = 5, 32


def direction(seed, site="resid_post[1]", d=D):
    return ll.Direction(torch.randn(d, generator=torch.Generator().manual_seed(seed)), site)


PLANS = [
    [ll.Add(direction(0), 4.0)],
    None,
    [ll.Reflect(direction(1)), ll.Clamp(direction(2), low=1.0, where="response")],
]


def offloaded(kind, folder):
    from accelerate import cpu_offload, disk_offload

    model = copy.deepcopy(build("Llama"))
    if kind == "cpu":
        return cpu_offload(model, execution_device="cpu")
    disk_offload(model, offload_dir=str(folder), execution_device="cpu")
    return model


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_offloaded_models_are_steered_bit_for_bit_as_in_memory(kind, tmp_path):
    here = ll.load(build("Llama"), cache=False)
    there = ll.load(offloaded(kind, tmp_path), cache=False)
    assert next(there.layout.blocks[1].parameters()).device.type == "meta"
    a, b = (lm.generate(ROWS, NEW, 2, 1.0, steer=PLANS, stop_ids=(), record="resid_post[1]") for lm in (here, there))
    assert [run.generated for run in a] == [run.generated for run in b]
    assert torch.equal(a.readings["after"]["resid_post[1]"], b.readings["after"]["resid_post[1]"])
    with there.steer(PLANS[0]), torch.no_grad():
        theirs = there.model(torch.tensor([ROWS[0]])).logits[:, -1]
    torch.testing.assert_close(theirs, here.logits(ROWS[:1], steer=PLANS[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_models_take_a_plan_per_row(quantization, tmp_path):
    """Row by row against plain hooks: products of a batch and of one row may round apart after quantisation."""
    pytest.importorskip("bitsandbytes")
    wide = 64  # nf4 works on blocks of 64 weights
    configured("Llama", hidden_size=wide, intermediate_size=128)().save_pretrained(tmp_path)
    lm = ll.load(tmp_path, quantization=quantization, tokenizer=tokenizer(), cache=False)
    a, b = direction(0, d=wide), direction(1, d=wide)
    plans = [[ll.Add(a, 4.0)], None, [ll.Reflect(a), ll.Clamp(b, low=1.0, where="last")]]
    rows = [[6 + i for i in row[:3]] for row in ([0, 1, 2], [3, 4], [5, 6, 7])]
    together, slow = lm.activations(rows, sites="resid_post[*]", steer=plans), Interpreter(lm)
    for i, plan in enumerate(plans):
        _, found = slow.forward(lm.tokens([rows[i]])[0], lm._steered(plan, 1)[1][0], together.sites)
        for site in together:
            mine, alone = together[site][together.labels["text"] == i].float(), found[site].reshape(-1, wide).float()
            assert float((mine - alone).norm() / alone.norm()) < 0.02
    moved = lm.activations(rows[:1], sites=1, steer=plans[0])["resid_post[1]"].float()
    clean = lm.activations(rows[:1], sites=1)["resid_post[1]"].float()
    torch.testing.assert_close(moved - clean, (4 * a.vector).expand_as(clean), atol=0.05, rtol=0.02)
    assert len(lm.generate(rows, NEW, steer=plans, stop_ids=())) == 3
