"""Find the points inside every block by arithmetic, from one tiny forward pass.

Five tokens are run once and the inputs and outputs of the modules inside each block are recorded. The module
outputs that add up to the change of the residual stream (see `residual`) are the attention and MLP contributions;
heads and neurons are the inputs of the linear maps behind them. No class or module name is looked at, so a new
family needs no new code; where the sum does not hold, the point is reported as absent, with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentlens.access.hooks import Tap, hooked
from latentlens.access.residual import Term, Value, decompose

INNER_POINTS = ("z", "attn_out", "resid_mid", "mlp_post", "mlp_out")

# Arguments that only a module that mixes tokens is handed.
_MIXER_ARGUMENTS = {
    "attention_mask",
    "position_embeddings",
    "past_key_values",
    "layer_past",
    "alibi",
    "position_ids",
}

# Norms between a projection and the residual stream (Gemma, OLMo2): one, rarely two.
_MAX_NORMS = 3


@dataclass(frozen=True)
class BlockTrace:
    """What the trace found in one block.

    Args:
        taps: point -> where it is read, for the points that exist.
        widths: point -> last dimension of what is read there.
        scales: contribution -> its multiplier in the residual sum (Granite's residual_multiplier).
        aliases: module path -> point, for modules whose output equals that point.
        missing: point -> why this block has none.
    """

    taps: dict[str, Tap]
    widths: dict[str, int]
    scales: dict[str, float]
    aliases: dict[str, str]
    missing: dict[str, str]


@dataclass(frozen=True)
class Trace:
    """The finer points of every block, and the final norm when the decoder has one."""

    blocks: list[BlockTrace]
    final_norm: Tap | None


def trace(
    decoder: nn.Module,
    blocks: Sequence[nn.Module],
    paths: Sequence[str],
    root: str,
    ids: Tensor,
    widths: Sequence[int | None],
) -> Trace:
    """Run `ids` (1, token) through the decoder once and locate the points of every block.

    Leaves no hook, restores the training mode and the random state.

    Args:
        decoder: the module that owns the blocks and the final norm.
        blocks: in order; `paths` are their Hugging Face paths, `root` that of the decoder ("" if it is the model).
        ids: distinct token ids, one row.
        widths: for each block the width of all heads together, which `z` must have; None without attention.
    """
    taps = {path: _taps_inside(block, path) for block, path in zip(blocks, paths)}
    children = [
        Tap(child, side, f"{root}.{name}".lstrip("."))
        for name, child in decoder.named_children()
        if not _holds(child, blocks[0])
        for side in ("in", "out")
    ]
    record: dict[Tap, tuple[int, Tensor]] = {}

    def look_at(tap: Tap):
        def look(tensor: Tensor) -> None:
            if tap not in record and isinstance(tensor, Tensor):
                # Copied: some blocks add in place afterwards (Falcon).
                record[tap] = (len(record), tensor.detach().to("cpu", copy=True))

        return look

    every = [tap for inside in taps.values() for tap in inside] + children
    with _undisturbed(decoder, ids.device), hooked([(tap, look_at(tap)) for tap in every]):
        arguments = {"input_ids": ids, "use_cache": False}
        accepted = inspect.signature(decoder.forward).parameters
        decoder(**{name: value for name, value in arguments.items() if name in accepted})

    n = ids.shape[1]
    located = [
        _locate(block, path, _values(taps[path], record, n), width) for block, path, width in zip(blocks, paths, widths)
    ]
    last = next((record[tap][1] for tap in taps[paths[-1]] if tap.module is blocks[-1] and tap.side == "out"), None)
    return Trace(located, _final_norm(children, record, last))


def _holds(child: nn.Module, block: nn.Module) -> bool:
    """Whether this child of the decoder holds the blocks, or an embedding (which is no final norm)."""
    return any(module is block or isinstance(module, nn.Embedding) for module in child.modules())


@contextmanager
def _undisturbed(decoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; training flags and random state are put back."""
    training = [module for module in decoder.modules() if module.training]
    devices = [device] if device.type == "cuda" else []
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module in training:
            module.training = True


def _taps_inside(block: nn.Module, path: str) -> list[Tap]:
    """Both sides of the block and of its descendants, except lists of experts."""
    taps, stack = [], [(block, path)]
    while stack:
        module, name = stack.pop()
        taps += [Tap(module, "in", name), Tap(module, "out", name)]
        for child_name, child in module.named_children():
            if not isinstance(child, nn.ModuleList | nn.ModuleDict):
                stack.append((child, f"{name}.{child_name}"))
    return taps


def _values(taps: list[Tap], record: dict[Tap, tuple[int, Tensor]], n_tokens: int) -> list[Value]:
    """Group the recorded sides by equal tensors, flattened to (token, width), in order of execution."""
    values: list[Value] = []
    for tap in sorted((tap for tap in taps if tap in record), key=lambda tap: record[tap][0]):
        order, tensor = record[tap]
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.shape[:-1].numel() != n_tokens:
            continue
        flat = tensor.reshape(n_tokens, -1)
        known = next((v for v in values if v.tensor.dtype == flat.dtype and torch.equal(v.tensor, flat)), None)
        if known is None:
            values.append(known := Value(flat))
        known.seen.append((order, tap))
    return values


def _locate(block: nn.Module, path: str, values: list[Value], width: int | None) -> BlockTrace:
    start, end = _at(block, "in", values), _at(block, "out", values)
    if start is None or end is None:
        return _nothing(f"{type(block).__name__} was not run, or carries more than one vector per token")
    same = [v for v in values if v.tensor.shape == end.tensor.shape and v is not start and v is not end]
    terms = decompose(start, end, same, _multipliers(block))
    if terms is None or len(terms) == 1:
        what = "only one module output adds" if terms else "no module outputs add"
        return _nothing(f"in {type(block).__name__} {what} up to the change of the residual stream")
    attention, mlp = _roles(block, path, terms, values)
    taps: dict[str, Tap] = {}
    scales: dict[str, float] = {}
    aliases: dict[str, str] = {}
    missing: dict[str, str] = {}
    for point, inner, term in (("attn_out", "z", attention), ("mlp_out", "mlp_post", mlp)):
        taps[point], scales[point] = _outermost(term.value), term.scale
        aliases |= {tap.name: point for tap in term.value.outputs()}
        projection = _projection(term.value, values, width if inner == "z" else None)
        if isinstance(projection, Tap):
            taps[inner] = projection
        else:
            missing[inner] = projection
    later = max(attention, mlp, key=terms.index)
    if later.before is start:
        missing["resid_mid"] = f"attention and MLP of {type(block).__name__} both read resid_pre (a parallel block)"
    else:
        taps["resid_mid"] = next(tap for _, tap in later.before.seen if tap.side == "in")
    read = {point: _at(tap.module, tap.side, values) for point, tap in taps.items()}
    widths = {point: value.tensor.shape[-1] for point, value in read.items() if value is not None}
    return BlockTrace(taps, widths, scales, aliases, missing)


def _multipliers(block: nn.Module) -> list[float]:
    """Numbers that the block keeps, such as Granite's residual_multiplier."""
    return [value for value in vars(block).values() if isinstance(value, float) and value not in (0.0, 1.0)]


def _at(module: nn.Module, side: str, values: list[Value]) -> Value | None:
    """What one side of a module carried."""
    return next((v for v in values for _, tap in v.seen if tap.module is module and tap.side == side), None)


def _nothing(why: str) -> BlockTrace:
    return BlockTrace({}, {}, {}, {}, dict.fromkeys(INNER_POINTS, why))


def _outermost(value: Value) -> Tap:
    """The outermost module that gives this value; a dropout (no state of its own) only if nothing else does."""
    return min(value.outputs(), key=lambda tap: (not _has_state(tap.module), tap.name.count(".")))


def _deepest(value: Value) -> Tap | None:
    outputs = value.outputs()
    return max(outputs, key=lambda tap: (_has_state(tap.module), tap.name.count("."))) if outputs else None


def _source(value: Value, values: list[Value]) -> Tap | None:
    """The deepest module that computes the value, before any norm that it passes through."""
    for _ in range(_MAX_NORMS):
        tap = _deepest(value)
        if tap is None or not _is_norm(tap.module):
            return tap
        before = _at(tap.module, "in", values)
        if before is None or before.tensor.shape != value.tensor.shape or _deepest(before) is None:
            return tap
        value = before
    return _deepest(value)


def _projection(value: Value, values: list[Value], width: int | None) -> Tap | str:
    """The input of the linear map behind a contribution, or why there is none."""
    tap = _source(value, values)
    if tap is None:
        return "no module computes this contribution"
    matrices = [t for t in _own_state(tap.module) if t.ndim >= 2]
    linear = hasattr(tap.module, "in_features") or (len(matrices) == 1 and matrices[0].ndim == 2)
    handed = _at(tap.module, "in", values)
    if not linear or handed is None:
        return f"{tap.name} ({type(tap.module).__name__}) computes its result without a separate output projection"
    if width not in (None, handed.tensor.shape[-1]):
        return f"the input of {tap.name} is {handed.tensor.shape[-1]} wide, which is not heads x head width ({width})"
    return Tap(tap.module, "in", tap.name)


def _roles(block: nn.Module, path: str, terms: list[Term], values: list[Value]) -> tuple[Term, Term]:
    """Attention is the first term whose module is handed a mask, MLP the first other; else by order of execution."""
    mixing = [term for term in terms if _mixes_tokens(block, path, _source(term.value, values))]
    attention = mixing[0] if mixing else terms[0]
    others = [term for term in terms if term is not attention]
    return attention, next((term for term in others if term not in mixing), others[0])


def _mixes_tokens(block: nn.Module, path: str, tap: Tap | None) -> bool:
    if tap is None:
        return False
    module = block
    for name in tap.name.removeprefix(path).strip(".").split("."):
        module = getattr(module, name)
        if _MIXER_ARGUMENTS & set(inspect.signature(module.forward).parameters):
            return True
    return False


def _final_norm(children: list[Tap], record: dict[Tap, tuple[int, Tensor]], last: Tensor | None) -> Tap | None:
    """The norm among the decoder's children that is handed the last block's output."""
    for tap in children:
        if tap.side == "in" and tap in record and last is not None and _is_norm(tap.module):
            value = record[tap][1]
            if value.shape == last.shape and value.dtype == last.dtype and torch.equal(value, last):
                return Tap(tap.module, "out", tap.name)
    return None


def _own_state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _has_state(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _is_norm(module: nn.Module) -> bool:
    """A module that holds vectors only: a norm or a layer scale, not a linear map."""
    return all(t.ndim <= 1 for t in [*module.parameters(), *module.buffers()])
