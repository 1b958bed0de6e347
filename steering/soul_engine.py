"""Can a character's sheet be read off a frozen model, and does the sheet steer it?

    python steering/soul_engine.py
    python steering/soul_engine.py --model MODEL --traits A.json --traits B.json --traits C.json --wanted A,B

Synthetic characters: a value of 0, 1/3, 2/3 or 1 in each of some traits, by default the embedded model's four. Their
excerpts come in three ways: from the corpus' grammar, every trait speaking at the rate of its value, no instruction
anywhere ("from rates", the embedded model only); written by the model under a system prompt that says the sheet, read
under it ("prompted") or without it ("prompted, alone"). A sample joins k of a character's N excerpts (dynamic
contextual sampling). Two heads on the frozen states, a psychometric one (traits) and an identity one, are trained on
some characters and judged on others, with a constant, a linear readout and shuffled sheets beside them, at every block;
mean over tokens and last token; with a shared layer, with and without the identity head. Then a sheet is a direction,
sum_t 2 (value_t - .5) v_t, without any training, with trait vectors from each source, persona vectors among them: its
dose-response beside random directions and the prompt. Nothing here is the paper's OCEAN: four planted traits stand in
for the five.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.commands import options
from latentlens.organism import personas
from latentlens.organism.corpus.voice import ASKED, TRAITS
from latentlens.protocols.traits import judged_traits
from latentlens.values.traits import asked
from latentlens.views.terminal import print_frame


def system(names, grades) -> str:
    """The system prompt of a character: every trait of grade 1 to 3, in words."""
    return " ".join(ASKED[int(g)].format(name) for name, g in zip(names, grades) if g)


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    traits: options.Traits = None,
    judge: options.Judge = "",
    judge_url: options.JudgeUrl = "",
    budget: options.Budget = 20_000,
    length: options.Length = 64,
    least_coherence: options.LeastCoherence = 80.0,
    characters: int = 80,
    excerpts: Annotated[int, typer.Option(help="N: excerpts of a character")] = 6,
    joined: Annotated[int, typer.Option(help="k: excerpts in a sample")] = 4,
    each: Annotated[int, typer.Option(help="samples of a character")] = 3,
    wanted: Annotated[
        str, typer.Option(help="traits at 1 in the sheet to steer with; the others at .5")
    ] = "formal,hostile",
    coefs: Annotated[str, typer.Option(help="strengths of the sweep, in mean lengths of the trait vectors")] = "2,4,6",
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="excerpts and report; resumed from")] = Path("runs/soul_engine"),
) -> None:
    """Collect excerpts, train the heads, steer with a sheet; write a page."""
    torch.set_num_threads(1)
    lm = ll.load(model or None, cache=ll.ActivationCache(folder / "cache"))
    given = judged_traits(lm, None if model else TRAITS, traits, judge=judge, url=judge_url, budget=budget)
    names, trait, high = list(given.traits), given.first, wanted.split(",")
    both = given.mean(high)  # a trait in --wanted that there is not is refused here
    rng, how = np.random.default_rng(seed), {"max_new_tokens": length, "temperature": 1.0, "folder": folder}
    grades = np.unique(rng.integers(0, 4, (4 * characters, len(names))), axis=0)
    grades = rng.permutation(grades)[:characters]
    drawn = [
        [personas.excerpt(dict(zip(names, g / 3)), Random(f"{seed} {c} {e}")) for e in range(excerpts)]
        for c, g in enumerate(grades)
        if not model
    ]
    asks = [asked(trait.questions[(3 * c + e) % len(trait.questions)], system(names, g))
            for c, g in enumerate(grades) for e in range(excerpts)]  # fmt: skip
    texts = ll.sweep(lm, asks, {"": None}, [seed], **{**how, "folder": folder / "rollouts"})["text"]
    wrote = [[chat[-1], {"role": "assistant", "content": text}] for chat, text in zip(asks, texts)]
    wrote = [wrote[c * excerpts : (c + 1) * excerpts] for c in range(len(grades))]

    who = np.repeat(np.arange(len(grades)), each)
    picks = [rng.choice(excerpts, joined, replace=False) for _ in who]

    def samples(source, prompted: bool = False):
        """K excerpts of a character one after the other, below the prompt that says its sheet or without it."""
        said = [asked("", system(names, grades[c]))[:-1] if prompted else [] for c in who]
        return [[*top, *(m for e in pick for m in source[c][e])] for top, c, pick in zip(said, who, picks)]

    blocks, words = "resid_post[*]", {"where": "role:assistant", "pool": "mean"}
    read = {
        "prompted": lm.activations(samples(wrote, True), blocks, **words),
        "prompted, alone": lm.activations(samples(wrote), blocks, **words),
    }
    if drawn:
        read["from rates"] = lm.activations(samples(drawn), blocks, **words)
        read["from rates, last token"] = lm.activations(samples(drawn), blocks, "last")
    fit = {"sheets": grades[who] / 3, "characters": who, "traits": names, "steps": 200, "n_shuffles": 3, "seed": seed}
    found = {name: ll.psychometrics.fit(acts, **fit) for name, acts in read.items()}
    best = {name: one.best() for name, one in found.items()}
    source = "from rates" if drawn else "prompted, alone"
    first, place = read[source], best[source].site
    kinds = [(name, "nothing shared", one) for name, one in best.items()]
    for name, identity in (("a shared layer", True), ("a shared layer, identity head removed", False)):
        one = ll.psychometrics.fit(first, sites=place, shared=64, identity=identity, **fit).best()
        kinds.append((source, name, one))
    heads = pd.DataFrame(
        {
            "excerpts": excerpt, "heads": name, "site": str(one.site), "MSE": one.mse, "constant": one.constant_mse,
            "R2": one.r2, "linear R2": one.ridge_r2, "shuffled R2": one.shuffled_r2, "identity": one.identity,
            "raw states": one.raw_identity, "chance": one.chance_identity, "mean |cosine|": one.angle,
            "by chance": one.chance_angle,
        }
        for excerpt, name, one in kinds
    )  # fmt: skip
    train, test = found[source].n_characters
    note = f"{train} training and {test} test characters, {each} samples each; 95% intervals, characters resampled"
    print_frame("heads on characters they never saw", heads, note=note)

    # Persona vectors beside the directions of the sheets.
    of_traits = {}
    for name, one in given.traits.items():
        answers = ll.contrast(lm, one, given.judges[name], given.coherence, samples=1, seed=seed, **how)
        kept = ll.persona.keep(answers)
        of_traits[name] = ll.persona.extract(kept, lm.activations(kept.rows, blocks, "response", "mean"))
    sources = {"persona vectors": [{n: v[s] for n, v in of_traits.items()} for s in first.sites]}
    sources |= {
        name: [one.directions for one in found[name].sites] for name in ("prompted", "from rates") if name in found
    }

    sheet, neutral = dict.fromkeys(high, 1.0), dict.fromkeys(names, 0.5)
    judges = {"character": both, **given.columns}
    grid, doses = [float(c) for c in coefs.split(",")], {}
    prompt = system(names, [3 * (name in high) for name in names])
    for name, vectors in sources.items():
        assert all(ll.persona_algebra.character(at, neutral) is None for at in vectors)  # a neutral sheet is no edit
        mixes = [ll.persona_algebra.character(at, sheet) for at in vectors]
        tried = [m for m in mixes if m is not None and m.site.block >= lm.layout.n_blocks // 3]
        swept = ll.site_sweep(lm, tried, grid, trait.questions, judges["character"], given.coherence, **how)
        chosen = ll.persona.choose_site(**swept, least_coherence=least_coherence)
        mix = next(m for m in tried if m.site == chosen.site)
        doses[name] = ll.trait_doses(
            lm, mix, [chosen.strength * part for part in (0.25, 0.5, 0.75, 1.0)], trait.evaluation, judges, "character",
            asked_by=prompt, about=given.about, seeds=range(seed, seed + 3), **how,
        )  # fmt: skip
        print(f"sheet {wanted} by {name}: {doses[name]}")
    page = ll.report(
        folder / "soul_engine.html",
        title="Soul engine",
        question="Can a character's sheet be read off a frozen model, and does the sheet steer it?",
        highlights={"R2, prompted excerpts": best["prompted"].r2, f"R2, {source}, linear": best[source].ridge_r2}
        | {f"sheet by {name}, above random": d.above_random[-1] for name, d in doses.items()},
        sections=[
            ll.Section("Heads on characters they never saw", [ll.Captioned(heads, note)]),
            *(ll.Section(f"Excerpts {name}: every block", [one, best[name]]) for name, one in found.items()),
            *(ll.Section(f"Sheet by {name}", [ll.plots.trait_doses(d), d]) for name, d in doses.items()),
        ],
        method="Heads of one hidden and of one linear layer, AdamW; every interval and the split go by character.",
        sources=["Soul Engine, arXiv 2512.07092", "Supervised Contrastive Learning, arXiv 2004.11362"],
        manifest=ll.manifest(lm, seed=seed, characters=len(grades), excerpts=excerpts, joined=joined, wanted=wanted),
    )
    print(f"report: {page}")


if __name__ == "__main__":
    typer.run(main)
