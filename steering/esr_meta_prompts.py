"""Does it help to ask for it? Four kinds of meta-prompt, with and without steering, and several judges on the answers.

    python steering/esr_meta_prompts.py [--schedule persistent] [--latents 60] [--folder runs/esr]

Strengths are those found without a meta-prompt (experiment 5 of arXiv 2602.06941), so a meta-prompt can change the
first attempt as well as what follows it: both are shown. The answers are then graded again by the task's other judges.
"""

from __future__ import annotations

from pathlib import Path

import typer

import latentlens as ll
from latentlens.commands import options
from latentlens.methods import esr
from latentlens.resistance import meta_prompts, published
from latentlens.resistance.core import prepare
from latentlens.resistance.opening import reopen
from latentlens.views import figures
from latentlens.views.journal import Journal


def main(
    schedule: options.Schedule = "transient",
    latents: int = 60,
    per_latent: int = 5,
    seed: int = 0,
    folder: options.StudyFolder = Path("runs/esr"),
) -> None:
    """Compare meta-prompts, regrade, write a page."""
    study = reopen(folder)
    core, show = prepare(study, latents, seed=seed), Journal()
    rates, changes, answers = meta_prompts.compare(study, core.trials(schedule, per_latent), schedule)
    picture = figures.resistance_conditions(rates, f"What does a meta-prompt change? ({schedule} steering)")
    show.table("Meta-prompts", [r.line() for r in rates], "strengths as without a meta-prompt", figure=picture)
    show.table("Paired changes", [c.line() for c in changes], "same latent, prompt and strength; other randomness")
    for name in ("steered", *study.task.meta):
        judged = {study.task.judge.name: answers[name]}
        judged |= {one.name: study.regraded(answers[name], one) for one in study.task.other_judges}
        if len(judged) > 1:
            same = esr.agreement(judged)
            show.table(f"Agreement of judges, {name}", same, figure=figures.judge_agreement(same))
    show.write(
        folder / "esr_meta_prompts.html",
        title="Steering resistance and meta-prompts",
        question="Does a steered model correct itself more often when it is asked to?",
        method=published.METHOD,
        sources=[published.SOURCE],
        highlights={f"{c.second}, change": c.change for c in changes if c.outcome == "multi"},
        manifest=ll.manifest(study.lm, seed=seed, schedule=schedule, wording=study.task.meta),
    )


if __name__ == "__main__":
    typer.run(main)
