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
# # 7. G-ACT: a vector for each prompt
#
# Asked for a program, a model prefers one language. One vector for all prompts may not fit each of them. G-ACT
# clusters the differences that *naming* a language makes to the state of each prompt, trains a probe at every block
# that recognises the cluster, and adds the vector of the cluster that the probe names, prompt by prompt. Is choosing
# worth it?

# %%
import pandas as pd

import latentlens as ll

lm, languages = ll.load(), ll.code_language.LANGUAGES
how = {"max_new_tokens": 48, "temperature": 1.0}
rules = {"judge": ll.code_language.language_of, "valid": ll.code_language.is_valid}
ask = ll.StyledTasks(lm, languages, **rules, options=how)
tasks = list(dict.fromkeys(str(t.group) for t in ll.organism.draw("code", 1000, seed=1)))
fitting, tuning, testing = tasks[:84], tasks[84:100], tasks[100:140]
print(ask.prompts(tasks)[0][0]["content"], "|", ask.prompts(tasks, "Julia")[0][0]["content"])

# %% [markdown]
# ## What it prefers
#
# Nothing is said about the language.

# %%
plain = ask.answers(testing, {"no edit": None}, seeds=[0])["no edit"]
pd.Series(plain.style).value_counts()

# %% [markdown]
# ## Clusters of differences
#
# For every task, the state at the last prompt token with Julia named, minus the mean of the states with the other
# languages named. The probes have to recognise the cluster from the **open** prompt, on tasks that they did not see.

# %%
target = "Julia"
states = {style: ask.states(fitting, style)["resid_post"] for style in languages}
others = [acts for style, acts in states.items() if style != target]
differences = ll.gact.differences(states[target], others)
found = ll.gact.fit(ask.states(fitting)["resid_post"], differences, k=3, seed=0)
ll.plots.cluster_probes({target: found})

# %%
found

# %% [markdown]
# A cosine near one between a cluster and the mean of all says that the clusters hardly differ: then there is little
# to choose.
#
# ## Where, and how strongly?
#
# On tasks of their own, with the mean difference: at the last prompt token only, or at every position that predicts a
# token. Shares of valid programs in Julia, and the nats that an answer has moved from the unsteered model.

# %%
m, rows = 4, []
for where in ("last_prompt", "last_prompt+response"):
    plans = {str(c): found.mean_plan(c, m, where=where) for c in (0.05, 0.1, 0.15, 0.2, 0.3)}
    for strength, arm in ask.answers(tuning, plans, seeds=[0]).items():
        rows.append((where, float(strength), arm.hit(target).value, arm.nats().value))
grid = pd.DataFrame(rows, columns=["where", "strength", "valid Julia", "nats"])
grid.pivot(index="strength", columns="where").round(2)

# %% [markdown]
# The decision for a language falls at one position. Pushed on all the way, the text breaks: hundreds of nats and no
# program. Take the prompt's last token, and the strength nearest to half, so that a better method can show itself.

# %%
usable = grid[grid["where"] == "last_prompt"].set_index("strength")["valid Julia"]
where, strength = "last_prompt", float((usable - 0.5).abs().idxmin())
strength

# %% [markdown]
# ## Is choosing worth it?
#
# The same blocks, positions and length: G-ACT, the mean difference for all, the clusters **permuted** (each prompt
# gets another cluster's vector), random vectors of equal norm; and asking in words.

# %%
plans = {
    "no edit": None,
    "G-ACT": found.plan(strength, m, where=where),
    "G-ACT, clusters permuted": found.plan(strength, m, where=where, order=[1, 2, 0][: found.k]),
    "mean difference": found.mean_plan(strength, m, where=where),
    "random 0": found.mean_plan(strength, m, where=where, random=0),
    "random 1": found.mean_plan(strength, m, where=where, random=1),
}
arms = ask.answers(testing, plans, seeds=[0, 1])
words = ask.answers(testing, {"asked in words": None}, seeds=[0, 1], style=target)
effect = ll.StyleEffect(target, languages, [*arms.values(), *words.values()])
ll.plots.style_shares([effect])

# %%
effect.to_frame().filter(["arm", "n", "valid and in the target", "nats an answer"])

# %%
for other in ("mean difference", "G-ACT, clusters permuted", "random 0"):
    print("G-ACT minus", other, effect.difference("G-ACT", other))

# %% [markdown]
# The last lines decide. If G-ACT beats random vectors but neither the mean nor the **permuted** clusters, steering
# works here and choosing does not matter: one vector is enough for prompts this alike. The experiment, with all
# languages, refinement of the probes, attention heads and single neurons at equal nats, is `python steering/gact.py`.
