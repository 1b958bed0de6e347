"""Second oracle: TransformerLens' bridge, built on a copy of each model (it changes what it is given).

The bridge is asked for the same points under its own names. A name that the bridge does not know is dropped in
silence by run_with_cache, so every test first asserts that it is in the cache.
"""

from __future__ import annotations

import copy
import functools

import families
import pytest
import torch

from latentlens.access.hooks import hooked
from latentlens.access.layout import Layout
from latentlens.values.sites import Site

torch.set_num_threads(1)

IDS = torch.arange(3, 10)[None]
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
# Left out: families where the bridge's own logits are not the model's (Cohere2, DeepSeek-V3, Falcon with alibi), where
# it stops with an error (new Falcon, Cohere with query-key norms) or has no names for the points (Qwen3-Next), and
# Gemma3 inside its multimodal class, which takes it minutes.
BRIDGED = ["Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3-MoE", "Mixtral", "Gemma2", "Gemma3", "Phi", "Phi-3", "OLMo"]
BRIDGED += ["OLMo2", "OLMoE", "gpt-oss", "GPT-2", "GPT-NeoX", "GPT-NeoX-sequential", "GPT-J", "OPT", "BLOOM", "MPT"]
BRIDGED += ["Falcon-old", "StableLM", "StableLM-parallel", "Granite", "SmolLM3", "GLM4", "StarCoder2", "GPT-Neo"]
BRIDGED += ["GPT-BigCode", "Nemotron", "Mamba"]


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A word-level tokenizer without files from a hub; reloaded, because the bridge wants a name_or_path."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(families.VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "w0", "bos_token": "w1", "eos_token": "w2", "unk_token": "w3"}
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@functools.cache
def bridge_class():
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge


def bridged(family: str, tokenizer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The bridge's logits and everything that it recorded."""
    model = copy.deepcopy(families.build(family))
    model.config.architectures = [type(model).__name__]  # as in a saved model: the bridge chooses by it
    bridge = bridge_class().boot_transformers("tiny", hf_model=model, tokenizer=tokenizer, device="cpu")
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(IDS)
    return logits, dict(cache.items())


def ours(layout: Layout, points: list[str] | None = None) -> dict[Site, torch.Tensor]:
    values: dict[Site, torch.Tensor] = {}

    def keep(site: Site, tensor: torch.Tensor) -> None:
        values[site] = tensor.clone()

    points = points or [point for point in layout.available() if point in HOOKS]
    sites = layout.sites([f"{point}[*]" for point in points])
    with torch.no_grad(), hooked([(layout.tap(s), functools.partial(keep, s)) for s in sites], shape=(1, 7)):
        layout.model(input_ids=IDS)
    return values


@pytest.mark.parametrize("family", BRIDGED)
def test_the_bridge_reads_the_same_values(family, tokenizer):
    logits, theirs = bridged(family, tokenizer)
    with torch.no_grad():
        real = families.build(family)(input_ids=IDS).logits
    assert relative_error(logits, real) < 1e-5, "the bridge computes something else: it is no oracle here"
    layout = Layout(families.build(family))
    for site, value in ours(layout).items():
        name = f"blocks.{site.block}.{HOOKS[site.point]}"
        assert name in theirs, f"the bridge recorded no {name}"
        # The bridge shows Granite's contributions after the residual multiplier, we show the module's output.
        assert relative_error(layout.scale(site) * value, theirs[name].reshape(value.shape)) < 1e-5, name


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX", "BLOOM"])
def test_both_agree_on_a_model_that_the_bridge_has_taken_over(family, tokenizer):
    """A model inside a bridge can still be given to a layout: its blocks are where they were."""
    model = copy.deepcopy(families.build(family))
    model.config.architectures = [type(model).__name__]
    expected = ours(Layout(families.build(family)))
    bridge_class().boot_transformers("tiny", hf_model=model, tokenizer=tokenizer, device="cpu")
    layout = Layout(model)
    for site, value in ours(layout, ["resid_pre", "resid_post"]).items():
        assert relative_error(value, expected[site]) < 1e-5, site
