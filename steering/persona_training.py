"""What will a training do to a trait, what did it do, and can steering while training prevent it?

    python steering/persona_training.py                                         # the embedded model learns to be formal
    python steering/persona_training.py --trait hostile --strengths 2,4

Data sets that hold the trait in a rising share of their answers, without any instruction. Before training, every answer
is screened along the trait's vector: its projection minus that of the model's own answer, and so are answers with
another trait. Then the model is trained on each (a few steps, all weights), and asked questions that no training had:
score of the trait, and shift of the states. The same on the strongest data with the vector added while training
(preventative steering), with random directions of equal norm instead, and, at last, steering against the trait after
training. What training on data without the trait does is the baseline of every row.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.access.progress import Progress
from latentlens.organism import personas
from latentlens.organism.corpus.voice import TRAITS
from latentlens.values.column_means import column_means
from latentlens.values.traits import asked
from latentlens.views.terminal import print_table

SHARES, BATCH, RATE = (0.0, 0.25, 0.5, 1.0), 12, 3e-4


def answers(split: str, n: int, seed: int) -> list[dict[str, str]]:
    """Prompts with answers of the corpus, very much in the trait's voice or in none; the instruction is left out."""
    drawn = (t for t in ll.organism.texts("traits", 12 * n, seed, split=split) if t.regime == "topics")
    chosen = [t.messages()[-2:] for t in drawn if t.grade in (0, 3) and t.topic not in personas.HELD_OUT][:n]
    return [{"prompt": user["content"], "response": said["content"]} for user, said in chosen]


def trained(lm: ll.LensModel, data: list[dict[str, str]], steps: int, seed: int, plan=None) -> ll.LensModel:
    """A copy of the model after a few steps of AdamW on the answers' tokens; `plan` is in force while it is trained."""
    model = ll.load(copy.deepcopy(lm.model), tokenizer=lm.tokenizer, cache=False)
    rows = lm.tokens([[*asked(d["prompt"]), {"role": "assistant", "content": d["response"]}] for d in data])
    rng, optimiser = np.random.default_rng(seed), torch.optim.AdamW(model.model.parameters(), lr=RATE, weight_decay=0.0)
    model.model.train()
    with ll.preventing(model, plan) if plan else nullcontext(), Progress("train", steps, "step") as bar:
        for _ in range(steps):
            picked = [rows[i] for i in rng.choice(len(rows), BATCH)]
            ids = torch.zeros(BATCH, max(map(len, picked)), dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for i, row in enumerate(picked):
                ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row.ids), 1
                said = [p for p in range(1, len(row)) if "assistant" in row.role[p - 1 : p + 1]]  # and its end
                labels[i, said] = ids[i, said]
            model.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            bar.update(1)
    model.model.eval()
    return model


def main(
    trait: Annotated[str, typer.Option(help=f"one of {', '.join(TRAITS)}")] = "formal",
    strengths: Annotated[str, typer.Option(help="preventative strengths, in lengths of the vector")] = "2,4",
    coefs: Annotated[str, typer.Option(help="strengths of the sweep that places the vector")] = "2,4",
    rows: Annotated[int, typer.Option(help="answers in a data set")] = 120,
    steps: Annotated[int, typer.Option(help="training steps")] = 40,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="answers and report; resumed from")] = Path("runs/persona_training"),
) -> None:
    """Screen, train, measure, prevent; write a page."""
    torch.set_num_threads(1)
    lm = ll.load(cache=ll.ActivationCache(folder / "cache"))
    about, other = personas.trait(trait), next(name for name in reversed(TRAITS) if name != trait)
    judges = {name: ll.RuleJudge(personas.percent(name), f"{name} words") for name in (trait, other)}
    judges["coherence"] = ll.RuleJudge(personas.coherence, "on the topic")
    how = {"max_new_tokens": 64, "temperature": 1.0, "folder": folder}
    found = ll.contrast(lm, about, judges[trait], judges["coherence"], samples=2, seed=seed, **how)
    kept = ll.persona.keep(found)
    vectors = ll.persona.extract(kept, lm.activations(kept.rows, "resid_post[*]", "response", "mean"), seed=seed)
    # After the last block nothing is left to learn around an addition: blocks from a third on, without the last.
    tried = [v for v in vectors if lm.layout.n_blocks // 3 <= v.site.block < lm.layout.n_blocks - 1]
    grid = [float(c) for c in coefs.split(",")]
    swept = ll.site_sweep(lm, tried, grid, about.questions, judges[trait], judges["coherence"], **how)
    vector = vectors[ll.persona.choose_site(**swept, least_coherence=80).site]

    plain, mine, theirs = (answers(split, rows, seed + 50 + i) for i, split in enumerate(("unprompted", trait, other)))
    data = {f"{share:.0%} {trait}": [*mine[: int(share * rows)], *plain[int(share * rows) :]] for share in SHARES}
    data[f"100% {other}"] = theirs
    screened = {}
    for name, part in data.items():
        scored = ll.screen(lm, part, vector, max_new_tokens=64, seed=seed, folder=folder / "own")
        screened[name] = ll.persona_screening.projection_difference(
            scored["train_projection"], scored["own_projection"], vector, groups=scored["prompt"], seed=seed
        ).mean

    questions = [asked(q) for q in about.evaluation]

    def states(model: ll.LensModel, runs):
        last = model.activations(questions, vector.site, "last", cached=model is lm)
        return last, model.activations(runs, vector.site, "response", "mean", cached=False)

    def answered(model: ll.LensModel, plan=None):
        return model.generate(questions, 64, 3, 1.0, seed + 7, steer=plan)

    before = states(lm, answered(lm))

    def measured(name: str, model: ll.LensModel, plan=None) -> dict[str, object]:
        """Scores of answers to the evaluation questions, likelihood under the untrained model, shift of the states."""
        runs = answered(model, plan)
        cases = [ll.Case(about.evaluation[run.prompt_index], run.text) for run in runs]
        table = [[s.value for s in judge.scores(cases)] for judge in judges.values()]
        names = [*(f"score of {name}" for name in (trait, other)), "coherence", "nats a token, untrained model"]
        groups = [run.prompt_index for run in runs]
        means = column_means(np.transpose([*table, ll.unsteered_nll(lm, runs)]), groups=groups)
        line = {"model": name, **dict(zip(names, means))}
        if plan is None:
            after = states(model, list(runs))
            shifts = [ll.persona_screening.finetune_shift(b, a, vector).mean for b, a in zip(before, after)]
            line |= {"shift, last prompt token": shifts[0], "shift, own answers": shifts[1]}
        return line

    results, tuned, worst = [measured("untrained", lm)], {}, f"100% {trait}"
    for name, part in data.items():
        tuned[name] = trained(lm, part, steps, seed)
        results.append({**measured(name, tuned[name]), "screening": screened[name]})
    for c in map(float, strengths.split(",")):
        for label, along in (("the vector", vector), ("a random direction", vector.random_like(seed))):
            model = trained(lm, data[worst], steps, seed, ll.Add(along, c))
            results.append(measured(f"{worst}, {c:+g} {label} while training", model))
    last = float(strengths.split(",")[-1])
    against = ll.Add(vector, -last, where="last_prompt+response")
    results.append(measured(f"{worst}, {-last:+g} the vector while answering", tuned[worst], against))
    table = pd.DataFrame(results).rename(columns={"model": "trained on"})
    shown = table.map(lambda v: v.short if isinstance(v, ll.Estimate) else "" if v is None or v != v else v)
    note = f"{len(questions)} questions that no training had, 3 answers each; 95% intervals, questions resampled"
    print_table(f"{trait} at {vector.site}: training, and what it did", list(shown), shown.values.tolist(), note=note)
    page = ll.report(
        folder / "persona_training.html",
        title="Training and a trait",
        question=f"What does training on {trait} answers do, and does steering while training prevent it?",
        highlights={r["model"]: r[f"score of {trait}"] for r in results if r["model"].startswith(("untrained", worst))},
        sections=[
            ll.Section("What each training did", [ll.Captioned(table, note)]),
            ll.Section("How to read it", [
                "Screening: projection of the training answers minus that of the model's own answers, before training. "
                f"In the embedded model {trait} words alone look much like {other} words (docs/persona.md), so "
                "screening tells answers with a trait from plain ones, and hardly which trait.",
            ]),
        ],
        method="AdamW on all weights, loss on the answers' tokens; vector from instructions, placed by a sweep.",
        sources=["Persona Vectors, arXiv 2507.21509"],
        manifest=ll.manifest(lm, seed=seed, trait=trait, vector=repr(vector), rows=rows, steps=steps),
    )  # fmt: skip
    print(f"report: {page}")


if __name__ == "__main__":
    typer.run(main)
