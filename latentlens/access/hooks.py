"""The only place where hooks are registered on somebody's model.

A hook acts only for the plan that installed it and only in the thread (context) that entered the
plan: the plans in force live in a `ContextVar`, so eight threads with eight plans on one model do not
see each other. Plans nest: the outer plan's hooks run first. Hooks are gone when the `with` ends, by an
exception or an interrupt too; hooks of other people are left alone. `while_training` alone looks at the module's mode
instead: a training recomputes forwards in threads of its own.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latentlens.errors import CompiledModel, HookNeverFired

_IN_FORCE: ContextVar[tuple[object, ...]] = ContextVar("latentlens_plans_in_force", default=())


@dataclass(frozen=True, eq=False)
class Tap:
    """One side of one module: its first input tensor ("in") or its (first) output tensor ("out")."""

    module: nn.Module
    side: Literal["in", "out"]
    name: str

    def __repr__(self) -> str:
        return f"{self.name}.{'input' if self.side == 'in' else 'output'}"


class StopForward(Exception):
    """Raised by a hook once nothing deeper was asked for; caught by whoever runs the forward."""


Callback = Callable[[Tensor], Tensor | None]


@contextmanager
def hooked(calls: Sequence[tuple[Tap, Callback]], shape: tuple[int, int] | None = None) -> Iterator[Counter[str]]:
    """Run callbacks on the tensors at the taps while the `with` lasts.

    A callback gets the tensor (batch, token, width) and returns None to look or a tensor to replace it.
    Several callbacks at one tap run in the given order, each seeing what the one before returned.

    Args:
        calls: pairs of tap and callback.
        shape: (batch, token) of the forwards to come; modules that work on flattened (batch * token,
            width) tensors, such as OPT's feed-forward, are shown unflattened.
    Yields: how often each tap fired, by name.
    Raises: CompiledModel: a tap sits in a compiled module, where a new hook is ignored in silence.
    """
    plan, fired = object(), Counter({repr(tap): 0 for tap, _ in calls})
    handles: list[Any] = []
    refuse_compiled([tap.module for tap, _ in calls])
    token = _IN_FORCE.set((*_IN_FORCE.get(), plan))
    try:
        for tap, callback in calls:
            handles.append(_register(tap, callback, lambda _: plan in _IN_FORCE.get(), fired, shape))
        yield fired
    finally:
        for handle in handles:
            handle.remove()
        _IN_FORCE.reset(token)


@contextmanager
def while_training(calls: Sequence[tuple[Tap, Callback]]) -> Iterator[Counter[str]]:
    """Run callbacks in every forward of a module in training mode, in whichever thread, while the `with` lasts.

    Gradient checkpointing runs forwards again during the backward pass, in threads of autograd that know nothing of the
    caller's context; evaluation between training steps (`module.eval()`) is left alone.

    Args, Yields, Raises: as `hooked`.
    """
    fired = Counter({repr(tap): 0 for tap, _ in calls})
    handles: list[Any] = []
    refuse_compiled([tap.module for tap, _ in calls])
    try:
        for tap, callback in calls:
            handles.append(_register(tap, callback, lambda module: module.training, fired, None))
        yield fired
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched(module: nn.Module, see: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Show `see` the arguments of every forward of a module, by name, while the `with` lasts."""
    plan = object()
    names = list(inspect.signature(type(module).forward).parameters)[1:]  # other tools replace the instance's
    refuse_compiled([module])

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if plan in _IN_FORCE.get():
            see({**dict(zip(names, args, strict=False)), **kwargs})

    token = _IN_FORCE.set((*_IN_FORCE.get(), plan))
    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _IN_FORCE.reset(token)


def refuse_compiled(modules: Sequence[nn.Module]) -> None:
    """Raise CompiledModel if a hook on one of these modules would never be called."""
    for module in modules:
        compiled_in_place = getattr(module, "_compiled_call_impl", None) is not None
        if compiled_in_place or hasattr(module, "_orig_mod"):
            raise CompiledModel(
                f"{type(module).__name__} is compiled: torch ignores hooks added after compilation. "
                "Load the model without torch.compile, or capture and steer before compiling it."
            )


def require_fired(fired: Counter[str]) -> None:
    """Raise HookNeverFired for the taps that no forward reached."""
    silent = [name for name, count in fired.items() if count == 0]
    if silent:
        raise HookNeverFired(
            f"{', '.join(silent)} was never reached by the forward pass, so nothing was read or changed there"
        )


def _register(
    tap: Tap,
    callback: Callback,
    acts: Callable[[nn.Module], bool],
    fired: Counter[str],
    shape: tuple[int, int] | None,
) -> Any:
    name = repr(tap)

    def act(tensor: Tensor) -> Tensor | None:
        fired[name] += 1
        flat = shape is not None and tensor.ndim == 2 and tensor.shape[0] == shape[0] * shape[1]
        seen = tensor.view(*shape, -1) if flat and shape is not None else tensor
        new = callback(seen)
        return new.reshape(tensor.shape) if flat and new is not None else new

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not acts(module):
            return None
        if args and isinstance(args[0], Tensor):
            new = act(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        key = "hidden_states" if "hidden_states" in kwargs else _first_tensor(kwargs)
        new = act(kwargs[key])
        return None if new is None else (args, {**kwargs, key: new})

    def after(module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if not acts(module):
            return None
        if isinstance(output, Tensor):
            return act(output)
        new = act(output[0])
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else _with_first(output, new)

    if tap.side == "in":
        return tap.module.register_forward_pre_hook(before, with_kwargs=True)
    return tap.module.register_forward_hook(after)


def _first_tensor(kwargs: dict[str, Any]) -> str:
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and torch.is_floating_point(value):
            return key
    raise HookNeverFired("the module was called without a tensor to read")


def _with_first(output: Any, new: Tensor) -> Any:
    """A copy of a `ModelOutput` with its first field replaced."""
    output = output.copy()
    output[next(iter(output.keys()))] = new
    return output
