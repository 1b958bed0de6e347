"""At which strength does a steered model start over? Rates over strengths around the thresholds of its latents.

    python steering/esr_boosts.py [--schedule persistent] [--latents 60] [--levels 12] [--folder runs/esr]

Every latent is added at the same strengths, from three standard deviations of the thresholds below their mean to three
above (experiment 2 of arXiv 2602.06941). Too weak, and there is nothing to correct; too strong, and nothing can be.
Thresholds and answers that steering/esr.py left in the folder are used and not written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import latentlens as ll
from latentlens.commands import options
from latentlens.resistance import boosts, published
from latentlens.resistance.core import prepare
from latentlens.resistance.opening import reopen
from latentlens.views import figures
from latentlens.views.journal import Journal


def main(
    schedule: options.Schedule = "transient",
    latents: Annotated[int, typer.Option(help="whose thresholds set the strengths")] = 60,
    used: Annotated[int, typer.Option(help="latents that are steered with")] = 25,
    per_latent: int = 10,
    levels: int = 8,
    seed: int = 0,
    folder: options.StudyFolder = Path("runs/esr"),
) -> None:
    """Find thresholds, sweep strengths, write a page."""
    study = reopen(folder)
    core, show = prepare(study, latents, seed=seed), Journal()
    limits = core.limits(schedule)
    show.table("Thresholds", limits.to_frame().head(20), repr(limits))
    size = {"n_latents": used, "per_latent": per_latent, "levels": levels, "seed": seed}
    curve = boosts.curve(study, core.sampled, limits, schedule, **size)
    picture = figures.boost_curve(curve)
    show.table(f"Strengths around the thresholds, {schedule} steering", [p.line() for p in curve], figure=picture)
    best = max(curve, key=lambda p: p.rates.multi.value)
    show.write(
        folder / "esr_boosts.html",
        title="Steering resistance by strength",
        question="At which strength does a steered model start over?",
        method=published.METHOD,
        sources=[published.SOURCE],
        highlights={f"highest multi-attempt rate, at {best.z:+.1f} sd": best.rates.multi},
        manifest=ll.manifest(study.lm, seed=seed, schedule=schedule, hook=str(study.hook)),
    )


if __name__ == "__main__":
    typer.run(main)
