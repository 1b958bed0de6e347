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
# # 5. SAE latents: who reads, who writes?
#
# A sparse autoencoder splits the states of a model into a thousand latents, few of which are on at a time. Some of
# them fire on one topic. Which of these also **make** the model talk about it?

# %%
import latentlens as ll

lm = ll.load()
sae = ll.load_sae(ll.organism.sae_path())  # ships with the model; or a release of SAELens and an id
ll.preflight(lm, sae)

# %% [markdown]
# Preflight came first: right model, right site, and how much of the states the SAE explains.
#
# ## Who fires on the sea?
#
# Three hundred explanations of ten topics. Codes are kept sparse, one labelled row for each token of the reply.

# %%
texts = ll.organism.draw("topics", 300, seed=0, split="plain")
codes = lm.latents(sae, [t.messages() for t in texts], where="role:assistant")
codes

# %%
by_text = ll.latents.pooled(codes)  # the strongest value of each latent in each text
sea = [t.topic == "sea" for t in texts]
detectors = ll.latents.detectors(by_text.rows(sea), by_text.rows([not s for s in sea]))
detectors

# %% [markdown]
# The AUROC of the best of a thousand latents is high by chance alone: the last number says how high. These are far
# beyond it. Let us look at the best one where it fires most. Colour is its value.

# %%
candidates = detectors.best(20)
ll.latents.examples(codes, candidates[0], k=4)

# %% [markdown]
# ## Who writes about it?
#
# Add each candidate, by itself, while the first three tokens of answers about **other** topics are predicted; every
# row of the batch has its own latent, so this is one call. Strength: two median norms of the states. A judge that
# counts words says whether the text speaks of the sea.

# %%
import pandas as pd

judge = ll.organism.judges
how = {"unit": "norm", "where": "last_prompt+response", "schedule": ll.Schedule(stop=3)}
others = [t.prompt() for t in ll.organism.draw("topics", 60, seed=3, split="plain") if t.topic != "sea"]
tuning = others[:12]
plans = [[ll.EditLatents(sae, add={latent: 2.0}, **how)] for latent in candidates for _ in tuning]
runs = lm.generate(tuning * len(candidates), 24, steer=plans)
speaks = [any(judge.topic_of(s) == "sea" for s in judge.sentences(text)) for text in runs.texts]
frame = pd.DataFrame({"latent": [c for c in candidates for _ in tuning], "text": runs.texts})
frame["writes"], frame["nll"] = speaks, ll.unsteered_nll(lm, runs)
table = frame.groupby("latent")[["writes", "nll"]].mean()
table = detectors.to_frame().set_index("latent").loc[candidates, ["auroc"]].join(table)
table.round(3)

# %% [markdown]
# All of them read the topic almost perfectly. Not all write it. **A good detector need not be a lever**: what fires
# where the sea is mentioned may be a consequence, not a cause. `nll` is how unlikely the text is without the edit:
# among those that write, take the most fluent.

# %%
writer = int(table.sort_values(["writes", "nll"], ascending=[False, True]).index[0])
list(frame[frame.latent == writer]["text"][:3])

# %% [markdown]
# ## How much, and against what?
#
# The writer was chosen on those prompts, so it is tested on others. Beside it, three random latents that fire as
# often and as strongly (`matched`), at the same strengths; the legend calls them random directions.

# %%
firing = ll.latents.firing(codes)
matched = [ll.latents.matched(firing, [writer], exclude=candidates, seed=seed)[0] for seed in range(3)]
fresh = ll.organism.draw("topics", 200, seed=9, split="plain")
held_out = [t.prompt() for t in fresh if t.topic != "sea"][:40]
strengths = [0.5, 1.0, 1.5, 2.0]

cases = [("no edit", None, 0.0, 0)]
cases += [("direction", writer, strength, 0) for strength in strengths]
cases += [("random", latent, strength, draw) for draw, latent in enumerate(matched) for strength in strengths]
arms = []
for kind, latent, strength, draw in cases:
    plan = None if latent is None else ll.EditLatents(sae, add={latent: strength}, **how)
    texts_written = lm.generate(held_out, 24, steer=plan).texts
    outcome = [any(judge.topic_of(s) == "sea" for s in judge.sentences(text)) for text in texts_written]
    arms.append(ll.Arm.of(kind, outcome, strength, draw))
effect = ll.SteeringEffect(tuple(arms), "texts that speak of the sea", f"median norms at {sae.site}")
ll.plots.steering_effect(effect)

# %%
effect.against("random", 2.0)

# %% [markdown]
# ## And without it?
#
# Ablate all twenty detectors while the model answers questions **about** the sea. Nothing else of the state is
# touched: what the SAE does not explain is kept (`h + decode(f') - decode(f)`).

# %%
asked = [t.prompt() for t in fresh if t.topic == "sea"][:16]
plain = lm.generate(asked, 24)
without = lm.generate(asked, 24, steer=ll.ablate(sae, candidates), allow_idle=True)
for name, runs in {"plain": plain, "detectors ablated": without}.items():
    outcome = [any(judge.topic_of(s) == "sea" for s in judge.sentences(text)) for text in runs.texts]
    print(name, ll.Arm.of("direction", outcome).share)

# %% [markdown]
# The model has other ways to know what it was asked: other latents, and the words of the question, which attention
# can still read. What a latent can bring about and what is lost without it are two questions, and both were asked
# here.
#
# More: [SAE latents](../docs/sae.md).
