"""Prompts x plans x seeds in one go: batched, resumable after a kill, paired by (prompt, seed)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.access.editing.effect import measure
from latentlens.access.generation.generate import Decoding, Request
from latentlens.access.generation.kept_rows import KeptRows
from latentlens.access.generation.recorder import Readings
from latentlens.access.generation.runs import decoding, run
from latentlens.access.identity import context_digest, package_versions
from latentlens.errors import BadInput
from latentlens.values.interventions import Plan, as_plan, plan_fingerprint
from latentlens.values.rollouts import Keep, Record, Rollout

if TYPE_CHECKING:
    import pandas as pd

    from latentlens.access.model import LensModel

_COLUMNS = ("prompt_index", "prompt", "plan", "seed", "text", "generated", "n_tokens", "finish", "steer")


def sweep(
    lm: LensModel,
    prompts: Any,
    plans: Mapping[str, Any] | Sequence[Any],
    seeds: Iterable[Any] = (0,),
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    record: Any = None,
    kl: bool = False,
    folder: str | Path | KeptRows | None = None,
    stop_ids: Sequence[int] | None = None,
    allow_idle: bool = True,
    keep: Keep | None = None,
) -> pd.DataFrame:
    """Continue every prompt under every plan with every seed, in batches that mix all of them.

    A row's randomness depends on its prompt and seed only, so rows that share (prompt_index, seed) are paired:
    compare two plans row by row.

    Args:
        plans: {"label": plan}; a plan is as for `generate`, the same for all prompts or a list with one per prompt.
            A list of plans is labelled by what they say. Include one that does nothing ({"none": None}) to have
            the comparison.
        seeds: the same for all prompts; or a list with one list of seeds per prompt, for trials with their own seeds.
        record: sites or a `Record`; each reading becomes a column of arrays (n_positions, width), named
            "after resid_post[3]", with the positions in the column "positions".
        kl: add a column `kl`: for each generated token KL(steered || unsteered), in nats, of the distribution that it
            was drawn from. Each row is then read twice more.
        folder: where finished rows are kept. The same call on the same folder runs only what is missing; what was
            asked of another model, plan or setting is left alone. For many sweeps on one folder give an open
            `KeptRows`, so that it is read once.
        allow_idle: whether a plan that never acts is no error; one line of the frame shows it did nothing.
        keep: an `ll.Keep`: a question asked while texts are written, about all seeds of a prompt and plan together,
            which stops some (their finish is "stopped"). It needs a name where rows are kept.
    Returns: one row per (prompt, plan, seed): prompt_index, prompt, plan, seed, text, generated (token ids), n_tokens,
        finish, steer, kl, and the readings. `frame.attrs` says how many rows were run and how many were there already.
    Raises: BadInput, SiteNotFound, ContextTooLong, OutOfMemory, CacheError.
    """
    seeds, labelled, record = list(seeds), _labelled(plans), Record.of(record)
    if not seeds:
        raise BadInput("seeds= is empty: give at least one")
    rows = lm._reader.rows(prompts, continue_last=True, room=max_new_tokens)
    each = _seeds(seeds, len(rows))
    how = decoding(lm, max_new_tokens, temperature, stop_ids, allow_idle)
    requests, place = [], []
    for label, plan in labelled.items():
        given, ready = lm._steered(plan, len(rows))
        for i, row in enumerate(rows):
            for seed in each[i]:
                requests.append(Request(row, seed, 0, ready[i]))
                place.append((i, label, given[i]))
    if keep is not None and folder is not None and not keep.name:
        raise BadInput("rows are kept in a folder, so the question needs a name: ll.Keep(..., name='what it asks')")
    store = KeptRows.of(folder)
    about = lm._identity.context(hash_weights=folder is not None)
    keys = [_key(about, request, how, record, kl) for request in requests]
    groups = [(i, label) for i, label, _ in place]
    if keep is not None:  # a row then depends on all rows that it was asked about with
        keys = _with_groups(keys, groups, keep)
    lacking = {group for group, key in zip(groups, keys, strict=True) if key not in store}
    missing = [n for n, key in enumerate(keys) if key not in store or (keep is not None and groups[n] in lacking)]
    if keep is None:  # the same prompt, seed and plan twice is one row
        missing = list({keys[n]: n for n in reversed(missing)}.values())[::-1]
    store.describe({"model": lm.name, "context": about, "versions": package_versions()})

    def done(rollouts: dict[int, Rollout], readings: dict[int, Readings]) -> None:
        moved = _divergences(lm, {n: (one, requests[missing[n]].plan) for n, one in rollouts.items()}) if kl else {}
        store.add({keys[missing[n]]: (one, readings.get(n), moved.get(n)) for n, one in rollouts.items()})

    if missing:
        todo, at = [requests[n] for n in missing], [place[n] for n in missing]
        prompts_of, plans_of = [i for i, _, _ in at], [plan for _, _, plan in at]
        run(lm, todo, prompts_of, plans_of, how, record, done, keep, [groups[n] for n in missing])
    return _frame(store, keys, place, requests, len(missing))


def _seeds(seeds: list[Any], n_rows: int) -> list[list[int]]:
    """The seeds of every prompt."""
    per_prompt = [isinstance(one, (list, tuple)) for one in seeds]
    if not any(per_prompt):
        each = [seeds] * n_rows
    elif all(per_prompt) and len(seeds) == n_rows:
        each = [list(one) for one in seeds]
    else:
        raise BadInput(f"seeds= are numbers, or one list of them for each of {n_rows} prompts: {str(seeds)[:60]} came")
    if not all(each):
        raise BadInput("seeds= holds an empty list: give every prompt at least one")
    return each


def _labelled(plans: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(plans, Mapping):
        return {str(label): plan for label, plan in plans.items()}
    if not isinstance(plans, (list, tuple)):
        raise BadInput("plans= takes {'label': plan, ...} or a list of plans")
    made = [as_plan(plan) for plan in plans]
    labels = ["; ".join(map(repr, plan)) or "none" for plan in made]
    if len(set(labels)) < len(labels):
        raise BadInput("two plans look alike: label them, plans={'one': ..., 'other': ...}")
    return dict(zip(labels, made, strict=True))


def _divergences(lm: LensModel, batch: Mapping[int, tuple[Rollout, Plan]]) -> dict[int, list[float]]:
    """Per-token KL to the unsteered model of each row; rows without a plan are not read again."""
    steered = [n for n, (_, plan) in batch.items() if plan]
    rows = [batch[n][0].row.continued(batch[n][0].generated, lm._reader.special_ids) for n in steered]
    found = measure(lm.layout, rows, [batch[n][1] for n in steered], lm.token_budget).kl if steered else ()
    zeros = {n: [0.0] * len(one.generated) for n, (one, plan) in batch.items() if not plan}
    return {**zeros, **{n: values.tolist() for n, values in zip(steered, found, strict=True)}}


def _key(about: Mapping[str, Any], request: Request, how: Decoding, record: Record | None, kl: bool) -> str:
    """Digest of everything that a row's tokens and readings depend on."""
    parts = [
        context_digest(about),
        request.row.labelled_digest,
        request.seed,
        plan_fingerprint(request.plan),
        how.max_new_tokens,
        how.temperature,
        sorted(how.stop_ids),
        None if record is None else [repr(record), getattr(record.sae, "fingerprint", "")],
        *(["kl"] if kl else []),  # rows without it are no answer to a call that asks for it
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _with_groups(keys: Sequence[str], groups: Sequence[Any], keep: Keep) -> list[str]:
    """Keys that also name the question and everybody it was asked about."""
    members: dict[Any, list[str]] = {}
    for key, group in zip(keys, groups, strict=True):
        members.setdefault(group, []).append(key)
    about = [keep.name, keep.every, keep.last, repr(keep.record)]
    return [
        hashlib.sha256(json.dumps([key, *about, sorted(members[group])]).encode()).hexdigest()
        for key, group in zip(keys, groups, strict=True)
    ]


def _frame(
    store: KeptRows,
    keys: Sequence[str],
    place: Sequence[tuple[int, str, Plan]],
    requests: Sequence[Request],
    n_run: int,
) -> pd.DataFrame:
    import pandas as pd

    lines = []
    for key, (i, label, plan), request in zip(keys, place, requests, strict=True):
        line = {**store[key], "prompt_index": i, "plan": label, "seed": request.seed}
        line["steer"] = "; ".join(map(repr, plan))
        lines.append(line)
    frame = pd.DataFrame(lines, columns=[*_COLUMNS, *(name for name in lines[0] if name not in _COLUMNS)])
    frame.attrs.update(rows_run=n_run, rows_found=len(keys) - n_run)
    return frame
