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
# # 1. A first look
#
# A model reads *"True or false? The drun lives in the cave."* and answers. Where inside it is the verdict made, and
# is what we find there what it acts on?
#
# Everything runs on a laptop: the model ships with the package. It was trained by latentlens on an invented world, so
# that effects are there to be found. It shows that the tools work, and is no evidence about other models.

# %%
import latentlens as ll

lm = ll.load()
texts = ll.organism.texts("truth", 400, seed=1, split="seen")
acts = lm.activations(texts["prompt"], sites="resid_post[*]", where="last")
sweep = ll.probe.fit(acts, texts["truth"], groups=texts["group"])
ll.plots.by_layer(sweep)

# %% [markdown]
# That is the first picture. A linear probe was fitted at every block on some creatures and asked about **others**.
# Early blocks know nothing, late ones nearly everything. Grey is what keeps us honest: the band is the same probe on
# shuffled labels; the dashed line a control task, in which every creature has a random label of its own that can only
# be memorised.
#
# Now slowly. What did we load?

# %%
lm

# %%
lm.check()

# %% [markdown]
# `check()` compares, on this very model, what latentlens reads and writes with what the model does: padded with
# unpadded, cached with recomputed. Do this first with a model of your own.
#
# ## What was captured
#
# One row for each statement, because we asked for the `last` position. Ask for all of them, and every row says which
# token it is.

# %%
statement = texts[0]["prompt"]
lm.activations([statement], "resid_post[4]").to_frame().tail(8)

# %% [markdown]
# `last` is the end of `<|assistant|>`, where the answer begins. Nothing is computed twice:

# %%
again = lm.activations(texts["prompt"], sites="resid_post[3]", where="last")
again.about["forwards"], again.about["cached_rows"]

# %% [markdown]
# ## The model's own words, block by block
#
# The probe was trained by us. The **logit lens** asks the model itself: if it stopped after this block, what would it
# say next? That is, its own final norm and unembedding are applied to the state there.

# %%
lens = lm.logit_lens([statement], watch=("True", "False"))
ll.plots.lens_at(lens)

# %%
ll.plots.logit_lens(lens, last=8)

# %% [markdown]
# Read it upwards from the embedding. The last column is where the answer begins: *True* or *False* appears about
# where the probe found the verdict, or a little later. A token that appears early is evidence; one that does not
# appear is none, as earlier blocks need not speak in the frame of the last.
#
# ## Which tokens hold it?
#
# The probes were fitted on the last token. Asked about all of them:

# %%
everywhere = lm.activations([statement], "resid_post[*]", where="all")
ll.plots.token_layers(everywhere, sweep, last=16)

# %% [markdown]
# A probe is as sure of itself where it was never tested. The strong colours of the lower rows come from blocks whose
# AUROC is one half: they mean nothing. Trust a probe where it was tested, here the last column.

# %% [markdown]
# ## What the probe is worth
#
# Each block with its interval (creatures resampled), the shuffled labels, and the selectivity over the control task.
# The star is the block chosen by cross-validation on the training side; no test score was looked at.

# %%
sweep

# %% [markdown]
# ## Does the model use it?
#
# Reading is not causing. Add the probe's direction to the state at the last prompt token, while the model reads
# statements about creatures that the probe never saw, and count how often it answers *True*. The control: random
# directions of the same length. Strength is in median norms of the states there.

# %%
best = sweep.best()
unit = best.direction.scaled_to(float(acts[str(best.site)].norm(dim=-1).median()))
prompts = [texts[i]["prompt"] for i in sweep.test_rows[:60]]
directions = {("direction", 0): unit} | {("random", i): unit.random_like(i) for i in range(3)}
strengths = [-1.5, -1, -0.5, 0.5, 1, 1.5]

plain = lm.generate(prompts, max_new_tokens=3)
arms = [ll.Arm.of("no edit", [text.startswith("True") for text in plain.texts])]
for (kind, draw), direction in directions.items():
    for strength in strengths:
        runs = lm.generate(prompts, max_new_tokens=3, steer=ll.Add(direction, strength, where="last"))
        arms.append(ll.Arm.of(kind, [text.startswith("True") for text in runs.texts], strength, draw))
effect = ll.SteeringEffect(tuple(arms), "answers that begin with True", f"median norms at {best.site}")
ll.plots.steering_effect(effect)

# %%
effect.against("random", 1.5)

# %% [markdown]
# The verdict is read late, and where it is read it is used. On a model of your own, change one line,
# `ll.load("...")`, and the texts. In a live notebook `lm.explore("...")` opens all of this as a panel: tokens, lens,
# sliders, and the line of code for what you clicked together. Next: [think before you speak](02_intention.ipynb).
