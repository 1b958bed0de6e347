"""Does it say that it went wrong, or does it resist? Two things counted apart, and the ablation on prompts never seen.

    python steering/esr_detection.py [--latents 100] [--folder runs/esr]

Among answers that begin off topic: in how many does the strongest detector fire, is a restart said, does the second
half score better? An answer that recovers after the steering has stopped has resisted nothing, so both schedules are
shown. Then half of the groups of prompts choose thresholds and detectors, and the other half is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import latentlens as ll
from latentlens.commands import options
from latentlens.resistance import detection, published
from latentlens.resistance.core import prepare
from latentlens.resistance.opening import reopen
from latentlens.values.esr import SCHEDULES, Condition
from latentlens.views import figures
from latentlens.views.journal import Journal


def main(
    latents: int = 100,
    per_latent: int = 5,
    margin: Annotated[float, typer.Option(help="points by which the second half must be better")] = 25.0,
    seed: int = 0,
    folder: options.StudyFolder = Path("runs/esr"),
) -> None:
    """Separate saying from doing under both schedules, old prompts and new; write a page."""
    study = reopen(folder)
    core, show, apart = prepare(study, latents, seed=seed), Journal(), []
    for schedule in SCHEDULES:
        off = core.chosen.latents
        made = [Condition("steered", schedule), Condition("detectors ablated", schedule, ablated=off)]
        for name, answers in study.answers(core.trials(schedule, per_latent), made).items():
            title = f"{schedule}, {name}"
            apart.append(detection.separate(study, answers, core.chosen, name=title, margin=margin))
        held = detection.held_out(core, schedule, per_latent=per_latent)
        title = f"{schedule}, new prompts"
        apart.append(detection.separate(study, held.answers["steered"], held.chosen, name=title, margin=margin))
        picture = figures.resistance_conditions(held.rates, f"New prompts, {schedule} steering")
        note = f"thresholds and detectors {held.chosen.latents} from the other prompts"
        show.table(f"New prompts, {schedule} steering", [r.line() for r in held.rates], note, figure=picture)
        show.table(f"New prompts, {schedule} steering, paired tests", [c.line() for c in held.changes])
    show.table("Saying so against doing better", [d.line() for d in apart], f"better: by {margin:g} points or more")
    show.write(
        folder / "esr_detection.html",
        title="Detection against resistance",
        question="Does a steered model say that it went wrong, or does it do better while it is still pushed?",
        method=published.METHOD,
        sources=[published.SOURCE],
        highlights={f"{d.condition}, says so": d.says for d in apart if "steered" in d.condition}
        | {f"{d.condition}, does better": d.recovers for d in apart if "steered" in d.condition},
        manifest=ll.manifest(study.lm, seed=seed, margin=margin),
    )


if __name__ == "__main__":
    typer.run(main)
