r"""What will a training do to a trait, what did it do, and can steering while training prevent it?

    python steering/persona_training.py                                         # the embedded model learns to be formal
    python steering/persona_training.py --trait hostile --strengths 2,4
    python steering/persona_training.py --model MODEL --traits formal.json --traits other.json \
        --data formal.jsonl --data other.jsonl --data plain.jsonl             # lines {"prompt": ..., "response": ...}

Data sets that hold the trait in a rising share of their answers, without any instruction. Before training, every answer
is screened along the trait's vector: its projection minus that of the model's own answer, and so are answers with
another trait. Then the model is trained on each (a few steps, all weights), and asked questions that no training had:
score of the trait, and shift of the states. The same on the strongest data with the vector added while training
(preventative steering), with random directions of equal norm instead, and, at last, steering against the trait after
training. What training on data without the trait does is the baseline of every row. A second run on the same folder
writes, trains and judges nothing again.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.access.store.kept_numbers import KeptNumbers
from latentlens.commands import options
from latentlens.organism import personas
from latentlens.organism.corpus.voice import TRAITS
from latentlens.protocols.training import BATCH, RATE, read_answers, train_on_answers
from latentlens.protocols.traits import embedded_traits, traits_from_files
from latentlens.values.column_means import column_means
from latentlens.values.traits import asked
from latentlens.views.terminal import print_frame

SHARES = (0.0, 0.25, 0.5, 1.0)


def answers(split: str, n: int, seed: int) -> list[dict[str, str]]:
    """Prompts with answers of the corpus, very much in the trait's voice or in none; the instruction is left out."""
    drawn = (t for t in ll.organism.draw("traits", 12 * n, seed, split=split) if t.regime == "topics")
    chosen = [t.messages()[-2:] for t in drawn if t.grade in (0, 3) and t.topic not in personas.HELD_OUT][:n]
    return [{"prompt": user["content"], "response": said["content"]} for user, said in chosen]


def main(
    trait: Annotated[str, typer.Option(help=f"of the embedded model: {', '.join(TRAITS)}")] = "formal",
    model: Annotated[str, typer.Option(help="hub id or folder; all its weights are trained, in copies")] = "",
    traits: Annotated[list[Path] | None, typer.Option(help="files of two traits: the one trained, another")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="answers with the trait, with the other, plain")] = None,
    judge: options.Judge = "",
    judge_url: options.JudgeUrl = "",
    budget: options.Budget = 20_000,
    length: options.Length = 64,
    least_coherence: options.LeastCoherence = 80.0,
    strengths: Annotated[str, typer.Option(help="preventative strengths, in lengths of the vector")] = "2,4",
    coefs: Annotated[str, typer.Option(help="strengths of the sweep that places the vector")] = "2,4",
    rows: Annotated[int, typer.Option(help="answers in a data set")] = 120,
    steps: Annotated[int, typer.Option(help="training steps")] = 40,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="answers and report; resumed from")] = Path("runs/persona_training"),
) -> None:
    """Screen, train, measure, prevent; write a page."""
    torch.set_num_threads(1)
    if model and (len(traits or []) != 2 or len(data or []) != 3):
        raise typer.BadParameter("--model needs two --traits files and three --data files (docs/persona.md)")
    lm = ll.load(model or None, cache=ll.ActivationCache(folder / "cache"))
    if model:
        given = traits_from_files(traits or [], lm, judge=judge, url=judge_url, budget=budget)
        mine, theirs, plain = (read_answers(path, rows) for path in data or [])
    else:
        given = embedded_traits([trait, next(name for name in reversed(TRAITS) if name != trait)])
        plain, mine, theirs = (
            answers(split, rows, seed + 50 + i) for i, split in enumerate(("unprompted", *given.traits))
        )
    (trait, other), about, judges = given.traits, given.first, given.columns
    how = {"max_new_tokens": length, "temperature": 1.0, "folder": folder}
    found = ll.contrast(lm, about, judges[trait], judges["coherence"], samples=2, seed=seed, **how)
    kept = ll.persona.keep(found)
    vectors = ll.persona.extract(kept, lm.activations(kept.rows, "resid_post[*]", "response", "mean"), seed=seed)
    # After the last block nothing is left to learn around an addition: blocks from a third on, without the last.
    tried = [v for v in vectors if lm.layout.n_blocks // 3 <= v.site.block < lm.layout.n_blocks - 1]
    grid = [float(c) for c in coefs.split(",")]
    swept = ll.site_sweep(
        lm, tried, grid, about.questions, judges[trait], judges["coherence"], about=about.about, **how
    )
    vector = vectors[ll.persona.choose_site(**swept, least_coherence=least_coherence).site]

    sets = {f"{share:.0%} {trait}": [*mine[: int(share * rows)], *plain[int(share * rows) :]] for share in SHARES}
    sets[f"100% {other}"] = theirs
    screened = {}
    for name, part in sets.items():
        scored = ll.screen(lm, part, vector, max_new_tokens=length, seed=seed, folder=folder / "own")
        screened[name] = ll.persona_screening.projection_difference(
            scored["train_projection"], scored["own_projection"], vector, groups=scored["prompt"], seed=seed
        ).mean

    questions = [asked(q) for q in about.evaluation]

    def states(model: ll.LensModel, runs):
        last = model.activations(questions, vector.site, "last", cached=model is lm)
        return last, model.activations(runs, vector.site, "response", "mean", cached=False)

    def answered(model: ll.LensModel, plan=None):
        return model.generate(questions, length, 3, 1.0, seed + 7, steer=plan)

    @cache
    def before():
        return states(lm, answered(lm))

    @lru_cache(maxsize=1)  # one copy in memory at a time
    def tuned(name: str, along: float = 0.0, random: bool = False) -> ll.LensModel:
        steered = ll.Add(vector.random_like(seed) if random else vector, along) if along else None
        return train_on_answers(lm, sets[name], steps, seed=seed, plan=steered) if name else lm

    def measured(model: ll.LensModel, plan=None) -> dict[str, ll.Estimate]:
        """Scores of answers to the evaluation questions, likelihood under the untrained model, shift of the states."""
        runs = answered(model, plan)
        table = []
        for column, scored_by in judges.items():
            on = given.about.get(column, "")
            cases = [ll.Case(about.evaluation[run.prompt_index], run.text, on) for run in runs]
            kept_by = ll.cached(scored_by, folder / "verdicts")
            table.append([np.nan if s.value is None else s.value for s in kept_by.scores(cases)])
        names = [*(f"score of {name}" for name in (trait, other)), "coherence", "nats a token, untrained model"]
        groups = [run.prompt_index for run in runs]
        means = column_means(np.transpose([*table, ll.unsteered_nll(lm, runs)]), groups=groups)
        line = dict(zip(names, means))
        if plan is None:
            after = states(model, list(runs))
            shifts = [ll.persona_screening.finetune_shift(b, a, vector).mean for b, a in zip(before(), after)]
            line |= {"shift, last prompt token": shifts[0], "shift, own answers": shifts[1]}
        return line

    numbers = KeptNumbers(folder / "numbers")
    digest = lm.activations(questions[:1], vector.site, "last").about["context_digest"]
    setting = [digest, ll.Add(vector, 1.0).fingerprint, questions, length, steps, seed, RATE, BATCH]
    setting += [judge.fingerprint for judge in judges.values()]

    def kept_line(name: str, *how_trained, against: float = 0.0) -> dict[str, object]:
        """What was measured of a model, from the folder if it is there."""
        plan = ll.Add(vector, -against, where="last_prompt+response") if against else None
        key = ["training", *setting, sets.get(how_trained[0], ""), *how_trained[1:], against]
        measure = lambda: {k: [e.value, e.low, e.high, e.n] for k, e in measured(tuned(*how_trained), plan).items()}
        line = numbers.of(key, measure)
        return {"model": name, **{column: ll.Estimate(*four) for column, four in line.items()}}

    results, worst, last = [kept_line("untrained", "")], f"100% {trait}", float(strengths.split(",")[-1])
    for name in sets:
        results.append({**kept_line(name, name), "screening": screened[name]})
        if name == worst:
            undone = kept_line(f"{worst}, {-last:+g} the vector while answering", worst, against=last)
    for c in map(float, strengths.split(",")):
        for label, random in (("the vector", False), ("a random direction", True)):
            results.append(kept_line(f"{worst}, {c:+g} {label} while training", worst, c, random))
    results.append(undone)
    table = pd.DataFrame(results).rename(columns={"model": "trained on"})
    note = f"{len(questions)} questions that no training had, 3 answers each; 95% intervals, questions resampled"
    print_frame(f"{trait} at {vector.site}: training, and what it did", table, note=note)
    page = ll.report(
        folder / "persona_training.html",
        title="Training and a trait",
        question=f"What does training on {trait} answers do, and does steering while training prevent it?",
        highlights={r["model"]: r[f"score of {trait}"] for r in results if r["model"].startswith(("untrained", worst))},
        sections=[
            ll.Section("What each training did", [ll.Captioned(table, note)]),
            ll.Section("How to read it", [
                "Screening: projection of the training answers minus that of the model's own answers, before training. "
                f"Answers with the trait: {screened[worst]}. With another trait, {other}: {screened[f'100% {other}']}. "
                "Where the two are alike, screening tells answers with some trait from plain ones, and hardly which.",
            ]),
        ],
        method="AdamW on all weights, loss on the answers' tokens; vector from instructions, placed by a sweep.",
        sources=["Persona Vectors, arXiv 2507.21509"],
        manifest=ll.manifest(lm, seed=seed, trait=trait, vector=repr(vector), rows=rows, steps=steps),
    )  # fmt: skip
    print(f"report: {page}")


if __name__ == "__main__":
    typer.run(main)
