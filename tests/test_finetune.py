"""Fine-tuning on masked rows: what is learnt and what is not, adapters, and finding a finished result again."""

import copy

import pytest
import torch
from families import build
from tinytok import tokenizer

import latentlens as ll
from latentlens.access.measures.finetune import Lora, tune
from latentlens.errors import BadInput
from latentlens.values.masked_rows import IGNORED, MaskedRow, masked, mix

PROMPT, WRONG, RIGHT = (6, 7, 8), (9, 10), (11, 12, 2)
ROWS = [masked(PROMPT, WRONG, RIGHT)] * 8
HOW = {"epochs": 6, "batch": 4, "lr": 5e-3, "warmup": 2, "held_out": 0.25}


@pytest.fixture
def lm():
    return ll.load(copy.deepcopy(build("Llama")), tokenizer=tokenizer(), cache=False)


def log_likelihood(lm, row, of):
    logits = lm.activations([list(row)], "logits")["logits"].float().log_softmax(-1)
    return float(sum(logits[i - 1, row[i]] for i in of))


def test_the_mask_leaves_out_prompt_and_wrong_beginning():
    assert masked((1, 2), (3, 4), (5, 6)).labels == (*[IGNORED] * 4, 5, 6)
    assert masked((1, 2), (), (5,)).ids == (1, 2, 5)
    with pytest.raises(BadInput, match="nothing"):
        masked((1, 2), (3,), ())
    with pytest.raises(BadInput, match="one each"):
        MaskedRow((1, 2), (1,))


def test_mixing_counts_both_sides_and_repeats_what_is_short():
    a, b = [masked((1,), (), (i,)) for i in range(10)], [masked((2,), (), (i,)) for i in range(3)]
    rows = mix(a, b, 0.25, 20, seed=1)
    assert sum(row.ids[0] == 1 for row in rows) == 5
    assert len({row for row in rows if row.ids[0] == 2}) == 3
    assert mix(a, b, 0.25, 20, seed=1) == rows
    assert all(row.ids[0] == 2 for row in mix(a, b, 0, 4))
    for wrong in ({"share": 2.0, "n": 3}, {"share": 0.5, "n": 0}):
        with pytest.raises(BadInput):
            mix(a, b, **wrong)
    with pytest.raises(BadInput, match="none"):
        mix([], b, 0.5, 4)


def test_what_is_masked_is_not_learnt_and_the_model_itself_is_left_alone(lm):
    row = PROMPT + WRONG + RIGHT
    before = [log_likelihood(lm, row, of) for of in (range(3, 5), range(5, 8))]
    kept = copy.deepcopy(lm.model.state_dict())
    tuned = tune(lm, ROWS, **HOW)
    after = [log_likelihood(tuned.lm, row, of) for of in (range(3, 5), range(5, 8))]
    assert after[1] > before[1] + 5
    unmasked = tune(lm, [masked(PROMPT, (), WRONG + RIGHT)] * 8, **HOW)
    assert log_likelihood(unmasked.lm, row, range(3, 5)) > -1
    assert after[0] < -5
    assert all(torch.equal(kept[name], value) for name, value in lm.model.state_dict().items())
    assert tuned.losses[-1] < 0.3 * tuned.losses[0]
    assert len(tuned.losses) == 6 * 2  # 6 rows left in batches of 4
    assert tuned.held_out == pytest.approx(-after[1] / 3, abs=1e-3)
    assert not any(p.requires_grad for p in tuned.lm.model.parameters())
    assert not tuned.lm.model.training


def test_padding_does_not_change_the_loss(lm):
    long = masked((6, 7), (), tuple(range(8, 20)))
    from latentlens.access.measures.finetune import _loss

    with torch.no_grad():
        together, n = _loss(lm.model, [ROWS[0], long])
        alone = [_loss(lm.model, [row]) for row in (ROWS[0], long)]
    assert n == sum(count for _, count in alone)
    torch.testing.assert_close(together, sum(total for total, _ in alone), atol=1e-4, rtol=1e-5)


def test_the_same_call_finds_its_result_and_another_does_not(lm, tmp_path):
    first = tune(lm, ROWS, folder=tmp_path, **HOW)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = tune(lm, ROWS, folder=tmp_path, **HOW)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp
    assert again.losses == first.losses
    for a, b in zip(first.lm.model.parameters(), again.lm.model.parameters(), strict=True):
        assert torch.equal(a, b)
    tune(lm, ROWS, folder=tmp_path, **{**HOW, "lr": 1e-3})
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns != stamp


def test_adapters_train_few_weights_work_with_every_verb_and_are_found_again(lm, tmp_path):
    pytest.importorskip("peft")
    row = PROMPT + WRONG + RIGHT
    before = log_likelihood(lm, row, range(5, 8))
    how = {**HOW, "lora": Lora(4, 8, 0.0), "lr": 2e-2, "folder": tmp_path}
    tuned = tune(lm, ROWS, **how)
    assert log_likelihood(tuned.lm, row, range(5, 8)) > before + 2
    assert log_likelihood(lm, row, range(5, 8)) == pytest.approx(before, abs=1e-5)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 200_000
    runs = tuned.lm.generate([list(PROMPT)], 3, steer=ll.Add(ll.Direction(torch.ones(32), "resid_post[1]"), 2.0))
    assert len(runs[0].generated) <= 3
    again = tune(lm, ROWS, **how)
    assert log_likelihood(again.lm, row, range(5, 8)) == pytest.approx(
        log_likelihood(tuned.lm, row, range(5, 8)), abs=1e-4
    )
    contexts = {one.lm._identity.context(hash_weights=True)["weights"] for one in (tuned, again)}
    assert lm._identity.context(hash_weights=True)["weights"] not in contexts


def test_a_tuned_model_may_be_tuned_again_and_begins_where_it_was(lm):
    """adapters of the first tuning are merged, not thrown away: the second starts at the first one's loss"""
    pytest.importorskip("peft")
    how = {**HOW, "lora": Lora(4, 8, 0.0), "lr": 2e-2}
    first = tune(lm, ROWS, **how)
    before = first.lm.activations([[6, 7, 8, 9]], "logits")["logits"]
    for second in (tune(first.lm, ROWS, **how), tune(first.lm, ROWS, **HOW)):
        assert second.losses[0] < first.losses[0] / 2
    assert torch.equal(first.lm.activations([[6, 7, 8, 9]], "logits")["logits"], before)


@pytest.fixture
def small(tmp_path):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    from families import configured

    configured("Llama", hidden_size=64, intermediate_size=128)().save_pretrained(tmp_path / "model")
    return ll.load(tmp_path / "model", quantization="nf4", tokenizer=tokenizer(), cache=False)


def test_a_quantised_model_takes_adapters_only(small):
    with pytest.raises(BadInput, match="lora"):
        tune(small, ROWS, **HOW)
    tuned = tune(small, ROWS, **{**HOW, "lora": Lora(4, 8, 0.0), "lr": 2e-2})
    assert tuned.losses[-1] < tuned.losses[0]
    assert len(tuned.lm.generate([list(PROMPT)], 3, stop_ids=())) == 1


def test_a_quantised_model_is_itself_again_when_its_tuned_form_is_closed(small, tmp_path):
    """one set of weights serves both: several tunings must neither replace nor feed each other"""
    how = {**HOW, "lora": Lora(4, 8, 0.0), "lr": 2e-2}
    other = [masked(PROMPT, (), (20, 21, 2))] * 8

    def logits(model):
        return model.activations([list(PROMPT + RIGHT)], "logits")["logits"].clone()

    plain, context = logits(small), small._identity.context(hash_weights=True)
    first = tune(small, ROWS, folder=tmp_path / "first", **how)
    moved = logits(first.lm)
    assert not torch.equal(moved, plain)
    with pytest.raises(BadInput, match="close"):
        tune(small, other, **how)
    first.close()
    assert torch.equal(logits(small), plain)
    assert small._identity.context(hash_weights=True) == context
    second = tune(small, other, **how)
    fresh = ll.load(tmp_path / "model", quantization="nf4", tokenizer=tokenizer(), cache=False)
    logits(fresh)  # bitsandbytes packs weights on a CPU when they are first used, and rounds their scales
    assert second.losses == tune(fresh, other, **how).losses
    second.close()
    again = tune(small, ROWS, folder=tmp_path / "first", **how)
    assert again.losses == first.losses
    assert torch.equal(logits(again.lm), moved)
    again.close()
    again.close()  # twice does no harm
    assert torch.equal(logits(small), plain)


def test_too_little_is_said(lm):
    for rows, options in ((ROWS[:1], {}), (ROWS, {"epochs": 0}), (ROWS, {"batch": 0})):
        with pytest.raises(BadInput):
            tune(lm, rows, **{**HOW, **options})


def test_four_bit_weights_pass_gradients_on(small):
    """on CPUs that pack 4-bit weights, the first layers would otherwise learn nothing, without a word"""
    first = tune(small, ROWS, **{**HOW, "lora": Lora(4, 8, 0.0), "lr": 2e-2})
    moved = {name: p for name, p in first.lm.model.named_parameters() if "lora_B" in name}
    assert len(moved) == 3 * 7
    assert all(float(p.abs().max()) > 1e-3 for p in moved.values())
