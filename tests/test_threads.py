"""A tiny model uses one thread, and leaves the caller's setting as it was."""

import pytest
import torch
from families import build

import latentlens as ll


def test_a_tiny_model_runs_on_one_thread_and_puts_the_setting_back():
    before = torch.get_num_threads()
    lm, seen = ll.load(build("Llama"), cache=False), []
    handle = lm.layout.blocks[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(2)
        lm.activations([[5, 6, 7]])
        lm.generate([[5, 6, 7]], 2, stop_ids=())
        assert torch.get_num_threads() == 2
        with pytest.raises(ll.errors.HookNeverFired):
            lm.generate(
                [[5, 6]], 2, steer=ll.Add(ll.Direction(torch.ones(32), "resid_post[0]"), schedule=ll.Schedule(start=9))
            )
        assert torch.get_num_threads() == 2
        assert set(seen) == {1}
    finally:
        handle.remove()
        torch.set_num_threads(before)
