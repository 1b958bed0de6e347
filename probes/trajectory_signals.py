"""Do latent trajectories tell right from wrong reasoning, or do they count tokens?

    python probes/trajectory_signals.py                                                 # the embedded model
    python probes/trajectory_signals.py --model Qwen/Qwen3-14B --data openai/gsm8k --size 500 --tokens 8192

Several samples of each problem; signals of Tracing the Traces (arXiv 2510.10494) over the reasoning, cut before the
answer; their AUROC beside length alone, strata of equal length, shuffled segments and random walks; what choosing among
samples by the best-known signal (aligned change) gains and saves. On new problems, samples are stopped after their
first segments: those that a forest trained on the stored ones likes less (the paper), those that are less like the
other samples of their problem, and the same by the words written so far, which needs nothing from inside the model; the
second of these also WHILE THEY ARE WRITTEN, against the same samples written to their end. The embedded model has two
arms: step-by-step texts, whose length differs, and hurried ones, whose length is always the same. A second run on the
same folder runs no model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens import organism
from latentlens.methods import early_stopping, selection, signal_quality, trajectory
from latentlens.methods.answers import is_right, number_in, reasoning_tokens
from latentlens.organism.corpus.arithmetic import INSTRUCTIONS
from latentlens.organism.judges import parsed_answer
from latentlens.values.questions import Question, load, prompt
from latentlens.views import figures as plots
from latentlens.views.terminal import print_table

SIGNAL, STEP = "aligned", 3
Counts = dict[str, int]


def problems(model: str | None, arm: str, data: str, subset: str | None, n: int, seed: int):
    """Problems to measure on, and as many new ones: prompts, questions, end of the reasoning, reader of answers."""
    if model is None:
        counts = (5,) if arm == "traces" else (3, 4, 5, 6)  # hurried texts always have five steps
        drawn = [t for t in organism.draw("arithmetic", 30 * n, seed, split="open") if t.difficulty in counts]
        answer = {t.prompt()[-1]["content"] + INSTRUCTIONS[arm]: str(t.answer) for t in drawn}
        asked = [Question(words, said) for words, said in answer.items()]
        chats = [[{"role": "user", "content": q.text}] for q in asked]
        halves = (slice(0, n), slice(n, 2 * n))
        return [(chats[half], asked[half], " The answer", parsed_answer) for half in halves]
    asked = load(data, subset, columns="gsm8k", n=2 * n, seed=seed)
    return [([prompt(q, "cot") for q in half], half, "####", number_in) for half in (asked[::2], asked[1::2])]


def write(lm, task, seeds, counts: Counts, **how):
    """One row a sample: question, ids of prompt and reasoning, where the text begins, all ids, answer, right or not."""
    prompts, asked, end, said = task
    begin = [row.ids for row in lm.tokens(prompts)]
    frame = ll.sweep(lm, prompts, {"none": None}, seeds, **how)
    counts["texts written"] += frame.attrs["rows_run"]
    rows = []
    for i, text, generated in zip(frame["prompt_index"], frame["text"], frame["generated"], strict=True):
        cut = reasoning_tokens([lm.tokenizer.decode([t]) for t in generated], end)
        right = said(text) == int(asked[i].answer) if end == " The answer" else is_right(text, asked[i])
        ids, first = [*begin[i], *generated], len(begin[i])
        rows.append((i, ids[: first + max(cut, 1)], first, ids, len(generated), str(said(text)), bool(right)))
    return pd.DataFrame(rows, columns=["question", "ids", "first", "whole", "tokens", "answer", "right"])


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


def early(lm, task, runs, seeds, size: int, counts: Counts, seed: int, how):
    """Ways of choosing among the starts of new problems' samples, replayed on whole ones; one of them while writing."""
    end, after = task[2], size * (STEP + 1)

    def starts(states, written):  # net, cumulative, aligned change of the first segments, cut where the answer begins
        tokens = trajectory.paths(states)
        cut = [max(1, reasoning_tokens([lm.tokenizer.decode([t]) for t in ids], end)) for ids in written]
        cut = np.minimum(cut, tokens.n_points).tolist()
        found = trajectory.signals(trajectory.pooled(tokens, size, cut), net="code")
        return np.stack([found[name] for name in ("net", "cumulative", "aligned")], 1)

    def stored(of):  # the same in a second pass over what was written when it would have been asked
        begun = [ids[: first + after] for ids, first in zip(of["whole"], of["first"])]
        states = lm.activations(begun, "resid_post[*]", ll.PerRow([slice(first, None) for first in of["first"]]))
        counts["forward passes"] += states.about["forwards"]
        return starts(states, [ids[first:] for ids, first in zip(begun, of["first"])])

    def likeness(so_far):
        features = starts(so_far.readings["after"], [run.generated for run in so_far])
        return early_stopping.typical(features, [run.prompt_index for run in so_far])

    full = write(lm, task, seeds, counts, **how)
    now = write(lm, task, seeds, counts, keep=early_stopping.keep_best(likeness, after, name=f"{size} {end}"), **how)
    asked, begun = full["question"], stored(full)
    heads = [ids[first : first + after] for ids, first in zip(full["whole"], full["first"])]
    kinds, codes = np.unique(np.concatenate(heads), return_inverse=True)
    words = np.zeros((len(heads), len(kinds)))
    np.add.at(words, (np.repeat(np.arange(len(heads)), list(map(len, heads))), codes), 1)
    scores = {
        "the start that a forest likes best": early_stopping.fit_starts(stored(runs), runs["right"], seed=seed)(begun),
        "the most typical start": early_stopping.typical(begun, asked),
        "the most typical start, by its words": early_stopping.typical(words, asked),
    }
    read = np.minimum(after, full["tokens"])
    cost = {"tokens": full["tokens"], "answers": full["answer"], "read": read, "seed": seed}
    found = {name: early_stopping.early_stop(s, full["right"], asked, **cost) for name, s in scores.items()}
    forest = found[next(iter(found))]
    first = [replace(choice.policies[0], name=name) for name, choice in found.items()]
    pieces = [[lm.tokenizer.decode([t]) for t in ids[first:]] for ids, first in zip(full["whole"], full["first"])]
    answering = np.mean([reasoning_tokens(p, end) < after for p in pieces])
    replay = early_stopping.going_on(scores["the most typical start"], asked)
    alike = now["tokens"] == full["tokens"].where(replay, read)
    equal, saved = forest.about["equal scores"], 1 - now["tokens"].sum() / full["tokens"].sum()
    return replace(forest, policies=(*first, *forest.policies[1:])), (
        f"{answering:.0%} of the samples had begun to answer by then. Two right samples of one problem have the same "
        f"score in {equal['right']:.0%} of pairs, two wrong ones in {equal['wrong']:.0%}: where right samples read "
        "alike, the largest of ANY score is an odd, wrong one's more often than its share. So compare the forest with "
        "its scores shuffled so that equal ones stay equal, not with a random sample. Stopped while writing, the most "
        f"typical going on: {now['right'][replay].mean():.3f} right, "
        f"{saved:.1%} of the tokens saved; {alike.mean():.1%} of {len(now)} samples end where the replay on whole "
        "samples cuts them."
    )


def main(
    model: Annotated[str | None, typer.Option(help="hub id or folder; the embedded model by default")] = None,
    data: Annotated[str, typer.Option(help="data set with the columns of GSM8K (other models)")] = "openai/gsm8k",
    subset: Annotated[str | None, typer.Option(help="its configuration")] = "main",
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
        # At temperature 1 the embedded model's steps are hardly ever wrong.
        how["temperature"] = temperature * (1.5 if arm == "steps" else 1.0)
        task, new = problems(model, arm, data, subset, n, seed)
        runs = write(lm, task, range(samples), counts, **how)
        paths, signals = measure(lm, runs, size, counts)
        y, q = runs["right"].to_numpy(), runs["question"].to_numpy()
        solved = len(np.unique(q[y]))
        if min(solved, len(np.unique(q[~y]))) < 10:
            print(f"{arm}: {y.sum()} of {len(y)} samples right, of {solved} problems: 10 with each outcome are needed")
            continue
        quality = signal_quality.evaluate(signals, y, groups=q, paths=paths, seed=seed)
        common = {"tokens": runs["tokens"], "answers": runs["answer"]}
        chosen = selection.select(signals.oriented(SIGNAL), y, q, **common, seed=seed)
        started, said = early(lm, new, runs, range(samples), size, counts, seed, how)
        note = f"{len(y)} samples of {n} problems, {y.mean():.0%} right; 95% intervals, problems resampled; {lm.name}"
        shown = [note, plots.signal_quality(quality), quality.table()]
        print_table(f"{arm}: signals and nulls", list(quality.table()), quality.table().values.tolist(), note=note)
        for title, found in (
            ("choosing among samples", chosen),
            (f"new problems, stopping after {STEP} steps", started),
        ):
            print_table(f"{arm}: {title}", list(found.table()), found.table().values.tolist(), note=note)
            shown += [f"{title.capitalize()}.", plots.choices(found), found.table()]
        print(said)
        shown.append(said)
        try:
            shown.append(plots.early_warning(signal_quality.early_warning(paths, y, groups=q, seed=seed)))
        except ll.errors.TooFewExamples as error:
            shown.append(f"No early warning: {error}")
        sections.append(ll.Section(arm, shown))
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
