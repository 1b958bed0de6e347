import copy

import pytest
import torch

import latentlens as ll
from latentlens.access.editing.preventative import preventing
from latentlens.errors import BadInput, HookNeverFired, SiteNotFound

IDS = torch.tensor([[1, 7, 9, 11, 30, 4], [1, 8, 3, 5, 2, 2]])


@pytest.fixture
def lm(llama):
    return ll.load(llama, cache=False)


@pytest.fixture
def vector(lm):
    return ll.Direction(torch.randn(lm.layout.d_model, generator=torch.Generator().manual_seed(0)), "resid_post[1]")


def grads(model, ids=IDS):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model, change, ids=IDS):
    """The same training step with the edit written as an ordinary hook on block 1."""
    handle = model.model.layers[1].register_forward_hook(
        lambda m, a, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
    )
    try:
        return grads(model, ids)
    finally:
        handle.remove()


def same(one, two):
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    assert one[1].keys() == two[1].keys()
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, two[1][name], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_a_model_whose_states_are_moved(lm, vector):
    model = lm.model.train()
    expected = by_hand(model, lambda h: h + 5 * vector.vector)
    plain = grads(model)
    with preventing(lm, ll.Add(vector, 5.0)):
        found = grads(model)
    same(found, expected)
    assert abs(plain[0] - found[0]) > 1e-3
    assert found[1]["model.layers.0.mlp.up_proj.weight"].abs().max() > 0  # below the edit
    same(grads(model), plain)


def test_the_direction_can_be_projected_out_instead(lm, vector):
    model, u = lm.model.train(), vector.unit
    expected = by_hand(model, lambda h: h - (h @ u)[..., None] * u)
    with preventing(lm, ll.ProjectOut(vector)):
        same(grads(model), expected)


def test_a_pattern_steers_every_block(lm, vector):
    model = lm.model.train()
    with preventing(lm, ll.Add(vector, 1.0, site="resid_post[*]")):
        every = grads(model)[0]
    with preventing(lm, ll.Add(vector, 1.0)):
        one = grads(model)[0]
    assert every != one


def test_evaluation_between_steps_is_left_alone(lm, vector):
    model = lm.model.eval()
    with torch.no_grad():
        clean = model(IDS).logits
        texts = lm.generate([[1, 7, 9]], 5).texts
    with preventing(lm, ll.Add(vector, 5.0)):
        grads(model.train())
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, clean)
        assert lm.generate([[1, 7, 9]], 5).texts == texts


def test_nothing_is_left_after_the_end_or_an_exception(lm, vector):
    model = lm.model.eval()
    before = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    with preventing(lm, ll.Add(vector, 5.0)):
        grads(model.train())
    assert not model.training
    with pytest.raises(IndexError), preventing(lm, ll.Add(vector, 5.0)):
        grads(model.train(), IDS + 10_000)
    assert not any(m.training for m in model.modules())
    after = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()}
    assert after == before
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_checkpointed_steps_are_repeated_as_they_were(lm, vector):
    model = lm.model.train()
    expected = by_hand(model, lambda h: h + 5 * vector.vector)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        with preventing(lm, ll.Add(vector, 5.0)):
            same(grads(model), expected)
        model.gradient_checkpointing_disable()


def test_a_training_that_never_came_is_an_error(lm, vector):
    with pytest.raises(HookNeverFired, match="never reached"), preventing(lm, ll.Add(vector, 5.0)):
        lm.generate([[1, 7, 9]], 3)
    with preventing(lm, ll.Add(vector, 5.0), allow_idle=True):
        pass


def test_what_a_training_batch_cannot_know_is_refused(lm, vector):
    for plan in (
        ll.Add(vector, 1.0, where="response"),
        ll.Add(vector, 1.0, schedule=ll.Schedule(stop=3)),
        ll.Gate(ll.Add(vector, 1.0, site="resid_post[2]"), ll.Condition(vector, threshold=0.0)),
    ):
        with pytest.raises(BadInput, match="training batch"), preventing(lm, plan):
            pass
    with pytest.raises(BadInput, match="needs an intervention"), preventing(lm):
        pass
    with pytest.raises(SiteNotFound), preventing(lm, ll.Add(vector, 1.0, site="resid_post[9]")):
        pass


def test_two_steps_of_a_trainer(lm, vector, tmp_path):
    """The loss of the first step is that of the moved model; evaluation and the saved model are the plain one's."""
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": row, "labels": row} for row in IDS]
    expected = by_hand(lm.model.train(), lambda h: h + 5 * vector.vector)[0]
    lm.model.eval()
    with torch.no_grad():
        clean = float(lm.model(input_ids=IDS, labels=IDS).loss)
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=2, learning_rate=0.0,
        logging_steps=1, eval_strategy="steps", eval_steps=1, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(lm.model, arguments, train_dataset=data, eval_dataset=data)
    with preventing(lm, ll.Add(vector, 5.0)):
        trainer.train()
    history = trainer.state.log_history
    assert [h["loss"] for h in history if "loss" in h] == pytest.approx([expected] * 2, rel=1e-3)
    assert [h["eval_loss"] for h in history if "eval_loss" in h] == pytest.approx([clean] * 2, rel=1e-3)
    assert not lm.model.training
