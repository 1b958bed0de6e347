"""Can the language of programs be steered by a vector chosen for each prompt, and is choosing worth it?

    python steering/gact.py [--quick]                                      # the embedded model, its four languages
    python steering/gact.py --model MODEL --styles Python,C++,Java,Julia
    python steering/gact.py --model MODEL --styles formal,casual --patterns styles.json --wordings wordings.json

G-ACT clusters the differences that naming a style makes to the state of each prompt, trains a probe a block that names
the cluster, refines it online from judged answers, and adds the cluster's vector inside the hook. Beside it: the mean
difference, ACT on attention heads, the neuron that writes most towards the style, random directions, the clusters
permuted, and asking in words. All methods spend the same nats to the unsteered model (`--nats`, calibrated on prompts
of their own), then each its own best strength. `styles.json`: {"style": "regular expression"}; `wordings.json`:
[["... {task}", "... {style} ... {task}"], ...]. A second run on the same folder runs no model but for the timing.
docs/gact.md says what the paper left out and what was chosen here.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens import organism
from latentlens.access.measures.style_runs import WORDINGS, StyledTasks
from latentlens.maths.grouped_splits import distinct_parts
from latentlens.methods.code_language import LANGUAGES, is_valid, language_of, style_by_patterns
from latentlens.protocols.styles import fit_styles, refine
from latentlens.values.style_effect import StyleEffect, arms_by_target, pooled_difference
from latentlens.views.figures import cluster_probes, style_shares
from latentlens.views.terminal import print_frame

PLACES, MULTIPLES = ("last_prompt", "last_prompt+response"), (1.0, 1.5, 2.0, 3.0)
BEST = ("G-ACT", "mean difference", "ACT heads", "neuron")
RIVALS = ("mean difference", "G-ACT, permuted", "ACT heads", "neuron", "random 0", "asked in words")


def tasks_of(path: str, sizes: list[int]) -> list[list[str]]:
    """Distinct tasks, a line each of a file or those of the embedded model's programs, in parts of these sizes."""
    n = sum(sizes)
    lines = Path(path).read_text().splitlines() if path else [str(t.group) for t in organism.draw("code", 6 * n, 1)]
    return distinct_parts(filter(None, map(str.strip, lines)), sizes, what="tasks (--quick takes fewer)")


def main(
    model: Annotated[str | None, typer.Option(help="hub id or folder; the embedded model by default")] = None,
    styles: Annotated[str, typer.Option(help="comma-separated, as they stand in a prompt")] = ",".join(LANGUAGES),
    patterns: Annotated[str, typer.Option(help="styles.json, for styles that are no programming languages")] = "",
    tasks: Annotated[str, typer.Option(help="a task a line; those of the embedded model by default")] = "",
    wordings: Annotated[str, typer.Option(help="wordings.json: pairs, the style left open and named")] = "",
    k: Annotated[int, typer.Option(help="clusters of differences")] = 3,
    m: Annotated[int, typer.Option(help="blocks steered, those of highest held-out macro-F1")] = 4,
    nats: Annotated[float, typer.Option(help="KL of an answer to the unsteered model, for the comparison")] = 0.3,
    where: Annotated[str, typer.Option(help="positions steered; by default what keeps more answers valid")] = "",
    length: Annotated[int, typer.Option(help="tokens of an answer; by default 48, other models 160")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a third of the prompts")] = False,
    seed: Annotated[int, typer.Option(help="of clusters, probes and answers")] = 0,
    folder: Annotated[Path, typer.Option(help="cache, rows and page")] = Path("runs/gact"),
) -> None:
    """Fit, refine, calibrate, steer towards every style in turn; print tables, write the page."""
    torch.set_num_threads(1 if model is None else torch.get_num_threads())
    lm, names = ll.load(model, cache=ll.ActivationCache(folder / "cache")), [s.strip() for s in styles.split(",")]
    signs = json.loads(Path(patterns).read_text()) if patterns else None
    if signs is not None and set(names) - set(signs):
        raise ll.errors.BadInput(f"{patterns} has no pattern for {', '.join(sorted(set(names) - set(signs)))}")
    ask = StyledTasks(
        lm, tuple(names), folder=folder / "rows",
        wordings=json.loads(Path(wordings).read_text()) if wordings else WORDINGS,
        judge=partial(style_by_patterns, patterns=signs) if signs else partial(language_of, among=names),
        valid=(lambda text, style: None) if signs else is_valid,
        options={"max_new_tokens": length or (48 if model is None else 160), "temperature": 1.0},
    )  # fmt: skip
    fitting, tuning, stream, testing = tasks_of(tasks, [32, 8, 16, 16] if quick else [84, 16, 40, 48])
    seeds = [seed] if quick else [seed, seed + 1]
    found, stable, brittle = fit_styles(ask, fitting, list(ask.telling_tokens(tuning).values()), k=k, seed=seed)
    found, taught = refine(ask, found, stream, testing, seed=seed)
    print(f"fitted on {len(fitting)} prompts, refined on {len(stream)}", flush=True)

    search = {"target": nats, "low": 0.02, "high": 8, "tol": 0.1, "max_iterations": 8}
    spent = partial(ask.budgets, tuning, seeds=[seed], search=ll.calibrate.kl_budget_batch, **search)
    make = {(s, at): found[s].arms(m, at) for s in names for at in ([where] if where else PLACES)}
    tried = spent({one: plans["mean difference"] for one, plans in make.items()})
    kept: dict[str, float] = {}  # valid answers in the target, by the positions steered
    for (s, at), plans in make.items():
        arms = ask.answers(tuning, {"it": plans["mean difference"](tried[s, at].coeff)}, [seed])
        kept[at] = kept.get(at, 0.0) + arms["it"].hit(s).value / len(names)
    at = max(kept, key=lambda one: kept[one])
    print(f"valid answers in the target by the positions steered: {kept}", flush=True)
    spend = spent({(s, arm): plan for s in names for arm, plan in make[s, at].items()})

    equal, best, chosen = [], [], []
    for s in names:
        plans = {arm: plan(spend[s, arm].coeff) for arm, plan in make[s, at].items()}
        plans |= found[s].random(spend[s, "mean difference"].coeff, sites=m, where=at)
        done = ask.answers(testing, {"no edit": None, **plans}, seeds)
        words = ask.answers(testing, {"asked in words": None}, seeds, style=s)
        equal.append(StyleEffect(s, names, [*done.values(), *words.values()]))
        strong = {}
        for arm in BEST:
            budget, grid = spend[s, arm], {str(x): make[s, at][arm](x * spend[s, arm].coeff) for x in MULTIPLES}
            x = ask.best_of(tuning, grid, s, [seed])
            strong[arm] = grid[x]
            chosen.append({"target": s, "arm": arm, "strength": budget.coeff, "nats when tuned": budget.achieved,
                           "as asked": budget.converged, "best multiple": float(x)})  # fmt: skip
        steered = ask.answers(testing, strong, seeds)
        best.append(StyleEffect(s, names, [done["no edit"], *steered.values(), *words.values()]))
        print(f"{s}: valid answers {done['no edit'].hit(s).short}, steered {steered['G-ACT'].hit(s).short}", flush=True)
    one, heads = found[names[0]].online, found[names[0]].heads
    timed = ll.overhead(lm, ask.prompts(testing), {
        "mean difference": one.mean_plan(0.2, m, where=at), "G-ACT": one.plan(0.2, m, where=at),
        "G-ACT, decided once a row": one.plan(0.2, m, where=at, reads="last_prompt"),
        "ACT heads": heads.plan(1.0, where=at),
    }, rounds=3 if quick else 7)  # fmt: skip

    over = {arm: pooled_difference(equal, "G-ACT", arm) for arm in RIVALS[:2]}
    gaps = [{"target": e.target, **{f"minus {arm}": e.difference("G-ACT", arm) for arm in RIVALS}} for e in equal]
    probes = pd.concat([found[s].clusters.to_frame().assign(target=s) for s in names], ignore_index=True)
    read = ["target", "site", "accuracy", "macro-F1", "majority F1", "shuffled F1", "ACT heads F1, mean and range"]
    tables = {
        "The cluster of a prompt, read at each block, held out": probes[read],
        "Its macro-F1 on prompts not seen, mean of the blocks": taught,
        f"Valid answers in the target, at {nats:g} nats an answer": arms_by_target(equal),
        "Of these: G-ACT minus another arm, paired": pd.DataFrame(gaps),
        "Valid answers in the target, each arm at its best strength": arms_by_target(best),
        "Strengths": pd.DataFrame(chosen), "Clusters, and heads of ACT": stable,
        "Neurons that write towards the target": brittle, "Time": timed,
    }  # fmt: skip
    for heading, frame in tables.items():
        print_frame(heading, frame, digits=2)
    every = pd.concat([effect.to_frame() for effect in equal], ignore_index=True)
    page = ll.report(
        folder / "gact.html",
        title=f"Steering the style of answers: {', '.join(names)}",
        question="Does choosing the vector for each prompt steer better than one vector for all?",
        highlights={f"G-ACT minus {arm}, all targets": difference for arm, difference in over.items()},
        sections=[
            ll.Section(
                "Shares by arm",
                [
                    ll.Captioned(style_shares(equal), f"Each arm at {nats:g} nats an answer."),
                    ll.Captioned(style_shares(best), "Each arm at its best strength."),
                ],
            ),
            ll.Section("Where the cluster is read", [cluster_probes({s: found[s].clusters for s in names})]),
            *(ll.Section(heading, [frame]) for heading, frame in tables.items()),
            ll.Section("Every arm and every probe", [every, probes]),
        ],
        manifest=ll.manifest(lm, seed=seed, nats=nats, positions=at, kept=kept, **ask.counts),
    )
    print("; ".join(f"G-ACT minus {arm}, all targets: {difference}" for arm, difference in over.items()))
    print(f"{len(testing) * len(seeds)} answers an arm; {dict(ask.counts)}; page: {page}")


if __name__ == "__main__":
    typer.run(main)
