"""What do latents do around a correction? Answers written under steering, read again without it.

    python steering/esr_corrections.py [--schedule transient] [--latents 100] [--folder runs/esr]

Answers that start over and become better are cut into what went off topic, the correction, and what came after
(experiment 9 of arXiv 2602.06941). Detectors, random latents like them, and latents whose labels speak of starting over
are compared between regions, in pairs, and drawn token by token, aligned on the first token of the correction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import latentlens as ll
from latentlens.commands import options
from latentlens.resistance import corrections, published
from latentlens.resistance.core import prepare
from latentlens.resistance.opening import reopen
from latentlens.values.esr import Condition
from latentlens.views import figures
from latentlens.views.journal import Journal


def main(
    schedule: options.Schedule = "transient",
    latents: int = 100,
    per_latent: int = 5,
    improving: Annotated[bool, typer.Option(help="only answers whose last attempt is better")] = True,
    around: Annotated[int, typer.Option(help="tokens before and after the correction")] = 30,
    seed: int = 0,
    folder: options.StudyFolder = Path("runs/esr"),
) -> None:
    """Write steered answers, read them without steering, write a page."""
    study = reopen(folder)
    core, show = prepare(study, latents, seed=seed), Journal()
    steered = study.answers(core.trials(schedule, per_latent), [Condition("steered", schedule)])["steered"]
    sets = {"detectors": core.chosen.latents, **core.controls}
    if labelled := corrections.backtracking(study.labels):
        sets["labels of starting over"] = tuple(labelled)
        show.table("Labels of starting over", [{"latent": j, "label": study.labels[j]} for j in labelled[:20]])
    how = {"improving": improving, "before": around, "after": around}
    found = corrections.around(study, steered, core.baseline, sets, **how)
    picture = figures.correction_traces(found.traces)
    note = f"{found.episodes} answers with a correction, {found.baseline} unsteered ones"
    show.table("Regions compared", [t.line() for t in found.tests], note, figure=picture)
    show.table("Traces", found.traces.to_frame(), quiet=True)
    peak = found.tests[0]
    show.write(
        folder / "esr_corrections.html",
        title="Latents around corrections",
        question="What do latents do before, during and after a correction?",
        method=published.METHOD,
        sources=[published.SOURCE],
        highlights={f"Cohen d, {peak.latents}: {peak.first} against {peak.second}": f"{peak.d:.2f}"},
        manifest=ll.manifest(study.lm, seed=seed, schedule=schedule, readout=str(study.reading.site)),
    )


if __name__ == "__main__":
    typer.run(main)
