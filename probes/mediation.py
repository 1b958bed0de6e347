"""Which parts of a model carry the difference between two prompts to its answer: places, heads, directions, latents?

    python probes/mediation.py                                    # true or false statements, the embedded model
    python probes/mediation.py --model MODEL --data pairs.jsonl

`pairs.jsonl`: one object a line with `clean` and `corrupt` (prompts of equal length that differ in some tokens),
`right` and `wrong` (one token each, as text; the metric is the logit of the one minus that of the other) and, where
there is one, `group` (what is resampled together, and never on both sides of a split). Half of the groups find the
directions, the other half are patched: the residual stream place by place (denoising, with natural direct effects),
attention and MLP outputs (noising), every head, directions and latents at the last position; attribution patching and
integrated gradients against patching. Each with an unrelated prompt and with random changes of equal norm. A second
run on the same folder runs no model.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens import organism
from latentlens.views import figures as plots
from latentlens.views.terminal import print_table


def pairs(data: str, n: int, seed: int) -> list[tuple]:
    """(clean, corrupt, right answer, wrong answer, group): from a file, or of facts that training asked about."""
    if data:
        with open(data) as file:
            rows = [json.loads(line) for line in file][:n]
    else:
        rows = organism.pairs(n, seed)
    return [(d["clean"], d["corrupt"], d["right"], d["wrong"], d.get("group", i)) for i, d in enumerate(rows)]


def places(lm, clean, corrupt) -> dict:
    """Named positions: before the prompts differ, where they do, and what comes after; a shared end token by token."""
    one, two = lm.tokens(clean), lm.tokens(corrupt)
    different = [[p for p, (a, b) in enumerate(zip(x.ids, y.ids)) if a != b] for x, y in zip(one, two)]
    shared = next((k for k in range(1, 9) if len({row.ids[-k] for row in one}) > 1), 9) - 1
    shared = max(1, min(shared, *(len(row) - d[-1] - 1 for row, d in zip(one, different))))
    spots = {
        "before": [list(range(d[0])) for d in different],
        "changed": different,
        "between": [list(range(d[-1] + 1, len(row) - shared)) for row, d in zip(one, different)],
    }
    found = {name: ll.PerRow(where) for name, where in spots.items() if all(where)}
    words = lm.tokenizer.batch_decode([[i] for i in one[0].ids[-shared:]])
    return found | {f"{word.strip()} ({k - shared})": k - shared for k, word in enumerate(words)}


def main(
    model: Annotated[str | None, typer.Option(help="hub id or folder; the embedded model by default")] = None,
    data: Annotated[str, typer.Option(help="pairs.jsonl; statements of the embedded world by default")] = "",
    sae: Annotated[str, typer.Option(help="folder of an SAE; the embedded model's own by default")] = "",
    n: Annotated[int, typer.Option(help="pairs")] = 120,
    steps: Annotated[int, typer.Option(help="points of integrated gradients")] = 10,
    seed: Annotated[int, typer.Option(help="of pairs, halves, controls and bootstrap")] = 0,
    folder: Annotated[Path, typer.Option(help="cache and page")] = Path("runs/mediation"),
) -> None:
    """Patch, print tables, write the page."""
    torch.set_num_threads(1 if model is None else torch.get_num_threads())
    lm = ll.load(model, cache=ll.ActivationCache(folder / "cache"))
    rows = pairs(data, n, seed)
    groups = sorted({r[4] for r in rows}, key=str)
    Random(seed).shuffle(groups)
    finding = set(groups[: len(groups) // 2])
    half = {True: [r for r in rows if r[4] in finding], False: [r for r in rows if r[4] not in finding]}
    clean, corrupt, right, wrong, group = map(list, zip(*half[False]))
    forwards, about = 0, {"metric": ll.LogitDifference(right, wrong), "groups": group, "seed": seed}

    def effect(mediators, **options):
        nonlocal forwards
        runs = lm.patch(mediators, clean, corrupt, **about, **options)
        forwards += runs.about["forwards"]
        return runs, ll.mediation.effects(runs, groups=group, seed=seed)

    where = places(lm, clean, corrupt)
    stream = ll.mediators(lm, ["resid_pre[0]", "resid_post[*]"], where)
    exact, by_place = effect(stream, direct=True)
    _, by_part = effect(ll.mediators(lm, ["attn_out[*]", "mlp_out[*]"], where), mode="noising")
    _, by_head = effect(ll.mediators(lm, "z[*]", "last", each="head"))
    near = []
    for method, options in (("attribution", {}), ("integrated gradients", {"steps": steps})):
        a = ll.mediation.agreement(exact, effect(stream, method=method, **options)[0], seed=seed)
        worst = f"{a.worst}: {a.worst_approximate:.2f} for {a.worst_exact:.2f}"
        near.append([method, a.pearson.short, a.spearman.short, a.slope, worst])
    near = pd.DataFrame(near, columns=["approximation", "r over places", "rank correlation", "slope", "widest apart"])

    texts = [r[side] for r in half[True] for side in (0, 1)]
    acts = lm.activations(texts, "resid_post[*]", "last")
    forwards += acts.about["forwards"]
    found = ll.probe.fit(acts, [True, False] * len(half[True]), groups=[r[4] for r in half[True] for _ in range(2)],
                         n_controls=5, seed=seed)  # fmt: skip
    asked = {}
    for one in found:
        asked |= {f"probe at {one.site}": one.direction, f"mean difference at {one.site}": one.mean_direction}
    asked = {name: ll.Mediator(direction, "last") for name, direction in asked.items()}
    if sae or (model is None and organism.saes()):
        dictionary = ll.load_sae(sae or organism.sae_path(), lm=lm)
        latents = [ll.Mediator(dictionary, "last", latents=j) for j in range(dictionary.d_sae)]
        runs, _ = effect(latents, method="attribution", controls=False)
        best = np.argsort(-np.abs(runs.indirect.mean(0)))[:10].tolist()  # screened by gradient, then patched
        asked |= {latents[j].name: latents[j] for j in best}
        asked[f"these {len(best)} latents together"] = [latents[j] for j in best]
    _, by_direction = effect(asked)

    note = f"n = {by_place.n} pairs of {len(set(group))} groups, {by_place.dropped} without an effect; {lm.name}"
    shown = ["mediator", "pooled share", "unrelated prompt", "random, equal norm"]
    for title, of, k in (("places", by_place, 12), ("directions and latents", by_direction, 30), ("heads", by_head, 8)):
        frame = of.table()
        frame = frame[frame["mediator"].isin({e.name for e in of.strongest(k)})][shown]
        print_table(f"{title}: share of the total effect", shown, frame.values.tolist(), note=note)
    print_table("approximations against patching", list(near), near.values.tolist())
    top = by_head.strongest(1)[0]
    page = ll.report(
        folder / "mediation.html",
        title="Causal mediation",
        question="Which parts of the model carry the difference between two prompts to its answer?",
        highlights={"total effect, logits": by_place.total, top.name: top.pooled},
        sections=[
            ll.Section("Residual stream, by place", [plots.patching_map(by_place), by_place.table()]),
            ll.Section("Attention and MLP, by place", [plots.patching_map(by_part)]),
            ll.Section("Heads at the last position", [plots.patching_map(by_head), plots.carriers(by_head, 10)]),
            ll.Section("Directions and latents, last position", [plots.carriers(by_direction), by_direction.table()]),
            ll.Section("Approximations against patching", [near]),
        ],
        manifest=ll.manifest(lm, pairs=len(rows), patched=by_place.n, seed=seed, forwards=forwards),
    )  # fmt: skip
    print(f"{forwards} forward passes; total effect {by_place.total}; page: {page}")


if __name__ == "__main__":
    typer.run(main)
