"""Which way is the plain assistant, does a conversation drift away from it, and do bounds on states keep roles out?

    python steering/assistant_axis.py                                              # the embedded model's four traits
    python steering/assistant_axis.py --model MODEL --traits steering/traits/formal.json --traits OTHER.json

Roles are traits, asked for by a system prompt; the default is no prompt at all. The questions are those of the first
trait. The axis
points from what all roles have in common to the default: v = mean(default) - mean over roles of mean(role), from
answers in which the role shows. Then: projections of answers to other questions; the drift over the turns of
conversations, plain ones beside ones that are answered in a role from the second turn on; and bounds at several
blocks while the model answers in its roles: a floor on the axis at the 25th percentile of the default (as in the
paper), a cap along the role's own vector at the 75th, and both along random directions. Scores of the embedded model
are by rule, of others by a judge. A second run on the same folder writes and judges nothing again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.commands import options
from latentlens.methods.directions.capping import capping, role_axis
from latentlens.organism.corpus.voice import TRAITS
from latentlens.protocols.traits import judged_traits
from latentlens.values.column_means import column_means
from latentlens.values.traits import asked
from latentlens.views.terminal import print_frame

WHERE = "last_prompt+response"


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    traits: Annotated[list[Path] | None, typer.Option(help="trait files, the roles of another model")] = None,
    judge: options.Judge = "",
    judge_url: options.JudgeUrl = "",
    budget: options.Budget = 20_000,
    length: options.Length = 64,
    blocks: Annotated[str, typer.Option(help="blocks of the bounds; the drift is read at the middle one")] = "-3:",
    percentile: Annotated[float, typer.Option(help="of the default's projections: the height of the floor")] = 25.0,
    samples: Annotated[int, typer.Option(help="answers to every question")] = 3,
    turns: Annotated[int, typer.Option(help="answers in a conversation")] = 4,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="answers and report; resumed from")] = Path("runs/assistant_axis"),
) -> None:
    """Axis, projections, drift, bounds; write a page."""
    torch.set_num_threads(1)
    lm = ll.load(model or None, cache=ll.ActivationCache(folder / "cache"))
    given = judged_traits(lm, None if model else TRAITS, traits, judge=judge, url=judge_url, budget=budget)
    names, trait, sites = list(given.traits), given.first, lm.layout.sites(f"resid_post[{blocks}]")
    site, systems = (
        sites[len(sites) // 2],
        {"default": "", **{n: t.system("positive") for n, t in given.traits.items()}},
    )
    how = {"max_new_tokens": length, "temperature": 1.0, "folder": folder, "nll": False, "about": given.about}

    def played(questions, first_seed, plans):
        """Every question in every role under every plan: one row an answer, with its role and question."""
        chats = [asked(q, system) for system in systems.values() for q in questions]
        frame = ll.judged_sweep(lm, chats, plans, range(first_seed, first_seed + samples), given.columns, **how)
        frame["role"] = [list(systems)[i // len(questions)] for i in frame["prompt_index"]]
        frame["question"] = [i % len(questions) for i in frame["prompt_index"]]
        prompts = lm.tokens(chats)
        of = zip(frame["prompt_index"], frame["generated"])
        return frame, [prompts[i].continued(tuple(ids)) for i, ids in of]

    frame, rows = played(trait.questions, seed, {"none": None})
    shows = np.array([line["role"] == "default" or line[line["role"]] >= 50 for _, line in frame.iterrows()])
    acts = lm.activations(rows, sites, "response", "mean").rows(shows)
    role = frame["role"][shows].to_numpy()
    if missing := [name for name in names if not (role == name).any()]:
        raise ll.errors.TooFewExamples(f"no answer shows the role {missing[0]!r}: the judge gave none of them 50")
    plain = acts.rows(role == "default")
    axes = [role_axis(acts, role.tolist(), "default", site=s, name="assistant axis") for s in sites]
    own = {
        name: [ll.Direction(acts[s][role == name].mean(0) - plain[s].mean(0), s, name) for s in sites] for name in names
    }
    axis = axes[sites.index(site)]

    def floor(directions):
        return [capping(d, plain, percentile=percentile, where=WHERE) for d in directions]

    def cap(directions):
        return [capping(d, plain, percentile=100 - percentile, side="cap", where=WHERE) for d in directions]

    def each(bound):
        """A plan a prompt: what is bounded depends on the role that the prompt asks for; nothing for the default."""
        return [bound(name) if name in own else None for name in systems for _ in trait.evaluation]

    plans = {
        "none": None,
        "floor on the axis": floor(axes),
        "floor, random": floor([a.random_like(seed + i) for i, a in enumerate(axes)]),
        "cap on the role": each(lambda name: cap(own[name])),
        "cap, random": each(lambda name: cap([v.random_like(seed + i) for i, v in enumerate(own[name])])),
    }
    held, held_rows = played(trait.evaluation, seed + 500, plans)
    none = (held["plan"] == "none").to_numpy()
    read = lm.activations([row for row, keep in zip(held_rows, none) if keep], site, "response", "mean")
    where, clean = ll.persona_monitoring.projections(read, axis), held[none]
    is_default = ll.persona_monitoring.auroc_estimate(
        where, (clean["role"] == "default").to_numpy(), clean["question"].to_numpy()
    )
    lines = []
    for name in systems:
        mine = held[held["role"] == name]
        groups = mine.loc[mine["plan"] == "none", "question"].tolist()
        judged = name if name in own else trait.name
        table = [where[(clean["role"] == name).to_numpy()]]
        table += [mine.loc[mine["plan"] == plan, judged] for plan in plans]
        table += [mine.loc[mine["plan"] == plan, "coherence"] for plan in ("floor on the axis", "cap on the role")]
        columns = ["projection", "score", *list(plans)[1:], "coherence, floor", "coherence, cap"]
        lines.append({"role": name, **dict(zip(columns, column_means(np.transpose(table), groups=groups)))})
    roles = pd.DataFrame(lines)

    def talk(systems: list[str], first_seed: int):
        """Two conversations a question; answer t is written under systems[t], and read without any."""
        every = []
        for again in (0, 1000):  # twice, with other seeds: the same words under the same seed are the same answer
            chats = [[] for _ in trait.evaluation]
            for t, system in enumerate(systems):
                for i, chat in enumerate(chats):
                    chat.append({"role": "user", "content": trait.evaluation[(i + 7 * t) % len(chats)]})
                asks = [[*asked("", system)[:-1], *chat] for chat in chats]
                options = {"max_new_tokens": length, "temperature": 1.0, "folder": folder / "talks"}
                said = ll.sweep(lm, asks, {"": None}, [first_seed + again + t], **options)["text"]
                for chat, text in zip(chats, said):
                    chat.append({"role": "assistant", "content": text})
            every += chats
        return ll.persona_monitoring.drift(lm.activations(every, site, "role:assistant"), axis)

    drifts = {"plain": talk([""] * turns, seed)}
    for name in names[:2]:
        drifts[f"{name} from the second answer on"] = talk(["", *[systems[name]] * (turns - 1)], seed)
    n = int((clean["role"] == "default").sum())
    note = f"n = {n} answers a role; 95% intervals, questions resampled; the default is scored as {trait.name}"
    print_frame(f"roles on the axis at {site}; bounds at {blocks}", roles, note=note)
    print(f"default against roles, AUROC of the projection on other questions: {is_default}")
    for name, drift in drifts.items():
        print(f"{name}: {drift}")
    page = ll.report(
        folder / "assistant_axis.html",
        title="Assistant axis",
        question="Which way is the plain assistant, and do bounds on states keep the model out of roles?",
        highlights={"default against roles, AUROC": is_default, "drift a turn, plain": drifts["plain"].slope},
        sections=[
            ll.Section("Roles", [ll.Captioned(roles, note)]),
            ll.Section("Drift", [ll.Beside(drifts)]),
            ll.Section(
                "Angles", [ll.plots.cosine_map({n: v[sites.index(site)] for n, v in own.items()} | {"axis": axis})]
            ),
        ],
        method="Mean of the default's answers minus the mean of the roles' means; bounds while it answers.",
        sources=["Assistant Axis, arXiv 2601.10387"],
        manifest=ll.manifest(lm, seed=seed, blocks=blocks, percentile=percentile, samples=samples),
    )
    print(f"report: {page}")


if __name__ == "__main__":
    typer.run(main)
