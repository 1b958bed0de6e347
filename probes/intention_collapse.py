"""Do intention metrics tell how a model will answer: at once, step by step, or after empty talk?

    python probes/intention_collapse.py                                              # the embedded model
    python probes/intention_collapse.py --model Qwen/Qwen2.5-7B-Instruct --data openai/gsm8k --subset main
    python probes/intention_collapse.py --model MODEL --data allenai/ai2_arc --subset ARC-Challenge --columns arc
    python probes/intention_collapse.py --model MODEL --data deepmind/aqua_rat --subset raw --split train --columns aqua
    python probes/intention_collapse.py --model MODEL --data questions.jsonl --columns plain

The protocol of Intention Collapse (arXiv 2601.01011): the same problems in three regimes, greedy, no chat template for
other models; entropy at the last prompt position, effective dimension and recoverability of the last five blocks
there. Beyond the paper: an arm in which all regimes end in the same words, because entropy moves with these (where
there are choices, with entropy over these and their probability), p-values by permutation, and for each metric whether
it tells the regimes apart at all. A second run on the same folder runs no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens import organism
from latentlens.maths.statistics import wilson
from latentlens.methods import intention, recoverability
from latentlens.methods.answers import BUDGETS, NOTEBOOK_BUDGETS, is_right, tokens_kept
from latentlens.organism.corpus.arithmetic import INSTRUCTIONS
from latentlens.organism.judges import parsed_answer
from latentlens.values.questions import REGIMES, load, prompt
from latentlens.views import figures as plots
from latentlens.views.terminal import print_table


def planted(lm: ll.LensModel, n: int, seed: int):
    """Prompts by regime, the same with "The answer is" begun, budgets, and a judge: the embedded model."""
    texts = organism.draw("arithmetic", n, seed, split="open")
    end = dict(zip(REGIMES, ("direct", "steps", "babble"), strict=True))
    say = {r: [t.prompt()[-1]["content"] + INSTRUCTIONS[end[r]] for t in texts] for r in REGIMES}
    chats = {r: [[{"role": "user", "content": words}] for words in say[r]] for r in REGIMES}
    begun = lm.tokenizer("The answer is", add_special_tokens=False).input_ids
    alike = {r: [[*row.ids, *begun] for row in lm.tokens(chats[r])] for r in REGIMES}
    judge = lambda i, regime, pieces: parsed_answer("".join(pieces)) == int(texts[i].answer or -1)
    return chats, alike, {"direct": 10, "cot": 64, "babble": 64}, judge


def of_choices(lm: ll.LensModel, questions, logits) -> dict[str, np.ndarray]:
    """Entropy over the letters of the choices, as a share of the largest there can be, and their probability."""
    share, mass = np.full(len(questions), np.nan), np.full(len(questions), np.nan)
    for count in {len(q.choices) for q in questions}:
        rows = [i for i, q in enumerate(questions) if len(q.choices) == count > 1]
        if rows:
            ids = [lm.tokenizer(f" {c}", add_special_tokens=False).input_ids[-1] for c in questions[rows[0]].letters]
            found = intention.option_entropy(logits["logits"][rows], ids)
            share[rows], mass[rows] = found.entropy / found.bound, found.mass
    named = {"H of the choices, of its bound": share, "probability of the choices": mass}
    return {name: values for name, values in named.items() if not np.isnan(values).any()} if questions else {}


def public(questions, budgets):
    """The same for questions of a data set, with the paper's stopping rules and answer rules."""
    plain, alike = ({r: [prompt(q, r, end) for q in questions] for r in REGIMES} for end in (None, "Answer:"))

    def judge(i: int, regime, pieces: list[str]) -> bool:
        kept = tokens_kept(pieces, regime, multiple_choice=bool(questions[i].choices))
        return is_right("".join(pieces[:kept]), questions[i])

    return plain, alike, budgets, judge


def main(
    model: Annotated[str | None, typer.Option(help="hub id or folder; the embedded model by default")] = None,
    data: Annotated[str, typer.Option(help="hub data set or JSON lines file (other models)")] = "openai/gsm8k",
    subset: Annotated[str | None, typer.Option(help="configuration of the data set")] = "main",
    columns: Annotated[str, typer.Option(help="gsm8k, arc, aqua or plain")] = "gsm8k",
    split: Annotated[str, typer.Option(help="split of the data set")] = "test",
    notebook: Annotated[bool, typer.Option(help="token budgets of the published notebook, not of the paper")] = False,
    n: Annotated[int, typer.Option(help="problems")] = 300,
    seed: Annotated[int, typer.Option(help="of problems, splits, bootstrap and permutations")] = 42,
    folder: Annotated[Path, typer.Option(help="finished texts and the page")] = Path("runs/intention_collapse"),
) -> None:
    """Run the three regimes, print the paper's table with controls, and write a page."""
    torch.set_num_threads(1 if model is None else torch.get_num_threads())
    lm = ll.load(model)
    asked = [] if model is None else load(data, subset, columns=columns, split=split, n=n, seed=seed)
    plain, alike, budgets, judge = (
        planted(lm, n, seed) if model is None else public(asked, NOTEBOOK_BUDGETS if notebook else BUDGETS)
    )
    last = f"resid_post[-{min(5, lm.layout.n_blocks)}:]"
    right, acts, metric, rows, sizes, others, curves = {}, {}, {}, [], {}, [], {}
    forwards = written = 0
    for r in REGIMES:
        runs = ll.sweep(lm, plain[r], {"none": None}, max_new_tokens=budgets[r], temperature=0.0, folder=folder)
        right[r] = [judge(i, r, [lm.tokenizer.decode([t]) for t in ids]) for i, ids in enumerate(runs["generated"])]
        acts[r] = lm.activations(plain[r], [last, "logits"], where="last")
        fixed = lm.activations(alike[r], "logits", where="last")
        begun = [[*row.ids, *ids] for row, ids in zip(lm.tokens(plain[r][:60]), runs["generated"], strict=False)]
        ends = [len(row.ids) for row in lm.tokens(plain[r][:60])]
        along = lm.activations(begun, "logits", ll.PerRow([slice(end - 1, end + 9) for end in ends]))
        forwards += sum(a.about["forwards"] for a in (acts[r], fixed, along))
        written += runs.attrs["rows_run"]
        size = sizes[r] = intention.effective_dimensionality(acts[r], sites=last)
        metric[r] = {
            "H, bits": intention.entropy(acts[r]),
            "H of the top 100": intention.entropy(acts[r], top_k=100),
            "H, same last words": intention.entropy(fixed),
            "k90 within an item": size.per_item_k90,
            **of_choices(lm, asked, fixed),
        }
        paper, code = (recoverability.recover(acts[r], right[r], sites=last, split=s, seed=seed) for s in ("holdout", "folds"))  # fmt: skip  # noqa: E501
        hits, n = sum(right[r]), len(right[r])
        rows.append({
            "regime": r, "accuracy": ll.Estimate(hits / n, *wilson(hits, n), n).short,
            **{name: intention.average(values).short for name, values in metric[r].items()},
            "participation, by variance": f"{size.aggregated:.2f}", "k90, pooled": f"{size.median_k90:g}",
            "recoverability, 60/20/20": paper.short, "recoverability, out of fold": code.short,
            "r(H, right)": intention.relation(metric[r]["H, bits"], right[r]).short.replace("nan [nan, nan]", "-"),
        })  # fmt: skip
        others.append(intention.dimension_robustness(acts[r], sites="resid_post[-1]").assign(regime=r))
        curves[r] = intention.entropy_curve(along)
    contrasts = []
    for name in metric["direct"]:
        for a, b in (("direct", "cot"), ("direct", "babble"), ("babble", "cot")):
            c = intention.contrast(metric[a][name], metric[b][name], names=(a, b))
            contrasts.append([name, f"{b} - {a}", c.difference.short, c.auroc.short])
    apart = pd.DataFrame(contrasts, columns=["metric", "regimes", "paired difference", "AUROC of the regime"])
    moved = recoverability.transfer(acts, right, sites=last, seed=seed).table()
    apart_figures = [
        plots.regimes({r: metric[r][name] for r in REGIMES}, metric=name) for name in ("H, bits", "H, same last words")
    ]
    by_regime = pd.DataFrame(rows).set_index("regime").T.rename_axis("metric").reset_index()
    for title, frame in (("by regime", by_regime), ("which metrics tell regimes apart", apart), ("transfer", moved)):
        print_table(title, list(frame), frame.values.tolist(), note=f"95% intervals, n = {n} problems, {lm.name}")
    page = ll.report(
        folder / "intention_collapse.html",
        title="Intention collapse",
        question="Do entropy, dimension and recoverability before the answer tell the regimes, or the right answers?",
        sections=[
            ll.Section("By regime", ["States are from before the first generated token in every regime.", by_regime]),
            ll.Section("Entropy at the last prompt token, and with the same last words in all regimes", apart_figures),
            ll.Section("Which metrics tell regimes apart", [apart]),
            ll.Section("Recoverability trained in one regime, tested in another", [moved]),
            ll.Section("Entropy over the first tokens written", [plots.by_regime(curves)]),
            ll.Section("Dimension by layer", [plots.by_regime(sizes)]),
            ll.Section("Other estimators of dimension, last block", [pd.concat(others, ignore_index=True)]),
        ],
        manifest=ll.manifest(lm, n=n, seed=seed, forwards=forwards, texts_written=written),
    )
    print(f"{forwards} forward passes, {written} texts written; page: {page}")


if __name__ == "__main__":
    typer.run(main)
