"""Endogenous steering resistance: does a model steered off topic notice, start over, and which latents carry that?

    python steering/esr.py [--quick]                       # the embedded model and its SAE: everything, one page
    python steering/esr.py --model MODEL --sae RELEASE --sae-id ID --labels labels.json --judge endpoint:NAME

The protocol of arXiv 2602.06941 from top to bottom: latents that have nothing to do with the prompts; for each the
strength at which the first attempt scores 30; the same trials replayed unsteered, steered, with off-topic detectors
ablated and with random latents ablated, in paired tests; dose and sufficiency; strengths; meta-prompts; latents around
corrections; judges compared; saying so against doing better, on new prompts; corrections taught. What is written is
kept in --folder: killed anywhere, the same command goes on where it stopped. Each part has a script of its own for
larger samples (steering/esr_*.py). docs/esr.md says what the paper left unpublished and how this fools you.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.access.measures.finetune import Lora
from latentlens.methods import esr
from latentlens.resistance import ablation, boosts, corrections, detection, inducing, meta_prompts, published
from latentlens.resistance.core import prepare
from latentlens.resistance.opening import forecast, open_study
from latentlens.views import figures
from latentlens.views.journal import Journal

SCHEDULES = ("persistent", "transient")
CLEAR = 0.03  # persistent steering is the headline where its multi-attempt rate lies above this by its whole interval


def main(
    quick: Annotated[bool, typer.Option(help="few latents and prompts: a look, not a result")] = False,
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    sae: Annotated[str, typer.Option(help="folder or release; the embedded model's by default")] = "",
    sae_id: str = "",
    quantization: Annotated[str | None, typer.Option(help="int8 or nf4")] = None,
    device_map: str | None = None,
    hook_layer: Annotated[str | None, typer.Option(help="where latents are added and clamped; the SAE's site")] = None,
    readout_layer: Annotated[str | None, typer.Option(help="where detectors are read; the SAE's site")] = None,
    prompts: Annotated[str, typer.Option(help="a file with one question a line")] = "",
    labels: Annotated[str, typer.Option(help="labels of latents, JSON")] = "",
    judge: Annotated[str, typer.Option(help="local, local:NAME, likelihood or endpoint:NAME")] = "",
    other_judge: Annotated[list[str] | None, typer.Option(help="grades again, for the agreement; repeatable")] = None,
    unit: Annotated[str, typer.Option(help="of strengths: norm (median norms at the hook) or raw")] = "norm",
    prior: Annotated[tuple[float, float] | None, typer.Option(help="belief about thresholds: mean, sd")] = None,
    bounds: Annotated[tuple[float, float] | None, typer.Option(help="range of thresholds")] = None,
    latents: Annotated[int, typer.Option(help="how many to steer with (0: 100, quick 24)")] = 0,
    per_latent: Annotated[int, typer.Option(help="prompts for each (0: 5, quick 4)")] = 0,
    n_detectors: Annotated[int, typer.Option(help="ablate so many (0: 0.4% of the SAE, at least 4)")] = 0,
    relevance: Annotated[str, typer.Option(help="of latents: silent on all prompts, or top-100 of none")] = "silent",
    rule: Annotated[str | None, typer.Option(help="of the detectors; the first that finds three")] = None,
    tune: Annotated[bool | None, typer.Option(help="fine-tune as well (by default only the embedded model)")] = None,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="finished work and the page")] = Path("runs/esr"),
) -> None:
    """Run the protocol and write its page."""
    if not model:
        torch.set_num_threads(1)  # a model this small is slower on two
    load = {"quantization": quantization, "device_map": device_map}
    place = {"hook": hook_layer, "readout": readout_layer, "unit": unit, "prior": prior, "bounds": bounds}
    words = {"prompts": prompts, "labels": labels, "judge": judge, "other_judges": other_judge or ()}
    study = open_study(model, sae, sae_id=sae_id, folder=folder, **words, **place, **load)
    n, each = latents or (24 if quick else 100), per_latent or (4 if quick else 5)
    few, rounds, samples, some = (3, 7, 2, 60) if quick else (5, 10, 4, 250)
    tune, asked = not model if tune is None else tune, len(study.task.prompts)
    parts = {
        "unsteered answers": asked * samples, "thresholds": 2 * n * few * rounds, "ablation": 2 * n * each * 13,
        "dose and sufficiency": 9 * some + asked * samples * 18, "strengths": 8 * some,
        "meta-prompts": 2 * (2 + 2 * len(study.task.meta)) * some, "new prompts": n * few * rounds + 4 * n * few,
        "tuned models": (3 if quick else 5) * (210 if quick else 1000) if tune else 0,
    }  # fmt: skip
    show = Journal()
    print(study)
    show.table(
        "Forecast",
        forecast(study, parts),
        "at the speed measured now; judges, tuning come on top, what the folder holds costs nothing",
    )

    # latents and detectors (1, 5)
    how = {"rounds": rounds, "per_round": few}
    sets = {
        "samples": samples,
        "n_sets": 2 if quick else 3,
        "rule": rule,
        "k": n_detectors or None,
        "relevance": relevance,
    }
    core = prepare(study, n, seed=seed, **sets, **how)
    chosen, controls, baseline = core.chosen, core.controls, core.baseline
    matched = {name: them for name, them in controls.items() if name.startswith("matched")}
    beside = dict(list(matched.items())[:1])
    show.table("Latents to steer with", core.sampled.to_frame().head(12), repr(core.sampled))
    show.table("Off-topic detectors", chosen.to_frame(), "; ".join(map(repr, core.found.by_rule.values())))
    show.table("Where the detectors fire", core.found.where(chosen), "answers below another question")
    show.table("Random latents beside them", core.found.frame_of({"detectors": chosen.latents, **controls}))

    # thresholds, and the same trials in every condition (2, 3, 4, 6)
    runs = {}
    for schedule in SCHEDULES:
        trials = core.trials(schedule, each)
        answers = study.answers(trials, ablation.conditions(core.rules, controls, schedule))
        rates = [esr.rates(a) for a in answers.values()]
        tests = ablation.effects(answers, list(core.rules), controls)
        runs[schedule] = trials, answers, rates, tests
        note = f"{core.limits(schedule)}; {len(trials)} trials, the same in every condition"
        picture = figures.resistance_conditions(rates, f"Does it start over, and does it help? ({schedule} steering)")
        show.table(f"Conditions, {schedule} steering", [r.line() for r in rates], note, figure=picture)
        show.table(f"Paired tests, {schedule} steering", [t.line() for t in tests])
        texts = esr.side_by_side(answers["steered"], answers["detectors ablated"])
        show.table(f"Some answers, {schedule} steering", texts, "those with several attempts first", quiet=True)
    lasting = runs["persistent"][2][1].multi
    headline = "persistent" if lasting.low > CLEAR else "transient"
    trials, answers, rates, tests = runs[headline]
    show.say(f"Headline: {headline} steering (persistent: multi-attempt {lasting.short}; clear above {CLEAR:g}).")

    # dose, sufficiency, strengths, meta-prompts (6, 7)
    dose = ablation.doses(study, trials[:some], core.found.chosen(chosen.rule, 8), headline)
    picture = figures.ablation_dose(dose, [r for r in rates if r.condition.startswith("matched")])
    show.table("Dose of ablation", [d.line() for d in dose], figure=picture)
    up = {f"{m} detectors": chosen.latents[:m] for m in (1, 2, 3)} | {name: them[:3] for name, them in beside.items()}
    lifted = ablation.raised(study, baseline, core.found, up, seed=seed)
    show.table("Sufficiency: latents raised", [r.line() for r in lifted], figure=figures.raised_latents(lifted))
    size = {"n_latents": 12, "per_latent": 5} if quick else {"n_latents": 25, "per_latent": 10}
    curve = boosts.curve(study, core.sampled, core.limits(headline), headline, seed=seed, **size)
    show.table("Strengths around the thresholds", [p.line() for p in curve], figure=figures.boost_curve(curve))
    meta = {}
    for schedule in SCHEDULES:
        meta[schedule], changes, _ = meta_prompts.compare(study, runs[schedule][0][:some], schedule)
        title, note = f"What does a meta-prompt change? ({schedule} steering)", "strengths as without a meta-prompt"
        picture = figures.resistance_conditions(meta[schedule], title)
        show.table(f"Meta-prompts, {schedule} steering", [r.line() for r in meta[schedule]], note, figure=picture)
        show.table(f"Meta-prompts, {schedule} steering, paired changes", [c.line() for c in changes])

    # latents around corrections, judges, saying so against doing better (8, 3, 10)
    helped = max(SCHEDULES, key=lambda s: runs[s][2][1].resisted.value)  # where most corrections made it better
    labelled = {"labels of starting over": them} if (them := corrections.backtracking(study.labels)) else {}
    read = {"detectors": chosen.latents, **beside, **labelled}
    try:
        around = corrections.around(study, runs[helped][1]["steered"], baseline, read)
        note = f"{around.episodes} answers under {helped} steering, {around.baseline} unsteered, read without steering"
        picture = figures.correction_traces(around.traces)
        show.table("Latents around corrections", [t.line() for t in around.tests], note, figure=picture)
    except ll.errors.TooFewExamples as error:
        show.say(f"Latents around corrections: {error}.")
    same = {}
    for schedule in SCHEDULES if study.task.other_judges else ():
        given = runs[schedule][1]["steered"]
        views = {judge.name: study.regraded(given, judge) for judge in study.task.other_judges}
        same[schedule] = esr.agreement({study.task.judge.name: given, **views}).assign(steering=schedule)
    if same:
        picture = figures.judge_agreement(same[headline])
        show.table("Agreement of judges", pd.concat(same.values(), ignore_index=True), figure=picture)
    held = detection.held_out(core, headline, per_latent=few)
    apart = [detection.separate(study, runs[s][1]["steered"], chosen, name=f"{s} steering") for s in SCHEDULES]
    apart.append(detection.separate(study, held.answers["steered"], held.chosen, name=f"{headline}, new prompts"))
    show.table("Saying so against doing better", [d.line() for d in apart])
    show.table(
        "New prompts", [r.line() for r in held.rates], f"thresholds and detectors {held.chosen.latents} from others"
    )
    show.table("New prompts, paired tests", [c.line() for c in held.changes])

    # corrections taught (9)
    if tune:
        training = {"epochs": 2 if quick else 4, "lr": 2e-4 if model else 5e-4, "lora": Lora() if model else None}
        less = {"n_latents": 10, "rounds": 5, "shares": (0.5,)} if quick else {"n_latents": 20, "rounds": 8}
        taught = inducing.by_share(core, helped, unlearn=not model, per_latent=few, **less, **training)
        note, picture = f"{helped} steering, thresholds found anew on every model", figures.induced_correction(taught)
        show.table("Corrections taught", [i.line() for i in taught], note, figure=picture)
    compared = published.beside({s: [*runs[s][2], *meta[s]] for s in SCHEDULES})
    show.table("Beside the published run", compared, published.CAUTION)
    found = {}
    for schedule in SCHEDULES:
        title = f"All metrics, {schedule} steering"
        note = "intervals: Wald's, Wilson's, whole latents drawn, whole prompts drawn"
        show.table(title, [line for r in runs[schedule][2] for line in r.lines()], note, quiet=True)
    for schedule in (headline, *(s for s in SCHEDULES if s != headline)):
        of, tests = {r.condition: r.multi for r in runs[schedule][2]}, runs[schedule][3]
        pooled = next((t for t in tests if t.first == "steered" and t.second.startswith("matched random")), tests[0])
        found |= {
            f"{schedule} steering: multi-attempt": of["steered"],
            f"{schedule}: change, detectors ablated (McNemar p {tests[0].p:.2g})": tests[0].change,
            f"{schedule}: change, {pooled.second}": pooled.change,
        }
    show.write(
        folder / "esr.html",
        title="Endogenous steering resistance",
        question="Does a model that is steered off topic notice, start over, and which latents carry that?",
        method=published.METHOD,
        sources=[published.SOURCE],
        highlights={"multi-attempt, unsteered": rates[0].multi, **found},
        manifest=ll.manifest(
            study.lm, seed=seed, headline=headline, sae=study.sae.fingerprint[:16], hook=str(study.hook),
            readout=str(study.reading.site), judge=study.task.judge.name,
            answers=f"{study.rows_run} written, {study.rows_found} found in the folder",
        ),
    )  # fmt: skip
    print(f"{study.rows_run} answers written, {study.rows_found} found in {folder}")


if __name__ == "__main__":
    typer.run(main)
