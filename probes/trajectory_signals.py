"""Do latent trajectories tell right from wrong reasoning, or do they count tokens?

    python probes/trajectory_signals.py                                                 # the embedded model
    python probes/trajectory_signals.py --model Qwen/Qwen3-14B --data openai/gsm8k --size 500 --tokens 8192

Several samples of each problem; signals of Tracing the Traces (arXiv 2510.10494) over the reasoning, cut before the
answer; their AUROC beside length alone, strata of equal length, shuffled segments and random walks; then what choosing
among samples by the best-known signal (aligned change) gains and saves, offline and while writing. The embedded model
has two arms: step-by-step texts, whose length differs, and hurried ones, whose length is always the same. A second run
on the same folder runs no model.
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
from latentlens.methods import selection, signal_quality, trajectory
from latentlens.methods.answers import is_right, number_in, reasoning_tokens
from latentlens.organism.corpus.arithmetic import INSTRUCTIONS
from latentlens.organism.judges import parsed_answer
from latentlens.values.questions import Question, load, prompt
from latentlens.views.terminal import print_table

SIGNAL, STEP = "aligned", 3
Counts = dict[str, int]


def problems(model: str | None, arm: str, data: str, config: str | None, n: int, seed: int):
    """Prompts, questions, the words that end the reasoning, and how to read an answer."""
    if model is None:
        counts = (5,) if arm == "traces" else (3, 4, 5, 6)  # hurried texts always have five steps
        drawn = [t for t in organism.texts("arithmetic", 20 * n, seed, split="open") if t.difficulty in counts][:n]
        ask = [t.prompt()[-1]["content"] + INSTRUCTIONS[arm] for t in drawn]
        chats = [[{"role": "user", "content": words}] for words in ask]
        return chats, [Question(w, str(t.answer)) for w, t in zip(ask, drawn)], " The answer", parsed_answer
    asked = load(data, config, columns="gsm8k", n=n, seed=seed)
    return [prompt(q, "cot") for q in asked], asked, "####", number_in


def write(lm, prompts, asked, end, said, seeds, counts: Counts, **how):
    """One row a sample: question, ids, where the reasoning lies, answer, right or not. Samples without any left out."""
    starts = [row.ids for row in lm.tokens(prompts)]
    frame = ll.sweep(lm, prompts, {"none": None}, seeds, **how)
    counts["texts written"] += frame.attrs["rows_run"]
    rows = []
    for i, text, generated in zip(frame["prompt_index"], frame["text"], frame["generated"], strict=True):
        cut = reasoning_tokens([lm.tokenizer.decode([t]) for t in generated], end)
        right = said(text) == int(asked[i].answer) if end == " The answer" else is_right(text, asked[i])
        ids, first = [*starts[i], *generated], len(starts[i])
        rows.append((i, ids[: first + max(cut, 1)], first, len(generated), str(said(text)), bool(right)))
    return pd.DataFrame(rows, columns=["question", "ids", "first", "tokens", "answer", "right"])


def measure(lm, runs, size: int, counts: Counts):
    """Paths of segment means, and all signals."""
    where = ll.PerRow([slice(first, None) for first in runs["first"]])
    acts = lm.activations(list(runs["ids"]), "resid_post[*]", where, ("segments", size))
    means = lm.activations(list(runs["ids"]), ["resid_pre[0]", "resid_post[*]"], where, "mean")
    forced = lm.tokenizer(" The answer is", add_special_tokens=False).input_ids
    answer = lm.activations([[*ids, *forced] for ids in runs["ids"]], "logits", "last")
    counts["forward passes"] += sum(a.about["forwards"] for a in (acts, means, answer))
    paths = trajectory.paths(acts)
    coe = trajectory.chain_of_embedding(means.stack().transpose(0, 1))
    signals = trajectory.signals(paths).add(coe_r=coe.coe_r, coe_c=coe.coe_c)
    return paths, signals.add(**trajectory.output_confidence(answer))


def online(lm, n_seeds: int, size: int, tau: float, counts: Counts, task, how):
    """Write one sample of each problem at a time, and no more of a problem once one is accepted."""
    prompts, asked, *rest = task
    open_, kept, begun = list(range(len(prompts))), {}, 0
    for seed in range(n_seeds):
        now = write(lm, [prompts[i] for i in open_], [asked[i] for i in open_], *rest, [seed], counts, **how)
        score, begun = measure(lm, now, size, counts)[1].oriented(SIGNAL), begun + len(now)
        for row, i in enumerate(open_):
            if score[row] >= tau or seed == n_seeds - 1:
                kept[i] = bool(now["right"][row])
        open_ = [i for i in open_ if i not in kept]
        if not open_:
            break
    return np.mean(list(kept.values())), begun


def main(
    model: Annotated[str | None, typer.Option(help="hub id or folder; the embedded model by default")] = None,
    data: Annotated[str, typer.Option(help="data set with the columns of GSM8K (other models)")] = "openai/gsm8k",
    config: Annotated[str | None, typer.Option(help="its configuration")] = "main",
    n: Annotated[int, typer.Option(help="problems")] = 120,
    samples: Annotated[int, typer.Option(help="of each")] = 5,
    size: Annotated[int, typer.Option(help="tokens a segment")] = 8,
    tokens: Annotated[int, typer.Option(help="most tokens of a sample")] = 80,
    temperature: Annotated[float, typer.Option(help="of sampling")] = 1.0,
    seed: Annotated[int, typer.Option(help="of problems, bootstrap, nulls and splits")] = 0,
    folder: Annotated[Path, typer.Option(help="finished texts and the page")] = Path("runs/trajectory_signals"),
) -> None:
    """Sample, measure, compare with every null, select; print tables and write a page."""
    torch.set_num_threads(1 if model is None else torch.get_num_threads())
    lm, counts, sections = ll.load(model), {"texts written": 0, "forward passes": 0}, []
    how = {"max_new_tokens": tokens, "temperature": temperature, "folder": folder}
    for arm in ("steps", "traces") if model is None else ("cot",):
        prompts, asked, end, said = problems(model, arm, data, config, n, seed)
        # At temperature 1 the embedded model's steps are hardly ever wrong.
        how["temperature"] = temperature * (1.5 if arm == "steps" else 1.0)
        runs = write(lm, prompts, asked, end, said, range(samples), counts, **how)
        paths, signals = measure(lm, runs, size, counts)
        y, q = runs["right"].to_numpy(), runs["question"].to_numpy()
        solved = len(np.unique(q[y]))
        if min(solved, len(np.unique(q[~y]))) < 10:
            print(f"{arm}: {y.sum()} of {len(y)} samples right, of {solved} problems: 10 with each outcome are needed")
            continue
        quality = signal_quality.evaluate(signals, y, groups=q, paths=paths, seed=seed)
        common = {"tokens": runs["tokens"], "answers": runs["answer"]}
        chosen = selection.select(signals.oriented(SIGNAL), y, q, **common, seed=seed)
        prefix = trajectory.signals(trajectory.truncated(paths, STEP + 1), net="code")
        begun = np.minimum(prefix.n_tokens, runs["tokens"])
        starts = np.stack([prefix[name] for name in ("net", "cumulative", "aligned")], 1)
        early = selection.early_path(starts, y, q, read=begun, **common, seed=seed)
        task = problems(model, arm, data, config, n, seed + 1)
        accuracy, spent = online(lm, samples, size, float(np.median(chosen.thresholds)), counts, task, how)
        said_online = f"new problems, while writing: {accuracy:.3f} right, {spent} of {n * samples} samples begun"
        shown = [quality.table(), said_online, chosen.table(), early.table()]
        try:
            shown.append(signal_quality.early_warning(paths, y, groups=q, seed=seed).to_frame())
        except ll.errors.TooFewExamples as error:
            shown.append(f"No early warning: {error}")
        note = f"{len(y)} samples of {n} problems, {y.mean():.0%} right; 95% intervals, problems resampled; {lm.name}"
        tables = (("signals and nulls", 0), ("choosing among samples", 2), (f"finishing one after {STEP} steps", 3))
        for title, k in tables:
            print_table(f"{arm}: {title}", list(shown[k]), shown[k].values.tolist(), note=note)
        print(said_online)
        sections.append(ll.Section(arm, [note, *shown]))
    page = ll.report(
        folder / "trajectory_signals.html",
        title="Latent trajectories",
        question="Do changes of the latent state along a text tell right from wrong, beyond the text's length?",
        sections=sections,
        manifest=ll.manifest(lm, n=n, samples=samples, segment=size, seed=seed, **counts),
    )
    print(f"{counts['forward passes']} forward passes, {counts['texts written']} texts written; page: {page}")


if __name__ == "__main__":
    typer.run(main)
