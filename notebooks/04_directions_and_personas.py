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
# # 4. Directions and personas
#
# A persona vector (*Persona Vectors*, arXiv 2507.21509) is a difference of means: the states of answers written under
# "Be very formal." minus those of answers written without it. Is that vector a dial for the trait, and does it say in
# advance how formal the next answer is going to be?
#
# ## Two kinds of answers
#
# The model writes under instructions for and against each trait, and every answer is judged. In the embedded model
# the judge counts words; elsewhere a model judges (`ll.LocalJudge`, `ll.EndpointJudge`).

# %%
import latentlens as ll

lm = ll.load()
personas = ll.organism.personas
names = ["formal", "cheerful", "nervous", "hostile"]
traits = {name: personas.trait(name) for name in names}
judges = {name: ll.RuleJudge(personas.percent(name), f"{name} words") for name in names}
fluent = ll.RuleJudge(personas.coherence, "on the topic")
how = {"max_new_tokens": 32, "temperature": 1.0}

kept = {}
for name in names:
    written = ll.contrast(lm, traits[name], judges[name], fluent, samples=1, seed=0, **how)
    kept[name] = ll.persona.keep(written)
kept["formal"]

# %%
pair = kept["formal"].pairs[0]
print("for:    ", pair.positive.text, "\nagainst:", pair.negative.text)

# %% [markdown]
# Only pairs in which the contrast shows are kept: an instruction that the model ignored teaches nothing.
#
# ## The vector, at every block
#
# Every answer counts once, whatever its length. `stability` is the cosine between vectors from random halves of the
# questions: is it the same vector again?

# %%
vectors = {}
for name in names:
    states = lm.activations(kept[name].rows, "resid_post[*]", where="response", pool="mean")
    vectors[name] = ll.persona.extract(kept[name], states)
vectors["formal"]

# %% [markdown]
# ## Where, and how strongly?
#
# A sweep over blocks and strengths, on the questions that the vector was taken from. The setting with most of the
# trait among those whose text stays on its topic is chosen here, once.

# %%
tried = [v for v in vectors["formal"] if v.site.block >= 2]
questions = traits["formal"].questions
swept = ll.site_sweep(lm, tried, [1, 2, 4], questions, judges["formal"], fluent, about=traits["formal"].about, **how)
choice = ll.persona.choose_site(**swept, least_coherence=80)
choice

# %% [markdown]
# ## A dial?
#
# Other questions, four strengths, and every control in the same run: random directions of equal norm, the vectors of
# the other traits, and asking for it in words. Below: nats a token under the unsteered model, the price in fluency.

# %%
at, top = choice.site, choice.strength
doses = ll.trait_doses(
    lm,
    vectors["formal"][at],
    [top * part for part in (0.25, 0.5, 0.75, 1.0)],
    traits["formal"].evaluation,
    {**judges, "coherence": fluent},
    "formal",
    asked_by=traits["formal"].system("positive"),
    others={name: vectors[name][at] for name in names if name != "formal"},
    about={name: trait.about for name, trait in traits.items()},
    seeds=[0],
    **how,
)
ll.plots.trait_doses(doses)

# %%
doses

# %% [markdown]
# Read it in this order: does blue rise at every step; does it leave the grey band of random directions; do the other
# traits stay down (or is this just *some* voice); and how far is it from asking in words?
#
# ## Before it speaks
#
# Project the state at the last prompt token, before anything is written, on the vector, and compare with the trait of
# the answer that follows. Beside it: the projection of the answer itself.

# %%
held = ll.contrast(lm, traits["formal"].held_out, judges["formal"], fluent, samples=1, seed=1000, **how)
panels = {}
for title, place in (("at the last prompt token", "last_prompt"), ("over the answer", "response")):
    states = lm.activations(held.rows, str(at), place, "mean")
    panels[title] = ll.persona_monitoring.monitor_contrast(held, states, vectors["formal"][at])
ll.plots.trait_monitor(panels, score="formal, score of the answer")

# %% [markdown]
# Much of a correlation like this is the difference **between** kinds of prompts, which anybody can read off the
# prompt. The number to look at is the one inside a kind.
#
# ## Are the four related?

# %%
ll.plots.cosine_map({name: vectors[name][at] for name in names})

# %% [markdown]
# A cell without a number is explained by chance. Each vector was taken against answers in the **other** voices as
# well, so a negative cosine belongs to the contrast that was chosen, and not to the traits.
#
# The experiment with all four traits and judges of your choice is `python steering/persona_vectors.py`.
