"""Can a trait be found from two kinds of instruction, and does adding what was found bring it out?

    python steering/persona_vectors.py                                              # four traits of the embedded model
    python steering/persona_vectors.py --model MODEL --traits steering/traits/formal.json          # judged by itself
    python steering/persona_vectors.py --model MODEL --traits T.json --judge NAME --judge-url http://localhost:8000/v1

For every trait: answers under instructions for and against it, judged, pairs filtered; the difference of means at every
block; AUROC on answers to other questions; block and largest strength by a sweep at acceptable coherence; then the
dose-response with random directions, other traits' vectors and the plain prompt; and whether the projection at the last
prompt token foretells the answer. Blocks and strengths are chosen on the questions of the extraction; what is reported
comes from the evaluation questions. A second run on the same folder writes and judges nothing again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.organism import personas
from latentlens.organism.corpus.voice import TRAITS
from latentlens.values.judging import COHERENCE_RUBRIC, TRAIT_RUBRIC
from latentlens.views.terminal import print_table


def own_traits(names: list[str]):
    """Traits of the embedded model, judged by rules."""
    judges = {name: ll.RuleJudge(personas.percent(name), f"{name} words") for name in names}
    return {name: personas.trait(name) for name in names}, judges, ll.RuleJudge(personas.coherence, "on the topic")


def given_traits(files: list[Path], lm: ll.LensModel, judge: str, url: str, budget: int):
    """Traits from files, judged by a model: the one examined, another one, or one on a server."""
    traits = [ll.Trait.load(file) for file in files]
    if not traits:
        raise typer.BadParameter("name a trait file, --traits steering/traits/formal.json (docs/persona.md)")
    if url:
        server = ll.Endpoint(judge, url, budget=budget)
        rate, fluent = ll.EndpointJudge(server, TRAIT_RUBRIC), ll.EndpointJudge(server, COHERENCE_RUBRIC)
    else:
        by = ll.load(judge) if judge else lm
        rate, fluent = ll.LocalJudge(by, TRAIT_RUBRIC), ll.LocalJudge(by, COHERENCE_RUBRIC)
    return {t.name: t for t in traits}, {t.name: rate for t in traits}, fluent


def states(lm: ll.LensModel, contrast):
    """Mean over the answer, and the last token of the prompt, at every block."""
    return [lm.activations(contrast.rows, "resid_post[*]", place, "mean") for place in ("response", "last_prompt")]


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    only: Annotated[str, typer.Option(help="which traits of the embedded model")] = ",".join(TRAITS),
    traits: Annotated[list[Path] | None, typer.Option(help="trait files, for another model")] = None,
    judge: Annotated[str, typer.Option(help="judging model, for another model; itself by default")] = "",
    judge_url: Annotated[str, typer.Option(help="OpenAI-compatible server of the judge; key in OPENAI_API_KEY")] = "",
    budget: Annotated[int, typer.Option(help="requests that the server may be sent")] = 20_000,
    samples: Annotated[int, typer.Option(help="answers to every question under every instruction")] = 2,
    coefs: Annotated[str, typer.Option(help="strengths of the sweep, in lengths of the vector")] = "2,4,6",
    least_coherence: Annotated[float, typer.Option(help="mean coherence that a setting must keep")] = 80.0,
    length: Annotated[int, typer.Option(help="tokens of an answer at most")] = 64,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="answers, verdicts, report; resumed from")] = Path(
        "runs/persona_vectors"
    ),
) -> None:
    """Extract, place, steer with and monitor the vector of every trait; write a page."""
    torch.set_num_threads(1)
    lm = ll.load(model or None, cache=ll.ActivationCache(folder / "cache"))
    wanted, judges, fluent = (
        given_traits(traits or [], lm, judge, judge_url, budget) if model else own_traits(only.split(","))
    )
    how = {"max_new_tokens": length, "temperature": 1.0, "folder": folder}
    vectors, choices, separations, answers, monitors, doses, counts = {}, {}, {}, {}, {}, {}, []
    for name, trait in wanted.items():
        found = ll.contrast(lm, trait, judges[name], fluent, samples=samples, seed=seed, **how)
        kept = ll.persona.keep(found)
        counts.append({"trait": name, "pairs": kept.asked, "kept": len(kept), **kept.dropped})
        response, last = states(lm, kept)
        vectors[name] = ll.persona.extract(kept, response, seed=seed)
        at_prompt = ll.persona.extract(kept, last, where="last_prompt", seed=seed)
        # Where and how strongly: the upper two thirds of the blocks, on the questions of the extraction.
        tried = [v for v in vectors[name] if v.site.block >= lm.layout.n_blocks // 3]
        strengths = [float(c) for c in coefs.split(",")]
        swept = ll.site_sweep(lm, tried, strengths, trait.questions, judges[name], fluent, about=trait.about, **how)
        choices[name] = ll.persona.choose_site(**swept, least_coherence=least_coherence)
        # Answers to other questions under the same instructions.
        held = ll.contrast(lm, trait.held_out, judges[name], fluent, samples=samples, seed=seed + 1000, **how)
        response, last = states(lm, held)
        separations[name] = ll.persona_monitoring.separation(
            response, vectors[name], [True] * len(held) + [False] * len(held), groups=held.questions * 2,
            lengths=[len(row) - row.n_prompt for row in held.rows], seed=seed,
        )  # fmt: skip
        alone = lm.activations(held.alone, "resid_post[*]", "role:assistant", "mean")
        answers[name] = ll.persona_monitoring.separation(
            alone, vectors[name], [True] * len(held) + [False] * len(held), groups=held.questions * 2, seed=seed
        )
        best, watch = vectors[name][choices[name].site], ll.persona_monitoring.monitor_contrast
        monitors[name] = {
            "at the last prompt token": watch(held, last, best),
            "there, with a vector from there": watch(held, last, at_prompt[best.site]),
            "over the response": watch(held, response, best),
        }
    for name, trait in wanted.items():
        at, top = choices[name].site, choices[name].strength
        doses[name] = ll.trait_doses(
            lm, vectors[name][at], [top * part for part in (0.25, 0.5, 0.75, 1.0)], trait.evaluation,
            {**judges, "coherence": fluent}, name, asked_by=trait.system("positive"),
            others={o: vectors[o][at] for o in wanted if o != name}, about={t.name: t.about for t in wanted.values()},
            seeds=range(seed, seed + 3), **how,
        )  # fmt: skip
        print(doses[name])
    summary = pd.DataFrame(
        {
            "trait": name,
            "site": str(choices[name].site),
            "AUROC, other questions": separations[name].at(choices[name].site)["auroc"],
            "AUROC, without the instruction": answers[name].at(choices[name].site)["auroc"],
            "random direction": separations[name].at(choices[name].site)["random"],
            "no edit": d.direction[0],
            "edited most": d.direction[-1],
            "above random": d.above_random[-1],
            "asked in words": d.prompted,
            "rises at every step": d.monotone,
            "r, last prompt token": monitors[name]["at the last prompt token"].pearson,
        }
        for name, d in doses.items()
    )  # fmt: skip
    shown = summary.map(lambda v: v.short if isinstance(v, ll.Estimate) else v)
    print_table("traits", list(shown), shown.values.tolist(), note="95% intervals, questions resampled")
    sections = [
        ll.Section("Traits", [ll.Captioned(summary, "Blocks and strengths were chosen on other questions.")]),
        *(
            ll.Section(
                name,
                [
                    ll.plots.trait_doses(doses[name]), doses[name],
                    ll.plots.trait_monitor(monitors[name], score=f"{name}, score of the answer"),
                    *monitors[name].values(),
                    ll.Captioned(separations[name], "Answers to other questions, read under their instruction."),
                    ll.Captioned(answers[name], "The same answers alone: what is in their words."),
                    choices[name], vectors[name],
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
