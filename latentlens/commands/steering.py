"""`latentlens steer` and `latentlens sweep`: write under an edit, beside no edit and random directions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlens.commands import options
from latentlens.errors import BadInput

if TYPE_CHECKING:
    from latentlens.values.directions import Direction

File = Annotated[
    Path | None, typer.Option(help="Direction: .safetensors of ours, .gguf, .svec or Neuronpedia .json; its first one.")
]
Unit = Annotated[str, typer.Option(help="raw (lengths of the vector) or norm (median norms of the states there).")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", "--tokens", help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Scope = Annotated[str, typer.Option(help="Positions that are edited.")]


def steer(
    texts: options.Texts = None,
    data: options.Data = None,
    chat: options.Chat = True,
    model: options.Model = None,
    direction: File = None,
    plan: Annotated[Path | None, typer.Option(help="A plan saved by ll.save_plan, instead of a direction.")] = None,
    coeff: Annotated[float, typer.Option(help="Strength.")] = 1.0,
    unit: Unit = "norm",
    where: Scope = "all",
    max_new_tokens: Tokens = 48,
    temperature: Temperature = 0.0,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Write every prompt without and with an edit, and with a random direction of equal norm, in one batch.

    latentlens steer "Tell me about the music." --direction sea.safetensors --coeff 1.5 --where last_prompt+response
    """
    given = options.inputs(texts, data, chat)
    if (direction is None) == (plan is None):
        raise BadInput("give either --direction FILE or --plan FILE")
    lm = options.load(model, dtype, quantization, device_map)
    arms: dict[str, Any] = {"no edit": None}
    if plan is not None:
        from latentlens.values.plan_files import load_plan

        arms["plan"] = list(load_plan(plan))
    elif direction is not None:
        vector = _first(direction, lm)
        arms["steered"] = [_add(vector, coeff, unit, where)]
        arms["random"] = [_add(vector.random_like(seed), coeff, unit, where)]
    prompts = [one for one in given for _ in arms]
    runs = lm.generate(prompts, max_new_tokens, temperature=temperature, seed=seed, steer=[*arms.values()] * len(given))
    effect = runs.effect().to_frame()
    lines = [
        {"prompt": run.prompt, "arm": arm, "text": run.text, "kl": kl, "fired": fired}
        for run, arm, kl, fired in zip(
            runs, [*arms] * len(given), effect["kl_mean"].tolist(), effect["fired"].tolist(), strict=True
        )
    ]
    if as_json:
        options.show({"model": lm.name, "edits": {k: repr(v) for k, v in arms.items()}, "runs": lines})
        return
    from latentlens.views.terminal import print_table

    for i in range(len(given)):
        mine = lines[i * len(arms) : (i + 1) * len(arms)]
        rows = [[line["arm"], line["text"], line["kl"], line["fired"]] for line in mine]
        print_table(mine[0]["prompt"], ["arm", "text", "KL, nats a token", "states edited"], rows)


def sweep(
    texts: options.Texts = None,
    data: options.Data = None,
    chat: options.Chat = True,
    model: options.Model = None,
    direction: File = None,
    coeff: Annotated[list[float], typer.Option(help="Strength; may be repeated.")] = [0.5, 1.0, 2.0],  # noqa: B006
    unit: Unit = "norm",
    where: Scope = "all",
    draws: Annotated[int, typer.Option(help="Random directions beside every strength.")] = 2,
    seeds: Annotated[int, typer.Option(help="Samples of every prompt.")] = 4,
    max_new_tokens: Tokens = 48,
    temperature: Temperature = 0.7,
    folder: Annotated[Path | None, typer.Option(help="Keep finished rows here; the same command resumes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all rows: .parquet or .csv.")] = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Prompts x strengths x seeds, with random directions, paired by seed; what each strength costs in likelihood.

    latentlens sweep --data prompts.txt --direction sea.safetensors --coeff 1 --coeff 2 --folder runs/sea --out rows.csv
    """
    given = options.inputs(texts, data, chat)
    if direction is None:
        raise BadInput("give --direction FILE")
    options.place(out, ".parquet", ".csv")
    lm = options.load(model, dtype, quantization, device_map)
    vector = _first(direction, lm)
    plans: dict[str, Any] = {"no edit": None}
    for c in coeff:
        plans[f"direction {c:g}"] = _add(vector, c, unit, where)
        plans |= {f"random {c:g} #{draw}": _add(vector.random_like(draw), c, unit, where) for draw in range(draws)}
    from latentlens.access.generation.sweep import sweep as run
    from latentlens.access.measures.doses import unsteered_nll

    found = run(lm, given, plans, range(seeds), max_new_tokens=max_new_tokens, temperature=temperature, folder=folder)
    prompts = lm.tokens(given)
    rows = [prompts[i].continued(tuple(ids)) for i, ids in zip(found["prompt_index"], found["generated"], strict=True)]
    found["nll"] = unsteered_nll(lm, rows)
    if out:
        found.to_csv(out, index=False) if out.suffix == ".csv" else found.to_parquet(out)
    summary = _by_plan(found, len(given))
    if as_json:
        counts = {name: found.attrs[name] for name in ("rows_run", "rows_found")}
        options.show({"model": lm.name, "direction": repr(vector), "plans": summary, **counts})
        return
    from latentlens.views.terminal import print_table

    note = (
        f"nll: nats a token of the text under the unsteered model, 95% bootstrap interval over prompts; "
        f"{found.attrs['rows_run']} rows run, {found.attrs['rows_found']} found"
    )
    lines = [[s["plan"], s["n"], f"{s['nll']:.3f} [{s['low']:.3f}, {s['high']:.3f}]", s["sample"]] for s in summary]
    print_table(f"sweep of {vector!r}", ["plan", "n", "nll", "a text"], lines, note=note)


def _by_plan(found: Any, n_prompts: int) -> list[dict[str, Any]]:
    """Likelihood of every plan's texts with its interval, and one text."""
    import numpy as np

    from latentlens.maths.statistics import cluster_bootstrap

    summary = []
    for plan, part in found.groupby("plan", sort=False):
        values = part["nll"].to_numpy(float)
        groups = part["prompt_index"].to_numpy()
        low, high = cluster_bootstrap(np.mean, values, groups=groups) if n_prompts > 1 else (np.nan, np.nan)
        mean = float(values.mean())
        summary.append(
            {"plan": plan, "n": len(part), "nll": mean, "low": low, "high": high, "sample": part["text"].iloc[0]}
        )
    return summary


def _first(path: Path, lm: Any) -> Direction:
    """Read the direction in a file, ours or another tool's; of several, the first."""
    from latentlens.access.formats.files import read_directions

    found = read_directions(path, lm=lm)
    if not found:
        raise BadInput(f"{path} holds no direction that is not zero")
    return found[0]


def _add(vector: Direction, coeff: float, unit: str, where: str) -> Any:
    from latentlens.values.operations import Add

    chosen: Any = unit
    return Add(vector, coeff, unit=chosen, where=where)
