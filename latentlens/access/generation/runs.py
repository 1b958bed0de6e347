"""From prompts and plans to rollouts: what `generate` and `sweep` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from latentlens.access.editing.effect import measure
from latentlens.access.editing.steering import own_forward
from latentlens.access.generation.generate import Decoding, Request, Watch, generate
from latentlens.access.generation.recorder import Collected, Readings
from latentlens.access.progress import Progress
from latentlens.errors import BadInput
from latentlens.values.effects import EditEffect
from latentlens.values.interventions import Plan
from latentlens.values.rollouts import Keep, Record, Rollout, Rollouts

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


def decoding(
    lm: LensModel, max_new_tokens: int, temperature: float, stop_ids: Sequence[int] | None, allow_idle: bool
) -> Decoding:
    """How to continue, with the model's own stop tokens and memory budget."""
    return Decoding(
        max_new_tokens,
        temperature,
        frozenset(_stop_ids(lm) if stop_ids is None else stop_ids),
        lm.token_budget,
        lm._new_cache,
        "logits_to_keep" in inspect.signature(lm.model.forward).parameters,
        lm._reader.special_ids,
        allow_idle,
    )


def run(
    lm: LensModel,
    requests: Sequence[Request],
    prompts: Sequence[int],
    given: Sequence[Plan],
    how: Decoding,
    record: Record | None = None,
    done: Callable[[dict[int, Rollout], dict[int, Readings]], Any] = lambda rollouts, readings: None,
    keep: Keep | None = None,
    together: Sequence[Any] = (),
) -> Rollouts:
    """Carry out requests in batches sorted by length, with a progress bar.

    Args: prompts: per request the index of its prompt. given: its plan as a person wrote it. done: handed the
        rollouts of every finished batch, with their place among the requests. keep: who stops rows on the way.
        together: per request, whom it is asked about with; by default the samples of its prompt.
    Raises: BadInput: `keep` has a record of its own beside `record`.
    """
    if keep is not None and keep.record is not None and record is not None:
        raise BadInput("record= and Keep(record=) name what is read twice: give one of the two")
    made: dict[int, Rollout] = {}
    readings, stopped = Collected(), set[int]()

    def asked(
        which: Sequence[int], texts: list[tuple[int, ...]], read: Sequence[Readings], closed: Sequence[bool]
    ) -> Sequence[bool]:
        assert keep is not None
        so_far = [
            _rollout(lm, requests[i], ids, prompts[i], given[i], how) for i, ids in zip(which, texts, strict=True)
        ]
        so_far = [_unfinished(run, shut) for run, shut in zip(so_far, closed, strict=True)]
        rows = [run.row.continued(run.generated, lm._reader.special_ids) for run in so_far]
        partial = Collected()
        partial.add(range(len(so_far)), texts, read)
        shown = partial.activations(lm._reader, rows) if record or keep.record else {}
        said = keep.ask(Rollouts(tuple(so_far), {"model": lm.name}, shown))
        stopped.update(i for i, run, on in zip(which, so_far, said) if run.finish == "open" and not on)
        return said

    def finished(which: Sequence[int], texts: list[tuple[int, ...]], read: Sequence[Readings]) -> None:
        readings.add(which, texts, read)
        batch = zip(which, texts, strict=True)
        fresh = {i: _rollout(lm, requests[i], ids, prompts[i], given[i], how) for i, ids in batch}
        fresh |= {i: replace(run, finish="stopped") for i, run in fresh.items() if i in stopped}
        made.update(fresh)
        done(fresh, dict(zip(which, read, strict=False)))
        bar.count(len(fresh))
        bar.shrink(sum(how.max_new_tokens - len(ids) for ids in texts))

    bar = Progress("generate", len(requests) * how.max_new_tokens, "tok", things=("rows", len(requests)))
    with bar, own_forward(lm.layout):
        watch = None if keep is None else Watch(asked, keep.every, together or prompts, keep.last, keep.record)
        generate(lm.layout, requests, how, bar.update, finished, record, watch)
    runs = [made[i] for i in range(len(requests))]
    rows = [one.row.continued(one.generated, lm._reader.special_ids) for one in runs]

    def effect(which: Sequence[int]) -> EditEffect:
        with own_forward(lm.layout):
            return measure(lm.layout, [rows[i] for i in which], [requests[i].plan for i in which], lm.token_budget)

    about = {"model": lm.name, "weights": lm._identity.known_weights()}
    return Rollouts(tuple(runs), about, readings.activations(lm._reader, rows) if record else {}, effect)


def _rollout(lm: LensModel, request: Request, ids: tuple[int, ...], prompt: int, given: Plan, how: Decoding) -> Rollout:
    return Rollout(
        prompt=request.row.text or lm._reader.decode(request.row.ids),
        row=request.row,
        generated=ids,
        text=lm._reader.decode(ids),
        prompt_index=prompt,
        sample=request.sample,
        seed=request.seed,
        temperature=how.temperature,
        steer=given,
        finish="eos" if ids and ids[-1] in how.stop_ids else "length",
    )


def _unfinished(run: Rollout, stopped: bool) -> Rollout:
    """A row on its way: stopped by somebody, ended by itself, or open."""
    return replace(run, finish="stopped" if stopped else run.finish if run.finish == "eos" else "open")


def _stop_ids(lm: LensModel) -> list[int]:
    config = getattr(lm.model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    found = set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    if lm.tokenizer is not None and lm.tokenizer.eos_token_id is not None:
        found.add(lm.tokenizer.eos_token_id)
    return sorted(found)
