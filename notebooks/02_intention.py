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
# # 2. Think before you speak
#
# The same problems, put in three ways: answer **directly**, think **step by step**, or **talk first** without saying
# anything. Does the state before the first word tell how the model is going to answer, and whether it will be right?
#
# The measures are those of *Intention Collapse* (arXiv 2601.01011): entropy of the next token, effective dimension of
# the states, and recoverability of success.

# %%
import latentlens as ll

lm = ll.load()
texts = ll.organism.draw("arithmetic", 150, seed=0, split="open")
ends = {"direct": " Answer directly.", "steps": " Think step by step.", "babble": " Talk first."}
problems = [t.prompt()[-1]["content"] for t in texts]
chats = {r: [[{"role": "user", "content": p + end}] for p in problems] for r, end in ends.items()}
runs = {r: lm.generate(chats[r], max_new_tokens=64) for r in ends}
for regime in ends:
    print(chats[regime][0][0]["content"], "\n   ", runs[regime].texts[0])

# %%
answer = ll.organism.judges.parsed_answer
right = {r: [answer(text) == int(t.answer) for text, t in zip(runs[r].texts, texts)] for r in ends}
{r: ll.Arm.of("prompt", right[r]).share.short for r in ends}

# %% [markdown]
# Steps help enormously. Words without content, as many of them, do not: it is what is written that counts, not how
# long one writes.
#
# ## Before the first word
#
# Now only the prompt is read. At its last position, how undecided is the model about the next token?

# %%
acts = {r: lm.activations(chats[r], ["resid_post[*]", "logits"], where="last") for r in ends}
bits = {r: ll.intention.entropy(acts[r]) for r in ends}
ll.plots.regimes(bits, metric="entropy of the next token (bits)")

# %%
pairs = [("direct", "steps"), ("direct", "babble"), ("steps", "babble")]
[ll.intention.contrast(bits[a], bits[b], names=(a, b)) for a, b in pairs]

# %% [markdown]
# An AUROC of 0 or 1: by this number one can tell at sight which regime a prompt is in. Is that the model's intention?
#
# ## The trap
#
# The prompts end in **different words**, and the next token depends mostly on the last ones. So begin the same answer
# everywhere, `The answer is`, and measure there.

# %%
begun = lm.tokenizer("The answer is", add_special_tokens=False).input_ids
alike = {r: lm.logits([[*row.ids, *begun] for row in lm.tokens(chats[r])]) for r in ends}
same = {r: ll.intention.entropy(logits) for r, logits in alike.items()}
ll.plots.regimes(same, metric="entropy after “The answer is” (bits)")

# %%
[ll.intention.contrast(same[a], same[b], names=(a, b)) for a, b in pairs]

# %% [markdown]
# Nearly nothing is left: AUROC about one half. What looked like intention was the ending of the prompt. Entropy at
# the last position is a signature of a regime's words; compare regimes with the ending held fixed, or do not compare
# them by it.
#
# ## How many dimensions?
#
# The participation ratio of the cloud of states at each block: about how many directions they spread over.

# %%
sizes = {r: ll.intention.effective_dimensionality(acts[r], sites="resid_post[*]") for r in ends}
ll.plots.by_regime(sizes)

# %% [markdown]
# Small numbers for 128 coordinates, and differences that change sign from block to block. The endings differ here,
# too. The value grows with the number of items until that is far above it: 150 in every regime here; never compare
# across unequal n.
#
# ## Does it know whether it will be right?
#
# A probe from the states of the last five blocks to success. Judge by p: the labels permuted and everything refitted.

# %%
{r: ll.recoverability.recover(acts[r], right[r], sites="resid_post[-5:]", split="folds").short for r in ends}

# %% [markdown]
# One regime has no wrong answers, and says so instead of returning one half. In the others few answers are right, the
# interval is wide, and with more columns than rows the training AUROC is 1 whatever the labels: read the p-value.
#
# ## While it speaks
#
# The entropy at each token written. Steps are copied and computed with little doubt; a direct answer is a guess at
# its only number.

# %%
curves = {}
for r in ends:
    logits = lm.activations(runs[r][:60], "logits", where="last_prompt+response")
    curves[r] = ll.intention.entropy_curve(logits, max_steps=40)
ll.plots.by_regime(curves)

# %% [markdown]
# So: thinking shows **in what is written**, not in the state before it. The whole protocol, with more controls, is
# `python probes/intention_collapse.py`; the page is [Intention metrics](../docs/intention.md).
