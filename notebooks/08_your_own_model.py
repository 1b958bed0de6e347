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
# # 8. Your own model
#
# Any causal language model of Hugging Face works as it is: from the hub, from a folder, or as an object that you have
# in memory already. Nothing is registered by name; the blocks are found by their structure.
#
# Cells that begin with `# needs a hub` are shown and were not run here.

# %% tags=["hub"]
# needs a hub
import latentlens as ll

lm = ll.load("Qwen/Qwen3-0.6B")
lm = ll.load("Qwen/Qwen3-8B", quantization="nf4")  # 4-bit; "int8" for 8-bit
lm = ll.load("Qwen/Qwen3-32B", device_map="auto", dtype="bfloat16")  # over all GPUs, then the CPU

# %% [markdown]
# ## From a folder
#
# Whatever `save_pretrained` wrote. Here it is the embedded model's folder, loaded as a stranger's would be.

# %%
import latentlens as ll

lm = ll.load(ll.organism.path())
lm

# %% [markdown]
# The table says which module every site resolves to. The first thing to do with a new model is to let it be checked:

# %%
lm.check()

# %% [markdown]
# What does it know? The first picture of any model costs a line: what it would say if it stopped after each block.

# %%
chat = [{"role": "user", "content": "Tell me about the music."}]
ll.plots.logit_lens(lm.logit_lens([chat]), last=8)

# %% [markdown]
# ## A model that is in memory
#
# A freshly built Qwen3 with random weights, another family altogether. It is used as it is: not wrapped, not copied.

# %%
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=len(lm.tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16,
)  # fmt: skip
stranger = ll.load(Qwen3ForCausalLM(config), tokenizer=lm.tokenizer)
stranger.check()

# %% [markdown]
# ## Fewer bits
#
# The same weights in 8 and in 4 bits, here on a CPU. Are its states still the same states? The cosine with the full
# ones at each block, over the last token of sixty prompts: nearly, and less the fewer bits there are. A quantised model
# is another model: it has its own entries in the cache, and a direction found in one is to be tried in the other, not
# assumed.

# %%
chats = [t.prompt() for t in ll.organism.draw("topics", 60, seed=0, split="on_topic")]
full, kept = lm.activations(chats, "resid_post[*]", where="last").stack(), {}
for bits in ("int8", "nf4"):
    small = ll.load(ll.organism.path(), quantization=bits)
    states = small.activations(chats, "resid_post[*]", where="last").stack().float()
    kept[bits] = torch.nn.functional.cosine_similarity(full, states, dim=-1).mean(dim=1)
kept

# %% [markdown]
# ## Before something large
#
# What would this cost, in bytes and seconds? Nothing is computed yet.

# %%
lm.forecast(chats * 100, "resid_post[*]", where="all")

# %% [markdown]
# ## An SAE for it
#
# From SAELens' releases, or from a folder of SAELens, sparsify or dictionary_learning.

# %% tags=["hub"]
# needs a hub
gemma = ll.load("google/gemma-2-2b")
sae = ll.load_sae("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical")
ll.preflight(gemma, sae)

# %%
organism = ll.load()
sae = ll.load_sae(ll.organism.sae_path())  # a folder in SAELens' format
sae

# %% [markdown]
# **Preflight** comes before any result: base model, site, BOS, scale, and what the SAE explains on real tokens. Here
# is what it says about the model that the SAE was trained on,

# %%
ll.preflight(organism, sae)

# %% [markdown]
# and about the stranger. Without `strict=False` this is an error, before anything was measured with the wrong SAE.

# %%
ll.preflight(stranger, sae, strict=False)

# %% [markdown]
# ## Your own loop
#
# `lm.steer` edits every forward inside the `with`, whoever runs it: `generate` of transformers, a pipeline, your
# training loop. Afterwards no hook is left.

# %%
texts = ll.organism.draw("topics", 400, seed=5, split="plain")
acts = lm.activations([t.messages() for t in texts], "resid_post[4]", where="role:assistant", pool="mean")
states, sea = acts["resid_post[4]"], torch.tensor([t.topic == "sea" for t in texts])
direction = ll.Direction(states[sea].mean(0) - states[~sea].mean(0), "resid_post[4]", name="sea")

chat = [{"role": "user", "content": "Tell me about the music."}]
ids = lm.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
ids = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
edit = ll.Add(direction, 2.0, unit="norm", where="last_prompt+response", schedule=ll.Schedule(stop=3))

plain = lm.model.generate(**ids, max_new_tokens=24, do_sample=False)
with lm.steer(edit):
    steered = lm.model.generate(**ids, max_new_tokens=24, do_sample=False)
for name, out in (("plain:  ", plain), ("steered:", steered)):
    print(name, lm.tokenizer.decode(out[0][ids["input_ids"].shape[1] :]))

# %% [markdown]
# More: [Your own model](../docs/own_model.md), [SAE latents](../docs/sae.md).
