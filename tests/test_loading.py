import copy
import json

import pytest
import torch
from families import build
from tinytok import tokenizer

import latentlens as ll
from latentlens.errors import BadInput, CheckFailed, CompiledModel, UnsafeFile, UnsupportedArchitecture


@pytest.fixture
def folder(tmp_path, llama):
    llama.save_pretrained(tmp_path / "saved")
    tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def wide_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    return LlamaForCausalLM(config).eval()


def test_a_local_folder_a_path_and_an_object_read_alike(folder, llama):
    expected = ll.load(llama, cache=False).activations([[5, 6, 7]])
    for given in (folder, str(folder)):
        lm = ll.load(given, cache=False)
        assert lm.name == "saved"
        assert all(torch.equal(lm.activations([[5, 6, 7]]).values[s], expected.values[s]) for s in expected)
    assert ll.load(folder, cache=False).activations("cat sat").labels["token"].tolist() == ["<s>", "cat", "sat"]


def test_a_model_object_is_left_as_it_was(llama):
    keys, classes = list(llama.state_dict()), [type(m) for m in llama.modules()]
    lm = ll.load(llama, cache=False)
    lm.activations([[5, 6, 7]], sites=["resid_post[*]", "attn_out[0]", "logits"])
    lm.generate([[5, 6]], 2)
    lm.check()
    assert lm.model is llama
    assert list(llama.state_dict()) == keys
    assert [type(m) for m in llama.modules()] == classes
    assert llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", torch.bfloat16])
def test_dtype_is_taken_by_name_or_object(folder, dtype):
    lm = ll.load(folder, dtype=dtype, cache=False)
    assert lm.activations([[5, 6]], sites=0)["resid_post[0]"].dtype == torch.bfloat16
    assert lm.activations([[5, 6]], sites=0, where="mean")["resid_post[0]"].dtype == torch.float32


@pytest.mark.parametrize(("quantization", "cosine"), [("int8", 0.99), ("nf4", 0.95)])
def test_quantised_models_are_read_and_steered(tmp_path, quantization, cosine):
    llama = wide_llama()  # nf4 works on blocks of 64 weights
    llama.save_pretrained(tmp_path)
    lm = ll.load(tmp_path, quantization=quantization, tokenizer=tokenizer(), cache=False)
    assert quantization in repr(lm)
    exact = ll.load(llama, cache=False).activations([[5, 6, 7]], sites=1)["resid_post[1]"]
    near = lm.activations([[5, 6, 7]], sites=1)["resid_post[1]"].float()
    assert torch.cosine_similarity(near, exact).min() > cosine
    direction = ll.Direction(torch.randn(64, generator=torch.Generator().manual_seed(0)), "resid_post[0]")
    clean, steered = lm.logits([[5, 6, 7]]), lm.logits([[5, 6, 7]], steer=ll.Add(direction, 5.0))
    assert (clean - steered).abs().max() > 0.01
    assert len(lm.generate([[5, 6, 7]], 3, stop_ids=())[0].generated) == 3


def odd_llama():
    """Widths that 4-bit weights are not packed in on a CPU with AVX512-BF16: 96 and 352 inputs, 48 outputs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def fast_4bit(monkeypatch):
    """A CPU on which bitsandbytes packs 4-bit weights, whatever this one is."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


def test_4_bit_weights_of_any_width_are_read_on_a_cpu_as_their_dequantised_values_say(tmp_path, fast_4bit):
    odd_llama().save_pretrained(tmp_path)
    lm = ll.load(tmp_path, quantization="nf4", tokenizer=tokenizer(), cache=False, dtype="float32")
    plain = odd_llama()
    from bitsandbytes.functional import dequantize_4bit

    layers = {name: m for name, m in lm.model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert {m.in_features for m in layers.values()} == {96, 352}
    for name, layer in layers.items():
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        plain.get_submodule(name).weight.data.copy_(weight)
    expected = ll.load(plain, cache=False).activations([[5, 6, 7]])
    found = lm.activations([[5, 6, 7]])
    for site in expected:
        torch.testing.assert_close(found.values[site].float(), expected.values[site], atol=2e-3, rtol=2e-3)
    assert len(lm.generate([[5, 6, 7]], 3, stop_ids=())[0].generated) == 3


def test_4_bit_weights_that_a_given_model_cannot_use_here_are_an_error_that_says_what_to_do(tmp_path, fast_4bit):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    odd_llama().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    given = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    with pytest.raises(BadInput, match=r"q_proj is a 4-bit layer of 96 inputs .* multiples of 64 and 32\. Let"):
        ll.load(given, tokenizer=tokenizer(), cache=False)


def test_a_multimodal_class_is_loaded_from_its_folder(tmp_path):
    build("Gemma3-multimodal").save_pretrained(tmp_path / "multi")
    lm = ll.load(tmp_path / "multi", tokenizer=tokenizer(), cache=False)
    assert lm.check().passed


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"model": "./nowhere"}, BadInput, "no folder"),
        ({"model": "some/absent-model"}, BadInput, "cannot load some/absent-model"),
        ({"model": 3}, BadInput, "cannot load int"),
        ({"model": torch.nn.Linear(2, 2)}, BadInput, "no config"),
    ],
)
def test_what_cannot_be_loaded_says_why(call, error, says):
    with pytest.raises(error, match=says):
        ll.load(**call, cache=False)


def test_bad_options_are_named(folder, llama):
    with pytest.raises(BadInput, match="float32"):
        ll.load(folder, dtype="fp7", cache=False)
    with pytest.raises(BadInput, match="'nf4'"):
        ll.load(folder, quantization="int3", cache=False)
    with pytest.raises(BadInput, match="loaded already"):
        ll.load(llama, dtype="bfloat16", cache=False)
    with pytest.raises(BadInput, match="no tokenizer found"):
        ll.load(folder, tokenizer="./nowhere", cache=False)


def test_pickled_weights_are_never_opened(folder):
    class Payload:
        def __reduce__(self):
            return (open, (str(folder / "executed"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"w": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin"):
        ll.load(folder, cache=False)
    assert not (folder / "executed").exists()


def test_a_folder_without_weights_or_config_says_what_is_missing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no \.safetensors"):
        ll.load(folder, cache=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no config\.json"):
        ll.load(tmp_path / "empty", cache=False)


def test_code_that_comes_with_a_model_is_refused_unless_asked_for(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")
    with pytest.raises(BadInput, match="trust_remote_code=True"):
        ll.load(folder, cache=False)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_model_has_one_key_before_and_after_its_first_use(quantization, tmp_path):
    """on a CPU bitsandbytes repacks 4-bit weights when they are first used: what was kept is to be found again"""
    pytest.importorskip("bitsandbytes")
    wide_llama().save_pretrained(tmp_path)
    lm = ll.load(tmp_path, quantization=quantization, tokenizer=tokenizer(), cache=False)
    before = lm._identity.context(hash_weights=True)
    lm.generate([[6, 7, 8]], 2, stop_ids=())
    assert lm._identity.context(hash_weights=True) == before
    how = {"max_new_tokens": 3, "stop_ids": (), "folder": tmp_path / "rows"}
    ll.sweep(lm, [[6, 7, 8], [9, 10]], {"none": None}, **how)
    again = ll.load(tmp_path, quantization=quantization, tokenizer=tokenizer(), cache=False)
    assert ll.sweep(again, [[6, 7, 8], [9, 10]], {"none": None}, **how).attrs["rows_run"] == 0


def test_encoders_and_compiled_models_are_refused(llama):
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(UnsupportedArchitecture, match="BertModel"):
        ll.load(bert, cache=False)
    with pytest.raises(CompiledModel):
        ll.load(torch.compile(llama, backend="eager"), cache=False)


def test_check_passes_on_a_sound_model_and_names_what_is_broken(llama):
    report = ll.load(llama, cache=False, check=True).check()
    assert report.passed
    assert len(report.to_frame()) == 4
    assert "sdpa = eager" in str(report)
    assert "<table" in report._repr_html_()
    sick = copy.deepcopy(llama)
    sick.model.layers[0].register_forward_hook(lambda _m, _i, out: out + out.shape[0])  # depends on the batch
    with pytest.raises(CheckFailed, match=r"FAIL hook on a padded batch"):
        ll.load(sick, cache=False, check=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX", "OLMoE", "Gemma2", "GPT-2"])
def test_check_knows_the_rounding_of_half_precision(family, dtype):
    """Greedy tokens between which rounding decides are not counted against the model."""
    report = ll.load(copy.deepcopy(build(family)).to(dtype), cache=False).check()
    assert report.passed, str(report)


def test_a_model_shows_itself(llama):
    lm = ll.load(llama, cache=False)
    assert repr(lm).startswith("LensModel(LlamaForCausalLM: LlamaForCausalLM, 3 blocks, d=32")
    assert "model.layers.0.self_attn.o_proj" in lm._repr_html_()
