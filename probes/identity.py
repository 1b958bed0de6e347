"""Do concept directions and concept classifiers invert each other (A W = I), and at which site?

    python probes/identity.py                                    # the embedded model
    python probes/identity.py --model MODEL --data pairs.jsonl

`pairs.jsonl`: one object a line with `concept`, `base` and `target`, two texts that differ in the concept only. The
test of "I Predict Therefore I Am" (arXiv 2503.08980), with the pairs of every concept halved between directions and
classifiers, and with labels shuffled within pairs beside it. The theorem speaks of the state that feeds the unembedding
(`final_norm`); the blocks before it are shown for comparison. Where there is an SAE, its latents are asked at its site:
how near the best single latent comes to a supervised probe of each concept, and whether ablating a concept's latents
takes away that concept alone (TPP over several seeds). A second run on the same folder runs no model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens import organism
from latentlens.maths import readouts
from latentlens.methods.identity_test import ceiling_estimates, identity_test
from latentlens.methods.latent_scores import tpp
from latentlens.views import figures as plots
from latentlens.views.terminal import print_table


def swaps(n: int, seed: int) -> dict[str, tuple[list, list]]:
    """Prompts of the embedded world in which one name is swapped for another: no name is in two concepts."""
    pairs = {}
    for family in ("truth", "arithmetic"):
        texts = [t for t in organism.draw(family, n, seed) if t.group and t.group in t.prompt()[-1]["content"]]
        names = sorted({t.group for t in texts if t.group})
        for old, new in zip(names[0:8:2], names[1:8:2]):
            pair = ([], [])
            for t in texts:
                for side, name in zip(pair, (old, new)):
                    said = t.prompt()[-1]["content"].replace(t.group or "", name)
                    side.append([*t.prompt()[:-1], {"role": "user", "content": said}])
            different = {json.dumps(p): i for i, p in enumerate(zip(*pair))}  # swapped texts may have become equal
            pairs[f"{old} > {new}"] = tuple([side[i] for i in sorted(different.values())] for side in pair)
    return pairs


def from_file(path: str) -> dict[str, tuple[list, list]]:
    pairs: dict[str, tuple[list, list]] = {}
    with open(path) as file:
        for d in map(json.loads, file):
            base, target = pairs.setdefault(d["concept"], ([], []))
            base.append(d["base"])
            target.append(d["target"])
    return pairs


def of_latents(dictionary, at, seed: int):
    """Two tables: the best single latent against supervised probes, and TPP. at: concept -> (states without, with)."""
    states = torch.cat([side for sides in at.values() for side in sides]).float()
    pair = np.concatenate([np.tile(np.arange(len(base)), 2) for base, _ in at.values()])
    train, test = np.flatnonzero(pair % 2 == 0), np.flatnonzero(pair % 2 == 1)
    logits = []
    for base, target in at.values():
        x = torch.cat([base[::2], target[::2]]).float()
        y = torch.arange(len(x))[None] >= len(base[::2])
        probe = readouts.logistic(x[None], y, torch.tensor([0.1]), torch.ones_like(y))
        logits.append(probe.scores(states[None])[0, 0])
    rows = dictionary.encode(states), torch.stack(logits, 1), train, test
    score = ceiling_estimates(*rows, groups=pair, seed=seed)
    best = pd.DataFrame({
        "concept": list(at), "best latent, |r| with the probe": [e.short for e, _ in score],
        "rows shuffled": [f"{chance:.3f}" for _, chance in score],
    })  # fmt: skip
    data = {name: (torch.cat(sides), [0] * len(sides[0]) + [1] * len(sides[1])) for name, sides in at.items()}
    groups = {name: [*range(len(base))] * 2 for name, (base, _) in at.items()}
    return best, tpp(dictionary, data, groups=groups, seeds=range(seed, seed + 5))


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    data: Annotated[str, typer.Option(help="pairs.jsonl; swapped names of the embedded world by default")] = "",
    n: int = 300,
    halvings: int = 10,
    seed: int = 0,
    sae: Annotated[str, typer.Option(help="folder of an SAE; the embedded model's own by default")] = "",
    folder: Annotated[Path, typer.Option(help="cache and report")] = Path("runs/identity"),
) -> None:
    """Test every site and write the page."""
    torch.set_num_threads(1)
    lm = ll.load(model or None, cache=ll.ActivationCache(folder / "cache"))
    pairs = from_file(data) if data else swaps(n, seed)
    dictionary = ll.load_sae(sae or organism.sae_path(), lm=lm) if sae or (not model and organism.saes()) else None
    flat = [text for sides in pairs.values() for side in sides for text in side]
    acts = lm.activations(flat, sites=["resid_pre[0]", "resid_post[*]", "final_norm"], where="last")
    found, latents = {}, []
    for site in acts.sites:
        states = iter(acts[site].float().split([len(s) for sides in pairs.values() for s in sides]))
        # The embedding of the last token is the same in both texts of most pairs: there is nothing to test.
        at = {name: (next(states), next(states)) for name in pairs}
        if all(float((b - a).abs().max()) > 1e-6 for a, b in at.values()):
            found[str(site)] = identity_test(at, halvings=halvings, seed=seed)
        if dictionary is not None and site == dictionary.site:
            best, scores = of_latents(dictionary, at, seed)
            latents = [ll.Section(f"Latents of the SAE at {site}", [best, "Ablated (TPP, 5 seeds):", scores.table()])]
            for title, frame in (("best single latent", best), ("TPP", scores.table())):
                print_table(f"{title}, SAE at {site}", list(frame), frame.values.tolist())
    table = pd.DataFrame(
        {"site": s, "gap": t.gap, "gap, shuffled": t.gap_shuffled, "top-1": t.top1, "top-1, shuffled": t.top1_shuffled}
        for s, t in found.items()
    )
    shown = table.map(lambda v: v.short if isinstance(v, ll.Estimate) else v)
    sizes = ", ".join(f"{name} ({len(a)})" for name, (a, _) in pairs.items())
    print_table("A W = I?", list(shown), shown.values.tolist(), note=f"{halvings} halvings; pairs: {sizes}")
    last = list(found)[-1]
    matrix = found[last].to_frame().round(2).rename_axis("direction / classifier").reset_index()
    print_table(f"M at {last}, rows divided by their diagonal", list(matrix), matrix.values.tolist())
    page = ll.report(
        folder / "identity.html",
        title="Identity test",
        question="Do the directions of concepts and their classifiers invert each other?",
        highlights={
            name: (f"{e.value:.2f}", f"95% of {halvings} halvings: {e.low:.2f} to {e.high:.2f}")
            for name, e in (
                (f"gap at {last}", found[last].gap),
                ("the same, labels shuffled", found[last].gap_shuffled),
            )
        },
        sections=[
            ll.Section(f"Directions and classifiers at {last}", [plots.identity_matrix(found[last])]),
            ll.Section("By site", [plots.identity_by_site(found), table]),
            *latents,
        ],
        manifest=ll.manifest(lm, pairs=sizes, seed=seed, forwards=acts.about["forwards"]),
    )
    print(f"{last}: {found[last]}; {acts.about['forwards']} forward passes; page: {page}")


if __name__ == "__main__":
    typer.run(main)
