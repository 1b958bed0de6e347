"""Can a trait be found from two kinds of instruction, and does adding what was found bring it out?

    python steering/persona_vectors.py                                              # four traits of the embedded model
    python steering/persona_vectors.py --model MODEL --traits steering/traits/formal.json          # judged by itself
    python steering/persona_vectors.py --model MODEL --traits T.json --judge NAME --judge-url http://localhost:8000/v1

For every trait: answers under instructions for and against it, judged, pairs filtered; the difference of means at every
block; AUROC on answers to other questions, read under their instruction and alone, each beside random directions read
the same way; block and largest strength by a sweep at acceptable coherence; then the dose-response with random
directions, other traits' vectors and the plain prompt; and whether the projection at the last prompt token foretells
the answer. Blocks (to steer at, and to read answers alone at) and strengths are chosen on the questions of the
extraction; what is reported comes from the evaluation questions. A second run on the same folder writes and judges
nothing again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.commands import options
from latentlens.organism.corpus.voice import TRAITS
from latentlens.protocols.traits import judged_traits
from latentlens.views.terminal import print_frame


def read(lm: ll.LensModel, contrast):
    """States of the answers, of their last prompt token, and of the answers alone; which answers are for the trait."""
    response, last = (lm.activations(contrast.rows, "resid_post[*]", at, "mean") for at in ("response", "last_prompt"))
    alone = lm.activations(contrast.alone, "resid_post[*]", "role:assistant", "mean")
    return response, last, alone, [True] * len(contrast) + [False] * len(contrast)


def most(curves) -> ll.Estimate | None:
    """Of the ends of several dose-responses the highest."""
    return max((curve[-1] for curve in curves.values()), key=lambda e: e.value, default=None)


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    only: Annotated[str, typer.Option(help="which traits of the embedded model")] = ",".join(TRAITS),
    traits: options.Traits = None,
    judge: options.Judge = "",
    judge_url: options.JudgeUrl = "",
    budget: options.Budget = 20_000,
    samples: Annotated[int, typer.Option(help="answers to every question under every instruction")] = 2,
    coefs: Annotated[str, typer.Option(help="strengths of the sweep, in lengths of the vector")] = "2,4,6",
    least_coherence: options.LeastCoherence = 80.0,
    length: options.Length = 64,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="answers, verdicts, report; resumed from")] = Path(
        "runs/persona_vectors"
    ),
) -> None:
    """Extract, place, steer with and monitor the vector of every trait; write a page."""
    torch.set_num_threads(1)
    lm = ll.load(model or None, cache=ll.ActivationCache(folder / "cache"))
    given = judged_traits(lm, None if model else only.split(","), traits, judge=judge, url=judge_url, budget=budget)
    wanted, judges, fluent = given.traits, given.judges, given.coherence
    how = {"max_new_tokens": length, "temperature": 1.0, "folder": folder}
    vectors, choices, under, alone, monitors, doses, counts, reads, steers = {}, {}, {}, {}, {}, {}, [], [], []
    for name, trait in wanted.items():
        found = ll.contrast(lm, trait, judges[name], fluent, samples=samples, seed=seed, **how)
        kept = ll.persona.keep(found)
        counts.append({"trait": name, "pairs": kept.asked, "kept": len(kept), **kept.dropped})
        response, last, words, is_for = read(lm, kept)
        vectors[name] = ll.persona.extract(kept, response, seed=seed)
        at_prompt = ll.persona.extract(kept, last, where="last_prompt", seed=seed)
        seen = ll.persona_monitoring.separation(words, vectors[name], is_for, groups=kept.questions * 2, draws=0)
        read_at = max(seen.rows, key=lambda row: row["auroc"].value)["site"]
        # Where and how strongly: the upper two thirds of the blocks, on the questions of the extraction.
        tried = [v for v in vectors[name] if v.site.block >= lm.layout.n_blocks // 3]
        strengths = [float(c) for c in coefs.split(",")]
        swept = ll.site_sweep(lm, tried, strengths, trait.questions, judges[name], fluent, about=trait.about, **how)
        choices[name] = ll.persona.choose_site(**swept, least_coherence=least_coherence)
        # Answers to other questions under the same instructions.
        held = ll.contrast(lm, trait.held_out, judges[name], fluent, samples=samples, seed=seed + 1000, **how)
        response, last, words, is_for = read(lm, held)
        split = {"vectors": vectors[name], "labels": is_for, "groups": held.questions * 2, "seed": seed}
        lengths = [len(row) - row.n_prompt for row in held.rows]
        under[name] = ll.persona_monitoring.separation(response, lengths=lengths, **split)
        alone[name] = ll.persona_monitoring.separation(words, **split)
        best, watch = vectors[name][choices[name].site], ll.persona_monitoring.monitor_contrast
        monitors[name] = {
            "at the last prompt token": watch(held, last, best),
            "there, with a vector from there": watch(held, last, at_prompt[best.site]),
            "over the response": watch(held, response, best),
        }
        told, bare = under[name].at(best.site), alone[name].at(read_at)
        reads.append({
            "trait": name, "block": best.site.block, "under the instruction": told["auroc"], "random": told["random"],
            "length alone": under[name].length, "read at": read_at, "answers alone": bare["auroc"],
            "random ": bare["random"], "r, last prompt token": monitors[name]["at the last prompt token"].pearson,
            "within a kind of prompt": monitors[name]["at the last prompt token"].within,
        })  # fmt: skip
    for name, trait in wanted.items():
        at, top = choices[name].site, choices[name].strength
        doses[name] = ll.trait_doses(
            lm, vectors[name][at], [top * part for part in (0.25, 0.5, 0.75, 1.0)], trait.evaluation,
            given.columns, name, asked_by=trait.system("positive"),
            others={o: vectors[o][at] for o in wanted if o != name}, about=given.about,
            seeds=range(seed, seed + 3), **how,
        )  # fmt: skip
        d = doses[name]
        print(d)
        steers.append({
            "trait": name, "block": at.block, "strength": top, "no edit": d.direction[0], "edited": d.direction[-1],
            "above random": d.above_random[-1], "rises at every step": d.monotone, "coherence": d.coherence[-1],
            "asked in words": d.prompted, "other vectors, highest": most(d.other_vectors),
            "other traits, highest": most(d.off_target),
        })  # fmt: skip
    note = f"n = {next(iter(doses.values())).n} answers a number; 95% intervals, questions resampled; scores 0 to 100"
    said = "AUROC of answers to other questions; random: 50 directions, sign in hindsight, 95% of them; r of the score"
    told, done = pd.DataFrame(reads), pd.DataFrame(steers)
    print_frame("what the vector tells", told, note=said, digits=2)
    print_frame("what the vector does, at the largest strength", done, note=note, digits=1)
    of = lambda frame, *columns: frame[["trait", *columns]]
    sections = [
        ll.Section("What the vectors tell", [
            ll.Captioned(told.iloc[:, :5], said.rsplit("; ", 1)[0] + ". An instruction is easy to read."),
            ll.Captioned(of(told, "read at", "answers alone", "random "), "The same answers without the instruction, "
                "at the block where those of the extraction are told best: what is in the words."),
            ll.Captioned(of(told, "r, last prompt token", "within a kind of prompt"), "Projection before the answer "
                "against its score; then with the mean of each kind of prompt taken off both: what knowing the prompt "
                "does not give."),
        ]),
        ll.Section("What the vectors do", [
            ll.Captioned(done.iloc[:, :7], note + ". Blocks and strengths were chosen on other questions."),
            ll.Captioned(of(done, *done.columns[7:]), "Other vectors: those of the other traits at this length, on "
                "this trait. Other traits: their scores under this vector."),
        ]),
        *(
            ll.Section(
                name,
                [
                    ll.plots.trait_doses(doses[name]), doses[name],
                    ll.plots.trait_monitor(monitors[name], score=f"{name}, score of the answer"),
                    ll.Beside(monitors[name]),
                    ll.Captioned(under[name], "AUROC of answers to other questions, read under their instruction."),
                    ll.Captioned(alone[name], "The same answers alone: what is in their words."),
                    ll.Captioned(choices[name], "The sweep that chose block and strength, extraction questions."),
                    ll.Captioned(vectors[name], "Vectors of random halves of the questions, compared."),
                ],
            )
            for name in wanted
        ),
        ll.Section("Pairs of answers", [pd.DataFrame(counts).fillna(0)]),
    ]  # fmt: skip
    if len(wanted) > 1:
        at = next(iter(choices.values())).site
        together = {name: v[at] for name, v in vectors.items()}
        angles = ll.persona_algebra.cosine_map(together)
        caption = f"At {at}. Mean |cosine| {angles.mean:.3f}; random directions have {angles.chance:.3f} on average."
        sections.append(ll.Section("Angles", [ll.Captioned(ll.plots.cosine_map(together), caption)]))
    page = ll.report(
        folder / "persona_vectors.html",
        title="Persona vectors",
        question="Can a trait be found from instructions for and against it, and does its vector bring it out?",
        highlights={f"{name}, above random": d.above_random[-1] for name, d in doses.items()},
        sections=sections,
        method="Difference of mean response states between answers under instructions for and against a trait, pairs "
        "filtered by judges; block by steering sweep; controls of equal norm in the same run.",
        sources=["Persona Vectors, arXiv 2507.21509"],
        manifest=ll.manifest(lm, seed=seed, samples=samples, coefs=coefs, least_coherence=least_coherence),
    )
    print(f"report: {page}")


if __name__ == "__main__":
    typer.run(main)
