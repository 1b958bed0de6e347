"""Can a character's sheet be read off a frozen model, and does the sheet steer it?

    python steering/soul_engine.py

Synthetic characters: a grade from 0 to 3 in each of the embedded model's four traits, asked for by a system prompt.
The model writes their excerpts; samples join k of a character's N excerpts (dynamic contextual sampling). Two heads
on the frozen states, a psychometric one (traits) and an identity one, are trained on some characters and judged on
others, with a constant, a linear readout and shuffled sheets beside them, at every block; on the excerpts alone and
with the system prompt above them; mean over tokens and last token; with a shared layer, with and without the identity
head. Then a sheet is a direction, sum_t 2 (value_t - .5) v_t, without any training: its dose-response beside random
directions and the prompt. Nothing here is the paper's OCEAN: four planted traits stand in for the five.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.organism import personas
from latentlens.organism.corpus.voice import ASKED, TRAITS
from latentlens.values.traits import asked
from latentlens.views.terminal import print_table


def system(grades) -> str:
    """The system prompt of a character: every trait of grade 1 to 3, in words."""
    return " ".join(ASKED[int(g)].format(name) for name, g in zip(TRAITS, grades) if g)


def main(
    characters: int = 40,
    excerpts: Annotated[int, typer.Option(help="N: excerpts of a character")] = 6,
    joined: Annotated[int, typer.Option(help="k: excerpts in a sample")] = 3,
    each: Annotated[int, typer.Option(help="samples of a character")] = 6,
    wanted: Annotated[
        str, typer.Option(help="traits at 1 in the sheet to steer with; the others at .5")
    ] = "formal,hostile",
    coefs: Annotated[str, typer.Option(help="strengths of the sweep, in mean lengths of the trait vectors")] = "1,2,4",
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="excerpts and report; resumed from")] = Path("runs/soul_engine"),
) -> None:
    """Write excerpts, train the heads, steer with a sheet; write a page."""
    torch.set_num_threads(1)
    lm = ll.load(cache=ll.ActivationCache(folder / "cache"))
    rng, trait = np.random.default_rng(seed), personas.trait(TRAITS[0])
    grades = np.unique(rng.integers(0, 4, (3 * characters, len(TRAITS))), axis=0)
    grades = rng.permutation(grades)[:characters]
    asks = [[asked(trait.questions[(3 * c + e) % len(trait.questions)], system(g)) for e in range(excerpts)]
            for c, g in enumerate(grades)]  # fmt: skip
    flat = [chat for mine in asks for chat in mine]
    written = ll.sweep(lm, flat, {"": None}, [seed], max_new_tokens=64, temperature=1.0, folder=folder / "rollouts")
    said = np.array(written["text"]).reshape(len(grades), excerpts)

    who = np.repeat(np.arange(len(grades)), each)
    picks = [rng.choice(excerpts, joined, replace=False) for _ in who]
    samples = [
        [m for e in pick for m in (asks[c][e][-1], {"role": "assistant", "content": said[c, e]})]
        for c, pick in zip(who, picks)
    ]
    prompted = [[*asked("", system(grades[c]))[:-1], *chat] for c, chat in zip(who, samples)]
    sheets = grades[who] / 3
    read = {
        ("alone", "mean"): lm.activations(samples, "resid_post[*]", "role:assistant", "mean"),
        ("alone", "last token"): lm.activations(samples, "resid_post[*]", "last"),
        ("under its prompt", "mean"): lm.activations(prompted, "resid_post[*]", "role:assistant", "mean"),
    }
    fit = {"sheets": sheets, "characters": who, "traits": TRAITS, "steps": 200, "n_shuffles": 3, "seed": seed}
    found = {key: ll.psychometrics.fit(acts, **fit) for key, acts in read.items()}
    best = {key: one.best() for key, one in found.items()}
    place = best["alone", "mean"].site
    variants = {
        "two heads, nothing shared": best["alone", "mean"],
        "two heads on a shared layer": ll.psychometrics.fit(
            read["alone", "mean"], sites=place, shared=64, **fit
        ).best(),
        "shared layer, identity head removed": ll.psychometrics.fit(
            read["alone", "mean"], sites=place, shared=64, identity=False, **fit
        ).best(),
    }
    kinds = [(*key, "two heads, nothing shared", one) for key, one in best.items()]
    kinds += [("alone", "mean", name, one) for name, one in list(variants.items())[1:]]
    heads = pd.DataFrame(
        {
            "excerpts": excerpt, "state": state, "heads": name, "site": str(one.site), "MSE": one.mse,
            "constant": one.constant_mse, "R2": one.r2, "linear R2": one.ridge_r2, "shuffled R2": one.shuffled_r2,
            "identity": one.identity, "raw states": one.raw_identity, "mean |cosine|": one.angle,
            "by chance": one.chance_angle,
        }
        for excerpt, state, name, one in kinds
    )  # fmt: skip
    shown = heads.map(lambda v: v.short if isinstance(v, ll.Estimate) else "" if v is None else v)
    train, test = found["alone", "mean"].n_characters
    note = f"{train} training and {test} test characters, {each} samples each; 95% intervals, characters resampled"
    print_table("heads on characters they never saw", list(shown), shown.values.tolist(), note=note)

    # The sheet as a direction, from both kinds of reading; place and strength on the questions of the excerpts.
    high = wanted.split(",")
    sheet = dict.fromkeys(high, 1.0)
    assert ll.persona_algebra.character(best["alone", "mean"].directions, dict.fromkeys(TRAITS, 0.5)) is None
    rate = {name: personas.percent(name) for name in TRAITS}
    judges = {
        "character": ll.RuleJudge(
            lambda case: float(np.mean([rate[n](case) for n in high])), f"mean of {wanted}", wanted
        ),
        **{name: ll.RuleJudge(rate[name], name) for name in TRAITS},
        "coherence": ll.RuleJudge(personas.coherence, "on the topic"),
    }
    how = {"max_new_tokens": 64, "temperature": 1.0, "folder": folder}
    prompt, doses = system([3 * (name in high) for name in TRAITS]), {}
    for key in (("under its prompt", "mean"), ("alone", "mean")):
        mixes = [ll.persona_algebra.character(one.directions, sheet) for one in found[key].sites]
        tried = [m for m in mixes if m is not None and m.site.block >= lm.layout.n_blocks // 3]
        grid = [float(c) for c in coefs.split(",")]
        swept = ll.site_sweep(lm, tried, grid, trait.questions, judges["character"], judges["coherence"], **how)
        chosen = ll.persona.choose_site(**swept, least_coherence=80)
        mix = next(m for m in tried if m.site == chosen.site)
        doses[key[0]] = ll.trait_doses(
            lm, mix, [chosen.strength * part for part in (0.25, 0.5, 0.75, 1.0)], trait.evaluation, judges, "character",
            asked_by=prompt, seeds=range(seed, seed + 3), **how,
        )  # fmt: skip
        print(f"sheet from excerpts {key[0]}: {doses[key[0]]}")
    page = ll.report(
        folder / "soul_engine.html",
        title="Soul engine",
        question="Can a character's sheet be read off a frozen model, and does the sheet steer it?",
        highlights={"R2, excerpts alone": best["alone", "mean"].r2,
                    "identity, excerpts alone": best["alone", "mean"].identity,
                    "sheet from prompted excerpts, above random": doses["under its prompt"].above_random[-1],
                    "sheet from excerpts alone, above random": doses["alone"].above_random[-1]},
        sections=[
            ll.Section("Heads on characters they never saw", [ll.Captioned(heads, note)]),
            *(ll.Section(f"Every block: excerpts {e}, {s}", [one, best[e, s]]) for (e, s), one in found.items()),
            *(ll.Section(f"Sheet as a direction, {n}", [ll.plots.trait_doses(d), d]) for n, d in doses.items()),
        ],
        method="Heads of one hidden and of one linear layer, AdamW; every interval and the split go by character.",
        sources=["Soul Engine, arXiv 2512.07092", "Supervised Contrastive Learning, arXiv 2004.11362"],
        manifest=ll.manifest(lm, seed=seed, characters=len(grades), excerpts=excerpts, joined=joined, wanted=wanted),
    )  # fmt: skip
    print(f"report: {page}")


if __name__ == "__main__":
    typer.run(main)
