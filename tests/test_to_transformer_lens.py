"""The bridge that latentlens hands out: over a copy, under the same site names, with equal activations."""

from __future__ import annotations

import copy
import doctest
import sys
from types import SimpleNamespace

import families
import pytest
import torch

import latentlens as ll
from latentlens.access import transformer_lens
from latentlens.access.transformer_lens import hook_name, to_transformer_lens
from latentlens.errors import BadInput, CheckFailed, UnsupportedArchitecture
from latentlens.values.directions import as_site

IDS = list(range(3, 10))


def lens(family: str):
    return ll.load(copy.deepcopy(families.build(family)), cache=False)


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Gemma2", "GPT-NeoX", "Gemma3-multimodal", "Mamba"])
def test_every_site_has_the_bridge_s_value_under_the_bridge_s_name(family):
    lm = lens(family)
    bridge = to_transformer_lens(lm)
    points = [p for p in lm.layout.available() if family != "Mamba" or p.startswith("resid_p")]
    acts = lm.activations([IDS], sites=[p if p in ("final_norm", "logits") else f"{p}[*]" for p in points])
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([IDS]))
    assert len(acts.sites) >= 2 * lm.layout.n_blocks
    for site in acts.sites:
        theirs, ours = cache[hook_name(site)][0], acts[site]
        cap = getattr(lm.model.config, "final_logit_softcapping", None)
        if site.point == "logits" and cap:
            theirs = cap * (theirs / cap).tanh()  # theirs is the unembedding's output, ours are the model's logits
        error = float((theirs.reshape(ours.shape) - ours).abs().max() / ours.abs().max())
        assert error < 1e-5, f"{site} against {hook_name(site)}: {error:.2g}"


def test_hook_names_are_read_back_as_the_same_site():
    assert doctest.testmod(transformer_lens).attempted == 1
    assert doctest.testmod(transformer_lens).failed == 0
    for name in ("resid_pre[0]", "resid_mid[3]", "resid_post[11]", "attn_out[1]", "mlp_out[2]", "z[4]", "mlp_post[5]"):
        assert as_site(hook_name(name)) == as_site(name)
    for name in ("final_norm", "logits"):
        assert as_site(hook_name(name)) == as_site(name)


def test_a_hook_under_our_name_steers_the_bridge_and_not_our_model():
    lm = lens("Llama")
    bridge = to_transformer_lens(lm)
    before = lm.logits([IDS])
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    vector = torch.randn(families.WIDTH, generator=torch.Generator().manual_seed(0))
    hooks = [(hook_name("resid_post[1]"), lambda value, hook: value + vector)]
    ids = torch.tensor([IDS])
    with torch.no_grad():
        steered = bridge.run_with_hooks(ids, fwd_hooks=hooks)
        for parameter in bridge.original_model.parameters():
            parameter.zero_()
    handle = lm.model.model.layers[1].register_forward_hook(lambda m, i, o: o + vector)
    with torch.no_grad():
        expected = lm.model(input_ids=ids).logits
    handle.remove()
    assert torch.allclose(steered, expected, atol=1e-4)
    assert not torch.allclose(steered[:, -1], before, atol=1e-2)
    assert torch.equal(lm.logits([IDS]), before)
    assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())


def test_the_embedded_model_comes_with_its_tokenizer(organism):
    bridge = to_transformer_lens(organism)
    row = organism.tokens("the cat")[0]
    assert bridge.to_tokens("the cat")[0].tolist() == list(row.ids)
    assert bridge.tokenizer.name_or_path == organism.tokenizer.name_or_path
    assert organism.tokenizer.padding_side == "left"


def test_a_tokenizer_that_was_never_saved_is_enough():
    """`boot_transformers` stops at a tokenizer without name_or_path."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(families.VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3"
    )
    before = dict(made.init_kwargs)
    lm = ll.load(copy.deepcopy(families.build("Llama")), tokenizer=made, cache=False)
    bridge = to_transformer_lens(lm)
    assert bridge.to_tokens("w7 w8", prepend_bos=False)[0].tolist() == [7, 8]
    assert made.init_kwargs == before


@pytest.mark.parametrize("family", ["Cohere2", "DeepSeek-V3", "Falcon-sequential"])
def test_a_bridge_that_computes_another_function_is_refused(family):
    lm = lens(family)
    with pytest.raises(CheckFailed, match="another function"):
        to_transformer_lens(lm)
    assert to_transformer_lens(lm, check=False) is not None


@pytest.mark.parametrize("family", ["Cohere", "Falcon"])
def test_a_family_that_cannot_be_bridged_is_refused_by_name(family):
    with pytest.raises((UnsupportedArchitecture, CheckFailed), match=families.build(family).__class__.__name__):
        to_transformer_lens(lens(family))


def test_quantised_offloaded_and_spread_models_are_refused():
    lm = lens("Llama")
    lm.quantization = "nf4"
    with pytest.raises(BadInput, match="quantised"):
        to_transformer_lens(lm)
    lm = lens("Llama")
    lm.model.model.layers[1].to("meta")
    with pytest.raises(BadInput, match="offloaded"):
        to_transformer_lens(lm)


def test_a_model_spread_over_devices_is_refused():
    weights = [SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda:0")]
    spread = SimpleNamespace(name="big", quantization=None, model=SimpleNamespace(parameters=lambda: iter(weights)))
    with pytest.raises(BadInput, match="spread over"):
        to_transformer_lens(spread)


def test_without_transformer_lens_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge.sources", None)
    with pytest.raises(BadInput, match="pip install transformer-lens"):
        to_transformer_lens(lens("Llama"))
