# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Trajectories: movement or length?
#
# While a model reasons, its states move. *Tracing the Traces* (arXiv 2510.10494) reports that right traces move
# differently from wrong ones: further in sum, straighter, with less to and fro. That would be worth having, as it
# needs no labels. But wrong traces also tend to be **longer**, and a random walk that is longer moves further, too.

# %%
import latentlens as ll

lm = ll.load()
texts = ll.organism.draw("arithmetic", 60, seed=3, split="traces")  # five steps, thought hurriedly
chats = [t.prompt() for t in texts]
runs = lm.generate(chats, 72, samples=4, temperature=1, seed=0)
answer = ll.organism.judges.parsed_answer
right = [answer(r.text) == int(texts[r.prompt_index].answer) for r in runs]
some = [right.index(True), right.index(False)]
for i in some:
    print("right" if right[i] else "wrong", "|", chats[runs[i].prompt_index][0]["content"], "\n      |", runs[i].text)

# %% [markdown]
# Four samples for each problem, some right, some wrong. The reasoning ends where the answer begins, so cut there;
# then read all blocks and average over segments of eight tokens. The means are taken while the model runs: a text of
# 32,000 tokens costs megabytes.

# %%
where = []
for run in runs:
    pieces = [lm.tokenizer.decode([token]) for token in run.generated]
    start = run.row.n_prompt
    where.append(slice(start, start + max(1, ll.answers.reasoning_tokens(pieces, " The answer"))))
rows = [run.full_row for run in runs]
acts = lm.activations(rows, "resid_post[*]", where=ll.PerRow(where), pool=("segments", 8))
paths = ll.trajectory.paths(acts)
paths

# %%
ll.plots.paths(paths[some], site="resid_post[3]", labels=["right", "wrong"])

# %% [markdown]
# Curves in a plane always look meaningful. So measure, on all of them.
#
# ## Right against wrong

# %%
signals = ll.trajectory.signals(paths)
question = [run.prompt_index for run in runs]
report = ll.signal_quality.evaluate(signals, right, groups=question, paths=paths)
ll.plots.signal_quality(report)

# %%
report

# %% [markdown]
# How to read it: blue is the AUROC in the direction that the paper expects, where .5 is nothing; orange the same over
# pairs of equal length only; grey what the signal reaches with the segments shuffled, and on random walks with as
# many segments. These hurried traces are all equally long, so length cannot help here. What leaves one half and its
# grey points, on either side, tells right from wrong; far **below** one half it does so the other way round than the
# paper expects.
#
# ## The same with lengths that differ
#
# Problems of three to six steps, thought step by step at a high temperature. More steps, more chances to err.

# %%
longer = [t for t in ll.organism.draw("arithmetic", 400, seed=5, split="steps") if t.difficulty >= 3][:60]
runs2 = lm.generate([t.prompt() for t in longer], 72, samples=4, temperature=1.5, seed=0)
right2 = [answer(r.text) == int(longer[r.prompt_index].answer) for r in runs2]
where2 = []
for run in runs2:
    pieces = [lm.tokenizer.decode([token]) for token in run.generated]
    start = run.row.n_prompt
    where2.append(slice(start, start + max(1, ll.answers.reasoning_tokens(pieces, " The answer"))))
rows2 = [run.full_row for run in runs2]
acts2 = lm.activations(rows2, "resid_post[*]", where=ll.PerRow(where2), pool=("segments", 8))
paths2 = ll.trajectory.paths(acts2)
signals2, question2 = ll.trajectory.signals(paths2), [run.prompt_index for run in runs2]
report2 = ll.signal_quality.evaluate(signals2, right2, groups=question2, paths=paths2)
ll.plots.signal_quality(report2)

# %%
report2

# %% [markdown]
# Length alone now tells something, and with it every signal that counts tokens. Before you believe an AUROC above .5,
# go along its row: **within length** it should still be there, and random walks of the same lengths should not reach
# it.
#
# ## Choosing among samples
#
# Still, perhaps it pays: accept the first sample whose signal passes a threshold, else vote. The control is the same
# procedure with the scores **shuffled**, which also saves tokens, because it also stops early.

# %%
choice = ll.selection.select(
    signals2.oriented("aligned"),
    right2,
    question2,
    tokens=[len(r.generated) for r in runs2],
    answers=[str(answer(r.text)) for r in runs2],
)
choice

# %% [markdown]
# Compare the first two rows, not the first with the majority vote. On a reasoning model of your own this may come out
# differently: `python probes/trajectory_signals.py --model ...` runs the protocol with all its nulls, and [Latent
# trajectories](../docs/trajectories.md) lists what the paper left out.
