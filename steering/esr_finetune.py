"""Can self-correction be taught? Fine-tuned on corrections mixed with plain answers, by the share of corrections.

    python steering/esr_finetune.py [--schedule transient] [--folder runs/esr] [--adapters]

A correction is the beginning of an answer to another question, which is read and not learnt, an acknowledgement, and
the right answer (experiment 4 of arXiv 2602.06941; the texts are the model's own). All weights of the embedded model
are tuned, adapters (peft) of others; and as the embedded model corrects itself already, it first unlearns that.
Thresholds are found anew on every model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import latentlens as ll
from latentlens.access.measures.finetune import Lora
from latentlens.commands import options
from latentlens.resistance import inducing, published
from latentlens.resistance.core import prepare
from latentlens.resistance.opening import reopen
from latentlens.views import figures
from latentlens.views.journal import Journal


def main(
    schedule: options.Schedule = "transient",
    shares: Annotated[str, typer.Option(help="shares of corrections among the training texts")] = "0.1,0.3,0.5,0.7,0.9",
    n_rows: Annotated[int, typer.Option(help="training texts (0: twice the unsteered answers)")] = 0,
    epochs: int = 4,
    lr: Annotated[float, typer.Option(help="(0: 2e-4 for adapters, 5e-4 for all weights)")] = 0.0,
    adapters: Annotated[bool | None, typer.Option(help="by default for every model but the embedded one")] = None,
    latents: int = 40,
    per_latent: int = 5,
    seed: int = 0,
    folder: options.StudyFolder = Path("runs/esr"),
) -> None:
    """Tune by mixing ratio, find thresholds on every model, compare rates, write a page."""
    study = reopen(folder)
    core, show = prepare(study, latents, seed=seed), Journal()
    embedded = study.lm.name == "organism"
    adapters = not embedded if adapters is None else adapters
    training = {"epochs": epochs, "lr": lr or (2e-4 if adapters else 5e-4), "lora": Lora() if adapters else None}
    size = {"n_latents": latents, "per_latent": per_latent, "rounds": 8, "n_rows": n_rows or None}
    given = tuple(float(s) for s in shares.split(","))
    found = inducing.by_share(core, schedule, shares=given, unlearn=embedded, **size, **training)
    picture = figures.induced_correction(found)
    show.table(f"Corrections taught, {schedule} steering", [i.line() for i in found], figure=picture)
    show.write(
        folder / "esr_finetune.html",
        title="Self-correction taught",
        question="Does fine-tuning on corrections make a steered model correct itself?",
        method=published.METHOD,
        sources=[published.SOURCE],
        highlights={f"multi-attempt, {i.name}": i.rates.multi for i in found},
        manifest=ll.manifest(study.lm, seed=seed, schedule=schedule, shares=list(given), **training),
    )


if __name__ == "__main__":
    typer.run(main)
