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
#
# ## The study
#
# A model, an SAE of it, questions, and a judge: here thirty questions about ten topics, and a rule that counts words.
# `prepare` lets the model answer undisturbed, and draws latents to steer with: labelled by the words on which they
# fire most, of one topic, and silent on every question, so that each of them is off topic wherever it is added.

# %%
import pandas as pd

import latentlens as ll

study = ll.open_study()
core = ll.resistance.prepare(study, 24, samples=2, rounds=7, per_round=3)
core.sampled

# %% [markdown]
# ## How hard to push?
#
# Too little changes nothing, too much leaves no text to correct. For each latent the strength is sought at which a
# first attempt scores 30 of 100, all latents in the same batches. The push is *transient*: the latent is added while
# the first eight tokens of the answer are predicted, and not after.

# %%
trials = core.trials("transient", 5)
core.limits("transient")

# %% [markdown]
# ## The same trials in every condition
#
# A trial is a latent, a question, a seed and a strength. All of them are replayed undisturbed, steered, steered with
# the off-topic detectors held at zero (they come in a moment), and with random latents held at zero. Only what a
# condition says of itself is different, so conditions are compared trial by trial.

# %%
conditions = ll.resistance.ablation.conditions({"detectors": core.chosen.latents}, core.controls, "transient")
answers = study.answers(trials, conditions)
mended = answers["steered"].where(answers["steered"].outcome("resisted") > 0)
for prompt, text, scores in [*zip(mended.prompts, mended.texts, mended.scores)][:4]:
    print(prompt, "|", text, "\n    scores of its attempts:", scores)

# %% [markdown]
# ## Who notices?
#
# Read the undisturbed answers below their own question, and once more below **another** question. Latents that fire on
# the second only know that the answer is off topic. These are the detectors, and where the strongest of them fires
# most:

# %%
core.chosen

# %%
core.found.examples(core.chosen.latents[0], k=4)

# %% [markdown]
# And the same latent along an answer that was pushed and mended, read without the push. It lights up where a sentence
# that left the topic ends, right before the correction, and hardly where one on the topic ends.

# %%
seen = study.codes(study.conversations(mended.where([0])), "response")
ll.plots.highlight(seen, core.chosen.latents[0])

# %% [markdown]
# ## Without them
#
# Blue: more than one attempt. The detectors are held at zero while the model writes; beside them random latents, drawn
# uniformly, and **matched** ones, which fire as often and as strongly: taking anything out might break a correction.

# %%
rates = [ll.esr.rates(one) for one in answers.values()]
ll.plots.resistance_conditions(rates)

# %%
tests = ll.resistance.ablation.effects(answers, ["detectors"], core.controls)
pd.DataFrame([one.line() for one in tests[:7]])

# %% [markdown]
# The correction **depends on** what the detectors carry if their bar falls and those of the matched latents do not.
# Uniform latents of a sparse SAE are mostly silent: they are hardly a control. `first` is the first attempt: if it
# moved as much, the ablation would have changed what is corrected, and not the correcting. It does not say that the
# detectors decide it alone, nor that another model does the same.
#
# ## Are they enough?
#
# Nothing is wrong now: an undisturbed answer, cut after its first sentence, and the detectors **raised** there, to
# multiples of what they have in off-topic texts. Is the answer broken off? Beside it, a sentence that really is off
# topic, with nothing raised.

# %%
raised = {"detectors": core.chosen.latents, "matched latents": core.controls["matched 1"]}
ll.plots.raised_latents(ll.resistance.ablation.raised(study, core.baseline, core.found, raised))

# %% [markdown]
# The whole study, with persistent steering, doses, meta-prompts, other judges and corrections that are taught, is
# `python steering/esr.py`; the page is [Steering resistance](../docs/esr.md).
