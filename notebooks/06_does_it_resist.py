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
# # 6. Does it resist?
#
# Push a model off its topic while it begins to answer, then let go. Some models notice: *"Wait, I should talk about
# the music."* That is endogenous steering resistance (arXiv 2602.06941). Which part of the model notices, and does
# the correction depend on it?
#
# In the embedded model this was planted: half of the detours in its training text were noticed.

# %%
import numpy as np
import pandas as pd

import latentlens as ll

lm = ll.load()
sae = ll.load_sae(ll.organism.sae_path("late"))  # of the last block
judge = ll.organism.judges

# a direction for each topic: mean state of replies on it, minus the mean over topics
texts = ll.organism.texts("topics", 400, seed=5, split="plain")
acts = lm.activations([t.messages() for t in texts], "resid_post[2]", where="role:assistant", pool="mean")
states, topics = acts["resid_post[2]"], sorted({t.topic for t in texts})
means = {topic: states[[t.topic == topic for t in texts]].mean(0) for topic in topics}
centre = sum(means.values()) / len(means)
directions = {topic: ll.Direction(means[topic] - centre, "resid_post[2]", name=topic) for topic in topics}

# %% [markdown]
# ## One push
#
# The direction of another topic is added while the first eight tokens are predicted, and not after.

# %%
how = {"where": "last_prompt+response", "schedule": ll.Schedule(stop=8)}
music = [{"role": "user", "content": "Tell me about the music."}]
plans = [[ll.Add(directions[topic], 1.55, **how)] for topic in topics if topic != "music"]
for run in lm.generate([music] * len(plans), 40, temperature=0.7, seed=1, steer=plans):
    print(run.steer[0].direction.name, "|", run.text)

# %% [markdown]
# ## How often?
#
# Eighty prompts, each pushed towards a topic that it is not about. The same prompts and the same randomness in every
# arm, so that arms are compared reply by reply. Controls: no push, and random directions of equal length.

# %%
asked = [t for t in ll.organism.texts("topics", 300, seed=9, split="on_topic") if t.regime == "plain"][:80]
prompts = [t.prompt() for t in asked]
pushes = [ll.Add(directions[topics[(topics.index(t.topic) + 3) % len(topics)]], 1.55, **how) for t in asked]
randoms = [ll.Add(push.direction.random_like(i), 1.55, **how) for i, push in enumerate(pushes)]

arms = {"no push": None, "random push": [[r] for r in randoms], "push": [[p] for p in pushes]}
corrected = {}
for name, plan in arms.items():
    runs = lm.generate(prompts, 48, temperature=0.7, seed=0, steer=plan)
    corrected[name] = np.array([judge.restarts(text) > 0 for text in runs.texts])
{name: ll.Arm.of("prompt", list(found)).share.short for name, found in corrected.items()}

# %% [markdown]
# ## Who notices?
#
# The corpus has labelled detours. Read the SAE at every full stop of such texts: which latents tell a sentence that
# left the topic from one that did not?

# %%
from latentlens.organism_saes.concepts import OFF_TOPIC, codes, detectors, ends

stops = ends(lm, 900, seed=5)
at_stops = codes(lm, sae, stops)
off_topic = np.array(stops.labels[OFF_TOPIC])
found = detectors(at_stops, off_topic)
found

# %%
six = found.best(6)
rates = found.to_frame().set_index("latent").loc[six]
sharpest = int((rates["positive_rate"] - rates["negative_rate"]).idxmax())

replies = lm.generate(prompts, 48, temperature=0.7, seed=0, steer=arms["push"])
example = next(run for run in replies if judge.restarts(run.text))
ll.plots.highlight(lm.latents(sae, [example.full_row], where="response"), sharpest)

# %% [markdown]
# The colour is the one of these six that most often fires there only, along one pushed reply (read without the push):
# it lights up where the sentence that left the topic ends, right before the correction.
#
# ## Without them
#
# The same pushed prompts once more, with the six latents held at zero while the model writes. And three sets of six
# **matched** latents, which fire as often and as strongly at the same full stops: taking *anything* out might break a
# correction.

# %%
firing = ll.latents.firing(at_stops.rows(off_topic))
sets = {"six detectors ablated": six}
for seed in range(3):
    sets[f"matched latents {seed}"] = ll.latents.matched(firing, six, exclude=six, n=8, seed=seed)
for name, them in sets.items():
    off = ll.ablate(sae, them, where="last_prompt+response")
    plan = [[push, off] for push in pushes]
    runs = lm.generate(prompts, 48, temperature=0.7, seed=0, steer=plan, allow_idle=True)
    corrected[name] = np.array([judge.restarts(text) > 0 for text in runs.texts])

found = [ll.Arm.of("prompt", list(outcome)).share for outcome in corrected.values()]
shares = pd.DataFrame({"arm": corrected.keys(), "corrects itself": [e.value for e in found]})
shares["up"], shares["down"] = [e.high - e.value for e in found], [e.value - e.low for e in found]
bars = {"error_y": "up", "error_y_minus": "down", "backend": "plotly", "template": "none"}
figure = shares.plot(kind="bar", x="arm", y="corrects itself", title="Who corrects itself? 95% Wilson", **bars)
figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font_color="#7C828B")

# %% [markdown]
# Paired with the pushed replies, prompt by prompt:

# %%
for name in sets:
    print(name, ll.intention.average(corrected[name].astype(float) - corrected["push"]))

# %% [markdown]
# The correction **depends on** what the detectors carry if their bar falls and those of the matched latents do not.
# These may even rise: at a full stop, the latents that write the next sentence compete with the correction. It does
# not say that the detectors decide it alone, nor that another model does the same. The whole study, with thresholds,
# judges and prompts that ask the model to watch itself, is `python steering/esr.py`; the page is [Steering
# resistance](../docs/esr.md).
