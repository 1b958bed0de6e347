"""Which steering methods work, at the same KL, and at what price?

    python steering/method_bench.py                                       # the embedded model, four concepts
    python steering/method_bench.py --quick                               # fewer methods, prompts and strengths
    python steering/method_bench.py --model MODEL --concepts concepts.json [--sae FOLDER] [--judge MODEL]

Every method finds its direction from the same pairs of texts, at one block, and is brought to the strength at which the
p95 of the per-token KL to the unsteered model is one nat over 20 greedy tokens of eight prompts that are not scored.
There the answers to other prompts are scored: the concept, the task, what should not change, and how likely the
unsteered model finds them. Then AxBench's score: the strength (multiples of the budget's) is chosen on half of the
prompts, the harmonic mean of concept, task and fluency taken from the other half. The block is the one at which the
MEAN DIFFERENCE does best on the eight prompts, which favours it. A second run on the same folder writes nothing.
`concepts.json`: see `ll.read_concepts`.

Controls: no edit; asked in words; random directions; the mean difference of two halves of the texts WITHOUT the
concept; and that of shuffled labels, which is no null: where the concept is what varies most in the texts, shuffled
labels still point along it, with a random sign, and a KL budget forgives the length that they lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.access.measures.steering_arms import dose_arms, scored_answers, time_arms
from latentlens.access.store.kept_numbers import KeptNumbers
from latentlens.methods.directions.arms import RANDOM
from latentlens.organism.concepts import DEFAULT
from latentlens.organism.concepts import concepts as embedded
from latentlens.protocols.concepts import best_block, concept_arms
from latentlens.views.terminal import print_table

UNSCORED = 8  # prompts at which strengths and the block are chosen


def trained_sae(lm: ll.LensModel, block: int, folder: Path) -> Any:
    """An SAE of the embedded model at the block; that of other weights is left alone."""
    weights = lm.activations(["the"], sites=f"resid_post[{block}]").about["context_digest"]
    place = folder / f"sae-{block}-{weights[:8]}"
    if not (place / "cfg.json").exists():
        texts = [t.messages() or t.text for f in ll.organism.families() for t in ll.organism.draw(f, 300, 21)]
        ll.train_sae(lm, texts, f"resid_post[{block}]", "topk", d_sae=512, k=16, tokens=300_000, out=str(place))
    return ll.load_sae(str(place))


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    concepts: Annotated[str, typer.Option(help="a .json file; or names of the embedded model's: sea,formal,...")] = "",
    sae: Annotated[str, typer.Option(help="folder of an SAE; one is trained for the embedded model")] = "",
    judge: Annotated[str, typer.Option(help="model that answers rubrics; the steered one by default")] = "",
    block: Annotated[int, typer.Option(help="where to steer; -1: where the mean difference does best")] = -1,
    prompts: Annotated[int, typer.Option(help="prompts scored, for the embedded model")] = 24,
    temperature: float = 1.0,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="where answers and numbers are kept")] = Path("runs/method_bench"),
    quick: Annotated[bool, typer.Option(help="two concepts, 12 prompts, three strengths, the cheap methods")] = False,
) -> None:
    """Compare the methods and write a page."""
    torch.set_num_threads(1)
    if concepts.endswith(".json"):
        chosen = ll.read_concepts(concepts)
    elif model and not concepts:
        raise typer.BadParameter("--model needs --concepts FILE.json: the names are of the embedded model's")
    else:
        names = concepts.split(",") if concepts else DEFAULT[1:3] if quick else DEFAULT
        chosen = embedded(names, 60 if quick else 120, UNSCORED + (12 if quick else prompts), seed)
    lm, kept = ll.load(model or None, cache=ll.ActivationCache(folder / "cache")), KeptNumbers(folder / "numbers")
    factors, fits, frames, spent, slower = (0.5, 1, 1.41) if quick else (0.5, 1, 1.41, 2), {}, [], [], {}
    depth = lm.layout.n_blocks
    blocks = sorted({round(b) for b in np.linspace(depth / 6, depth - 2, 3 if quick else 6)})
    how = {"seeds": [seed], "temperature": temperature, "folder": folder / "answers"}
    how["judge"] = ll.load(judge) if judge else None
    for concept in chosen:
        at = block if block >= 0 else best_block(lm, concept, blocks, kept, tuning=UNSCORED, **how)
        used = ll.load_sae(sae) if sae else None if quick or model else trained_sae(lm, at, folder)
        fits[concept.name] = concept_arms(lm, concept, at, kept=kept, sae=used, quick=quick, tuning=UNSCORED)
        found = fits[concept.name].found
        doses = dose_arms(lm, concept.prompts[:UNSCORED], found, kept, ll.calibrate.kl_budget_batch)
        frames.append(scored_answers(lm, concept, slice(UNSCORED, None), found, doses, factors, kept=kept, **how))
        slower = slower or time_arms(lm, concept.prompts[:16], found, doses, kept)
        for arm, dose in zip(found, doses, strict=True):
            spent.append({"concept": concept.name, "block": at, "method": arm.name, "draw": arm.draw, **vars(dose)})
        print(f"{concept!r}: block {at}, {len(found)} arms, {frames[-1].attrs['rows_run']} answers written")
    frame = pd.concat(frames, ignore_index=True)
    about = {"model": repr(lm), "budget": "p95 of KL = 1 nat over 20 greedy tokens"}
    bench = ll.method_bench(frame, slowdown=slower, fits=fits, seed=seed, about=about)
    shown = bench.table()[
        ["method", "harmonic mean", "concept", "above random", "off target", "nats a token", "time a token"]
    ]
    note = f"* control; at least {min(s.concept.n for s in bench.scores)} answers a row; 95% intervals; scores 0 to 2"
    print_table("steering methods, best harmonic mean first", list(shown), shown.values.tolist(), note=note)
    for reason in bench.about["left out"]:
        print(f"left out: {reason}")
    best = next(one for one in bench.scores if one.role == "method")
    page = ll.report(
        folder / "method_bench.html",
        title="Steering methods at the same KL",
        question="Which steering methods work, at the same KL to the unsteered model, and at what price?",
        method="\n\n".join(" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[2:]),
        sources=["AxBench, arXiv 2501.17148", "steering-lite, github.com/wassname/steering-lite", "docs/directions.md"],
        highlights={f"harmonic mean, {best.method}": best.harmonic, "random": bench[RANDOM].harmonic},
        sections=[
            ll.Section("Methods", [ll.plots.method_bench(bench), bench]),
            ll.Section("By concept, at the budget", [bench.by_concept()]),
            ll.Section("Written at the budget, first prompt", [bench.written(frame)]),
            ll.Section("Written at the strength chosen, first prompt", [bench.written(frame, chosen=True)]),
            ll.Section("Strengths", [ll.Captioned(pd.DataFrame(spent), "coeff spends the KL; 1 nat was asked for.")]),
            ll.Section("Left out", bench.about["left out"]),
        ],
        manifest=ll.manifest(lm, seed=seed, temperature=temperature, factors=factors),
    )
    print(f"{kept.made} measured, {kept.found} taken from {folder}; page: {page}")


if __name__ == "__main__":
    typer.run(main)
