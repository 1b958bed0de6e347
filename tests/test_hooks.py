import threading

import pytest
import torch
from torch import nn

from latentlens.access.hooks import StopForward, Tap, hooked, require_fired
from latentlens.errors import CompiledModel, HookNeverFired


class Toy(nn.Module):
    """y = third(second(first(x))), each adding its number; `second` returns a tuple, `third` is called by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (Plus(n) for n in (1.0, 10.0, 100.0))
        self.second.as_tuple = True

    def forward(self, x):
        return self.third(hidden_states=self.second(self.first(x))[0])


class Plus(nn.Module):
    as_tuple = False

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, hidden_states):
        out = hidden_states + self.n
        return (out, "extra") if self.as_tuple else out


@pytest.fixture
def toy():
    return Toy()


def tap(toy, name, side="out"):
    return Tap(getattr(toy, name), side, name)


X = torch.zeros(1, 2, 3)


def count(toy):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in toy.modules())


def test_inputs_and_outputs_are_read_and_replaced_in_tuples_and_keywords(toy):
    seen = []
    with hooked(
        [(tap(toy, "second"), lambda h: h * 2), (tap(toy, "third", "in"), lambda h: seen.append(h) or h + 0.5)]
    ):
        out = toy(X)
    assert seen[0].unique().tolist() == [22.0]
    assert out.unique().tolist() == [122.5]
    assert toy(X).unique().tolist() == [111.0]
    assert count(toy) == 0


def test_plans_nest_the_outer_one_first_and_each_is_undone_exactly(toy):
    with hooked([(tap(toy, "first"), lambda h: h + 5)]):
        with hooked([(tap(toy, "first"), lambda h: h * 10)]):
            assert toy(X).unique().tolist() == [(1 + 5) * 10 + 110.0]
        assert toy(X).unique().tolist() == [1 + 5 + 110.0]
    assert toy(X).unique().tolist() == [111.0]


def test_the_same_plan_may_be_entered_inside_itself(toy):
    calls = [(tap(toy, "first"), lambda h: h + 5)]
    with hooked(calls):
        with hooked(calls):
            assert toy(X).unique().tolist() == [121.0]
        assert toy(X).unique().tolist() == [116.0]


def test_a_plan_does_not_reach_other_threads(toy):
    got = []
    with hooked([(tap(toy, "first"), lambda h: h + 5)]):
        other = threading.Thread(target=lambda: got.append(toy(X).unique().tolist()))
        other.start()
        other.join()
    assert got == [[111.0]]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopForward])
def test_hooks_are_gone_after_any_exception_and_others_stay(toy, error):
    mine = toy.first.register_forward_hook(lambda *_: None)

    def fail(_h):
        raise error

    with pytest.raises(error), hooked([(tap(toy, "second"), fail)]):
        toy(X)
    assert count(toy) == 1
    mine.remove()
    assert toy(X).unique().tolist() == [111.0]


def test_a_tap_that_was_never_reached_is_named(toy):
    unused = Tap(nn.Linear(2, 2), "out", "elsewhere")
    with hooked([(tap(toy, "first"), lambda h: None), (unused, lambda h: None)]) as fired:
        toy(X)
    assert fired["first.output"] == 1
    with pytest.raises(HookNeverFired, match=r"elsewhere\.output"):
        require_fired(fired)


def test_compiled_modules_are_refused_before_any_hook_is_placed(toy):
    toy.second.compile(backend="eager")
    with (
        pytest.raises(CompiledModel),
        hooked([(tap(toy, "first"), lambda h: None), (tap(toy, "second"), lambda h: None)]),
    ):
        pass
    assert count(toy) == 0


def test_flattened_tensors_are_shown_by_row_and_token():
    flat, seen = Plus(1.0), []
    with hooked([(Tap(flat, "out", "flat"), lambda h: seen.append(h.shape) or h * 2)], (2, 3)):
        out = flat(torch.zeros(6, 4))
    assert seen == [(2, 3, 4)]
    assert out.shape == (6, 4)
    assert out.unique().tolist() == [2.0]
