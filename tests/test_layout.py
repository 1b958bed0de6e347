"""Every site is where a person who has read the modelling file would put it.

`ORACLE` is that reading: for each family the module path and side of every point, written by hand. Its values are
recorded with plain torch hooks, independently of latentlens, and must equal ours bit for bit.
"""

from __future__ import annotations

import copy
import functools
import threading
from contextlib import contextmanager

import families
import pytest
import torch
from torch import nn

from latentlens.access.hooks import hooked
from latentlens.access.layout import Layout
from latentlens.errors import CompiledModel, SiteNotFound, UnsupportedArchitecture
from latentlens.values.sites import BLOCK_POINTS, Site

torch.set_num_threads(1)

BATCH, TOKENS = 2, 7
IDS = torch.arange(3, 3 + BATCH * TOKENS).reshape(BATCH, TOKENS)

# -- the oracle -------------------------------------------------------------------------------------

LLAMA = {
    "z": ("self_attn.o_proj", "in"),
    "attn_out": ("self_attn", "out"),
    "resid_mid": ("post_attention_layernorm", "in"),
    "mlp_post": ("mlp.down_proj", "in"),
    "mlp_out": ("mlp", "out"),
}
SANDWICH = LLAMA | {
    "attn_out": ("post_attention_layernorm", "out"),
    "resid_mid": ("pre_feedforward_layernorm", "in"),
    "mlp_out": ("post_feedforward_layernorm", "out"),
}
NEOX = {
    "z": ("attention.dense", "in"),
    "attn_out": ("attention", "out"),
    "mlp_post": ("mlp.dense_4h_to_h", "in"),
    "mlp_out": ("mlp", "out"),
}
FALCON = NEOX | {"z": ("self_attention.dense", "in"), "attn_out": ("self_attention", "out")}
GPT2 = {
    "z": ("attn.c_proj", "in"),
    "attn_out": ("attn", "out"),
    "resid_mid": ("ln_2", "in"),
    "mlp_post": ("mlp.c_proj", "in"),
    "mlp_out": ("mlp", "out"),
}
PHI = {
    "z": ("self_attn.dense", "in"),
    "attn_out": ("self_attn", "out"),
    "mlp_post": ("mlp.fc2", "in"),
    "mlp_out": ("mlp", "out"),
}
FUSED_EXPERTS = {point: where for point, where in LLAMA.items() if point != "mlp_post"}
PARALLEL = {point: where for point, where in LLAMA.items() if point != "resid_mid"}
LINEAR_ATTENTION = {point: where for point, where in FUSED_EXPERTS.items() if point != "z"} | {
    "attn_out": ("linear_attn", "out")
}

# family: (path of the blocks, final norm, points of every block, {block: other points})
ORACLE = {
    "Llama": ("model.layers", "model.norm", LLAMA, {}),
    "Mistral": ("model.layers", "model.norm", LLAMA, {}),
    "Qwen2": ("model.layers", "model.norm", LLAMA, {}),
    "Qwen3": ("model.layers", "model.norm", LLAMA, {}),
    "Qwen3-MoE": ("model.layers", "model.norm", FUSED_EXPERTS, {0: LLAMA}),
    "Mixtral": ("model.layers", "model.norm", FUSED_EXPERTS, {}),
    "Gemma2": ("model.layers", "model.norm", SANDWICH, {}),
    "Gemma3": ("model.layers", "model.norm", SANDWICH, {}),
    "Gemma3-multimodal": ("model.language_model.layers", "model.language_model.norm", SANDWICH, {}),
    "Gemma4": ("model.layers", "model.norm", SANDWICH, {}),
    "Gemma4-per-layer-inputs": ("model.layers", "model.norm", SANDWICH, {}),
    "Phi-3": ("model.layers", "model.norm", LLAMA, {}),
    "Phi": ("model.layers", "model.final_layernorm", PHI, {}),
    "OLMo": ("model.layers", "model.norm", LLAMA, {}),
    "OLMo2": ("model.layers", "model.norm", SANDWICH | {"resid_mid": ("mlp", "in")}, {}),
    "gpt-oss": ("model.layers", "model.norm", FUSED_EXPERTS, {}),
    "GPT-2": ("transformer.h", "transformer.ln_f", GPT2, {}),
    "GPT-NeoX": ("gpt_neox.layers", "gpt_neox.final_layer_norm", NEOX, {}),
    "GPT-NeoX-sequential": (
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        NEOX | {"resid_mid": ("post_attention_layernorm", "in")},
        {},
    ),
    "GPT-J": (
        "transformer.h",
        "transformer.ln_f",
        {
            "z": ("attn.out_proj", "in"),
            "attn_out": ("attn", "out"),
            "mlp_post": ("mlp.fc_out", "in"),
            "mlp_out": ("mlp", "out"),
        },
        {},
    ),
    "OPT": (
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
        {
            "z": ("self_attn.out_proj", "in"),
            "attn_out": ("self_attn", "out"),
            "resid_mid": ("final_layer_norm", "in"),
            "mlp_post": ("fc2", "in"),
            "mlp_out": ("fc2", "out"),
        },
        {},
    ),
    "BLOOM": (
        "transformer.h",
        "transformer.ln_f",
        {
            "z": ("self_attention.dense", "in"),
            "attn_out": ("self_attention.dense", "out"),
            "resid_mid": ("post_attention_layernorm", "in"),
            "mlp_post": ("mlp.dense_4h_to_h", "in"),
            "mlp_out": ("mlp.dense_4h_to_h", "out"),
        },
        {},
    ),
    "Falcon": ("transformer.h", "transformer.ln_f", FALCON, {}),
    "Falcon-old": ("transformer.h", "transformer.ln_f", FALCON, {}),
    "Falcon-sequential": (
        "transformer.h",
        "transformer.ln_f",
        FALCON | {"resid_mid": ("post_attention_layernorm", "in")},
        {},
    ),
    "StableLM": ("model.layers", "model.norm", LLAMA, {}),
    "StableLM-parallel": ("model.layers", "model.norm", PARALLEL, {}),
    "Granite": ("model.layers", "model.norm", LLAMA, {}),
    "SmolLM3": ("model.layers", "model.norm", LLAMA, {}),
    "Cohere": ("model.layers", "model.norm", PARALLEL, {}),
    "Cohere2": ("model.layers", "model.norm", PARALLEL, {}),
    "GLM4": (
        "model.layers",
        "model.norm",
        LLAMA | {"attn_out": ("post_self_attn_layernorm", "out"), "mlp_out": ("post_mlp_layernorm", "out")},
        {},
    ),
    "StarCoder2": ("model.layers", "model.norm", LLAMA | {"mlp_post": ("mlp.c_proj", "in")}, {}),
    "MPT": (
        "transformer.blocks",
        "transformer.norm_f",
        {
            "z": ("attn.out_proj", "in"),
            "attn_out": ("attn", "out"),
            "resid_mid": ("norm_2", "in"),
            "mlp_post": ("ffn.down_proj", "in"),
            "mlp_out": ("ffn.down_proj", "out"),
        },
        {},
    ),
    "Mamba": ("backbone.layers", "backbone.norm_f", {}, {}),
    "GPT-Neo": ("transformer.h", "transformer.ln_f", GPT2 | {"z": ("attn.attention.out_proj", "in")}, {}),
    "GPT-BigCode": ("transformer.h", "transformer.ln_f", GPT2, {}),
    "Nemotron": ("model.layers", "model.norm", LLAMA, {}),
    "OLMoE": ("model.layers", "model.norm", FUSED_EXPERTS, {}),
    "DeepSeek-V3": ("model.layers", "model.norm", FUSED_EXPERTS, {0: LLAMA}),
    "Qwen3-Next": ("model.layers", "model.norm", LINEAR_ATTENTION, {1: FUSED_EXPERTS}),
}

every_family = pytest.mark.parametrize("family", list(families.FAMILIES))


def oracle(family: str) -> dict[Site, tuple[str, str]]:
    """Site -> (full module path, side), for every site that the family has."""
    path, norm, points, other = ORACLE[family]
    table: dict[Site, tuple[str, str]] = {
        Site("final_norm"): (norm, "out"),
        Site("logits"): ("lm_head", "out"),
    }
    for block in range(len(families.build(family).get_submodule(path))):
        table[Site("resid_pre", block)] = (f"{path}.{block}", "in")
        table[Site("resid_post", block)] = (f"{path}.{block}", "out")
        for point, (module, side) in other.get(block, points).items():
            table[Site(point, block)] = (f"{path}.{block}.{module}", side)
    return table


@contextmanager
def plain_hooks(model: nn.Module, where: dict[Site, tuple[str, str]]):
    """Record values with torch's own hooks; shares no code with latentlens."""
    values, handles = {}, []

    def keep(site, value):
        value = value[0] if isinstance(value, tuple) else value
        values[site] = value.detach().clone().reshape(BATCH, TOKENS, -1)

    for site, (path, side) in where.items():
        module = model.get_submodule(path)
        if side == "out":
            handles.append(module.register_forward_hook(lambda m, i, out, site=site: keep(site, out)))
        else:
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, site=site: keep(site, args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            )
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


@functools.cache
def layout(family: str) -> Layout:
    return Layout(families.build(family))


def read(where: Layout, sites: list[Site], ids: torch.Tensor = IDS) -> dict[Site, torch.Tensor]:
    values: dict[Site, torch.Tensor] = {}

    def keep(site: Site, tensor: torch.Tensor) -> None:
        values[site] = tensor.clone()  # Falcon adds to the MLP's output in place

    calls = [(where.tap(site), functools.partial(keep, site)) for site in sites]
    with torch.no_grad(), hooked(calls, shape=(ids.shape[0], ids.shape[1])):
        where.model(input_ids=ids)
    return values


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@functools.cache
def ours(family: str) -> dict[Site, torch.Tensor]:
    sites = [s for point in layout(family).available() for s in layout(family).sites(_all(point))]
    return read(layout(family), sites)


def _all(point: str) -> str:
    return f"{point}[*]" if point in BLOCK_POINTS else point


# -- the values -------------------------------------------------------------------------------------


def test_the_oracle_covers_every_family():
    assert set(ORACLE) == set(families.FAMILIES)
    assert len(ORACLE) >= 35


@every_family
def test_every_site_equals_the_module_output_recorded_by_hand(family):
    with plain_hooks(families.build(family), oracle(family)) as reference, torch.no_grad():
        families.build(family)(input_ids=IDS)
    assert set(ours(family)) == set(reference)
    for site, value in ours(family).items():
        assert torch.equal(value, reference[site]), site


@every_family
def test_taps_resolve_to_the_modules_named_by_hand(family):
    for site, (path, side) in oracle(family).items():
        tap = layout(family).tap(site)
        assert (tap.name, tap.side) == (path, side)
        assert tap.module is families.build(family).get_submodule(path)


@every_family
def test_contributions_add_up_to_the_residual_stream(family):
    where, values = layout(family), ours(family)
    for block in range(where.n_blocks):
        value = {point: values.get(Site(point, block)) for point in BLOCK_POINTS}
        if block:
            assert torch.equal(value["resid_pre"], values[Site("resid_post", block - 1)])
        if value["attn_out"] is None:
            assert family == "Mamba"
            continue
        attn = where.scale(Site("attn_out", block)) * value["attn_out"]
        mlp = where.scale(Site("mlp_out", block)) * value["mlp_out"]
        end = value["resid_post"]
        if family == "Gemma4":
            end = end / 0.7  # multiplies the sum at the end
        if family == "Gemma4-per-layer-inputs":
            end = value["resid_mid"] + mlp  # adds a third contribution, which is no site
        torch.testing.assert_close(value["resid_pre"] + attn + mlp, end, rtol=1e-5, atol=1e-5)
        if value["resid_mid"] is not None:
            torch.testing.assert_close(value["resid_pre"] + attn, value["resid_mid"], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(value["resid_mid"] + mlp, end, rtol=1e-5, atol=1e-5)
        # No contribution is a copy of another point: the identities above would hold trivially.
        assert attn.norm() > 0.01 * value["resid_post"].norm() / 10
        assert mlp.norm() > 0.01 * value["resid_post"].norm() / 10


def test_granite_scales_its_contributions_by_the_residual_multiplier():
    assert layout("Granite").scale(Site("attn_out", 1)) == 0.22
    assert layout("Llama").scale(Site("attn_out", 1)) == 1.0


@every_family
def test_z_splits_into_heads(family):
    where, values = layout(family), ours(family)
    for site, value in values.items():
        if site.point == "z":
            n_heads, d_head = where.heads(site.block)
            assert value.shape == (BATCH, TOKENS, n_heads * d_head)


@every_family
def test_the_last_block_is_read_before_the_final_norm(family):
    values = ours(family)
    last = values[Site("resid_post", layout(family).n_blocks - 1)]
    with torch.no_grad():
        recorded = copy.deepcopy(families.build(family))(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(values[Site("final_norm")], recorded)
    assert (last - recorded).abs().max() > 0.1


@every_family
def test_logits_are_the_output_of_the_unembedding(family):
    with torch.no_grad():
        real = families.build(family)(input_ids=IDS).logits
    value = ours(family)[Site("logits")]
    after = {
        "Gemma2": lambda x: 30 * torch.tanh(x / 30),
        "Granite": lambda x: x / 2.0,
        "Cohere": lambda x: x * families.build("Cohere").logit_scale,
        "Cohere2": lambda x: x * families.build("Cohere2").logit_scale,
    }
    torch.testing.assert_close(after.get(family, lambda x: x)(value), real)


# -- what the layout says about the model ------------------------------------------------------------


@every_family
def test_sizes_are_those_of_the_model(family):
    where, values = layout(family), ours(family)
    assert {site: where.width(site) for site in values} == {site: v.shape[-1] for site, v in values.items()}
    assert where.n_blocks == len(where.blocks) == len(where.block_paths)
    assert where.blocks_path == ORACLE[family][0]
    assert values[Site("resid_post", 0)].shape[-1] == where.d_model
    assert values[Site("logits")].shape[-1] == where.vocab_size
    assert where.decoder is not where.model
    assert where.class_name in repr(where)


def test_position_arguments_and_limits_are_read_from_the_decoder():
    assert layout("Llama").accepts_position_ids
    assert layout("GPT-2").accepts_position_ids
    assert not layout("BLOOM").accepts_position_ids
    assert not layout("Mamba").accepts_position_ids
    assert layout("BLOOM").accepts_attention_mask
    assert (layout("Llama").max_positions, layout("MPT").max_positions, layout("BLOOM").max_positions) == (
        64,
        64,
        None,
    )
    assert (layout("Qwen3").n_heads, layout("Qwen3").d_head) == (4, 16)
    assert (layout("Gemma4").heads(0), layout("Gemma4").heads(2)) == ((4, 8), (4, 16))
    assert (layout("Mamba").n_heads, layout("Mamba").d_head) == (None, None)


def test_multimodal_models_give_the_language_blocks():
    model = families.build("Gemma3-multimodal")
    assert layout("Gemma3-multimodal").blocks == list(model.model.language_model.layers)


@every_family
def test_available_and_table_name_exactly_the_points_that_exist(family):
    points = {site.point for site in oracle(family)}
    assert set(layout(family).available()) == points
    table = dict(layout(family).table())
    assert list(table) == layout(family).available()
    assert table["resid_post"] == f"{ORACLE[family][0]}.0.output"


# -- the model is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Falcon", "Qwen3-MoE", "Gemma3-multimodal", "OPT"])
def test_the_trace_leaves_the_model_as_it_was(family):
    model = copy.deepcopy(families.build(family))
    model.train()
    model.get_submodule(ORACLE[family][0])[1].eval()
    training = [m.training for m in model.modules()]
    calls = []
    handle = model.get_submodule(ORACLE[family][0])[0].register_forward_hook(lambda *_: calls.append(1))
    keys, state, hooks = list(model.state_dict()), copy.deepcopy(model.state_dict()), count_hooks(model)
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    Layout(model).available()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in keys)
    assert [m.training for m in model.modules()] == training
    assert all(p.grad is None for p in model.parameters())
    assert count_hooks(model) == hooks
    assert calls  # somebody else's hook is still there and was called
    handle.remove()


def test_blocks_and_logits_are_found_without_running_the_model():
    model = copy.deepcopy(families.build("Llama"))

    @functools.wraps(model.model.forward)
    def refuse(*_args, **_kwargs):
        raise AssertionError("the model was run")

    model.forward = model.model.forward = refuse
    where = Layout(model)
    assert [repr(where.tap(s)) for s in where.sites(["resid_post[*]", "model.layers.0.input", "logits"])] == [
        "model.layers.0.input",
        "model.layers.0.output",
        "model.layers.1.output",
        "model.layers.2.output",
        "lm_head.output",
    ]


def test_recording_hidden_states_before_does_not_change_what_is_read():
    model = copy.deepcopy(families.build("Llama"))
    where = Layout(model)
    sites = where.sites(["resid_post[*]", "attn_out[*]", "final_norm"])
    before = read(where, sites)
    with torch.no_grad():
        model(input_ids=IDS, output_hidden_states=True)
    after = read(Layout(model), sites)
    assert all(torch.equal(before[site], after[site]) for site in sites)


def test_the_trace_is_not_upset_by_an_edit_in_force():
    where = Layout(copy.deepcopy(families.build("Llama")))
    edit = (where.tap(Site("resid_post", 0)), lambda tensor: tensor * 3 + 1)
    with hooked([edit]) as fired:
        assert where.available() == layout("Llama").available()
    assert sum(fired.values()) == 0


def test_threads_share_one_trace():
    model = copy.deepcopy(families.build("Gemma2"))
    where, tables = Layout(model), []
    threads = [threading.Thread(target=lambda: tables.append(where.table())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tables == [layout("Gemma2").table()] * 8
    assert count_hooks(model) == 0


@every_family
def test_bfloat16_gives_the_same_sites(family):
    where = Layout(copy.deepcopy(families.build(family)).bfloat16())
    found = {s: repr(where.tap(s)) for p in where.available() for s in where.sites(_all(p))}
    assert found == {s: f"{path}.{side}put" for s, (path, side) in oracle(family).items()}


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT-NeoX", "Granite", "OPT", "BLOOM", "Qwen3-MoE"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_contributions_much_smaller_than_the_residual_stream_are_found(family, dtype):
    model = copy.deepcopy(families.build(family)).to(dtype)
    with torch.no_grad():
        # As in large models: a few elements carry most of the norm, and each block adds a percent or so.
        if family == "Granite":
            model.model.embedding_multiplier = model.config.embedding_multiplier = 100.0
        embedding = model.get_input_embeddings().weight
        embedding *= 1 if family == "BLOOM" else 20  # BLOOM normalises its embeddings
        embedding[:, 3] = 300
    where = Layout(model)
    found = {s: repr(where.tap(s)) for p in where.available() for s in where.sites(_all(p))}
    assert found == {s: f"{path}.{side}put" for s, (path, side) in oracle(family).items()}


class _Scaled(nn.Module):
    """A block whose multipliers are written in its forward, where no attribute shows them."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, **kwargs):
        block = self.block
        attended = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)[0]
        middle = hidden_states + 0.37 * attended
        return middle - 1.5 * block.mlp(block.post_attention_layernorm(middle))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_multipliers_that_no_attribute_shows_are_fitted(dtype):
    model = copy.deepcopy(families.build("Llama")).to(dtype)
    model.model.layers = nn.ModuleList(_Scaled(block) for block in model.model.layers)
    where = Layout(model)
    assert where.scale(Site("attn_out", 1)) == pytest.approx(0.37, rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert where.scale(Site("mlp_out", 1)) == pytest.approx(-1.5, rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert repr(where.tap(Site("resid_mid", 1))) == "model.layers.1.block.post_attention_layernorm.input"


@pytest.mark.parametrize("quantization", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_quantised_weights_give_the_same_sites(quantization, tmp_path):
    pytest.importorskip("bitsandbytes")
    import transformers

    wide = families.configured("Llama", hidden_size=128, intermediate_size=256)()  # nf4 works in blocks of 64
    wide.save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(**quantization)
    quantised = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert type(quantised.model.layers[0].self_attn.o_proj) is not nn.Linear
    assert Layout(quantised).table() == Layout(wide).table()


def test_offloaded_weights_give_the_same_sites():
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(copy.deepcopy(families.build("Qwen3")), execution_device="cpu")
    assert model.model.layers[0].mlp.down_proj.weight.device.type == "meta"
    assert Layout(model).table() == layout("Qwen3").table()
    assert Layout(model).accepts_position_ids


# -- reading what the user wrote ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (
            [
                "resid_post[1]",
                "resid_post[-2]",
                1,
                -2,
                Site("resid_post", 1),
                Site("resid_post", -2),
                "blocks.1.hook_resid_post",
                "blocks.1.hook_out",
                "blocks.-2.hook_resid_post",
                "model.layers.1",
                "model.layers.1.output",
                "model.layers.-2",
                "layers.1",
                "model.layers[1]",
                " resid_post[ 1 ] ",
                "model.layers[-2].output",
                "resid_post[1:2]",
                [1],
                ("resid_post[1]", 1),
            ],
            ["resid_post[1]"],
        ),
        (
            ["resid_pre[0]", "blocks.0.hook_resid_pre", "model.layers.0.input", "layers.0.input"],
            ["resid_pre[0]"],
        ),
        (
            ["resid_mid[2]", "blocks.2.hook_resid_mid", "model.layers.2.post_attention_layernorm.input"],
            ["resid_mid[2]"],
        ),
        (
            [
                "attn_out[0]",
                "blocks.0.hook_attn_out",
                "blocks.0.attn.hook_out",
                "model.layers.0.self_attn",
                "model.layers.0.self_attn.output",
                "model.layers.0.self_attn.o_proj",
            ],
            ["attn_out[0]"],
        ),
        (
            [
                "mlp_out[0]",
                "blocks.0.hook_mlp_out",
                "blocks.0.mlp.hook_out",
                "model.layers.0.mlp",
                "layers.0.mlp",
            ],
            ["mlp_out[0]"],
        ),
        (["z[1]", "blocks.1.attn.hook_z", "model.layers.1.self_attn.o_proj.input"], ["z[1]"]),
        (["mlp_post[1]", "blocks.1.mlp.hook_post", "model.layers.1.mlp.down_proj.input"], ["mlp_post[1]"]),
        (["final_norm", "ln_final.hook_out", "model.norm", "model.norm.output", "norm"], ["final_norm"]),
        (["logits", "unembed.hook_out", "lm_head", "lm_head.output"], ["logits"]),
        (
            [
                "resid_post[*]",
                "resid_post[:]",
                "resid_post[0:3]",
                "resid_post[2,0,1]",
                "blocks.*.hook_resid_post",
                "model.layers.*",
                "model.layers[*]",
                "model.layers[:].output",
                [2, 0, 1, 0],
                range(3),
                (-1, -2, -3),
            ],
            ["resid_post[0]", "resid_post[1]", "resid_post[2]"],
        ),
        (
            ["attn_out[1:]", "model.layers[1:].self_attn", ["attn_out[2]", "blocks.1.hook_attn_out"]],
            ["attn_out[1]", "attn_out[2]"],
        ),
    ],
)
def test_all_spellings_of_a_site_mean_the_same(spellings, expected):
    for spelling in spellings:
        assert [str(site) for site in layout("Llama").sites(spelling)] == expected, spelling


def test_sites_come_in_the_order_of_computation_without_repeats():
    found = layout("Llama").sites(["logits", 1, "z[1]", "mlp_out[0]", "resid_mid[1]", "final_norm", "model.layers.1"])
    assert [str(s) for s in found] == [
        "mlp_out[0]",
        "z[1]",
        "resid_mid[1]",
        "resid_post[1]",
        "final_norm",
        "logits",
    ]


@pytest.mark.parametrize(
    ("family", "spelling", "expected"),
    [
        ("GPT-2", "transformer.h.1.attn.c_proj", "attn_out[1]"),
        ("GPT-2", "h.1", "resid_post[1]"),
        ("GPT-2", "transformer.ln_f", "final_norm"),
        ("MPT", "blocks.1.hook_resid_post", "resid_post[1]"),
        ("MPT", "transformer.blocks.1", "resid_post[1]"),
        ("Gemma3-multimodal", "model.language_model.layers.3", "resid_post[3]"),
        ("Gemma3-multimodal", "language_model.layers.3.input", "resid_pre[3]"),
        ("Gemma2", "model.layers.1.post_feedforward_layernorm", "mlp_out[1]"),
        ("OPT", "model.decoder.layers.1.fc2", "mlp_out[1]"),
        ("GPT-NeoX", "gpt_neox.layers.1.attention.dense.input", "z[1]"),
    ],
)
def test_module_paths_of_other_families_are_read(family, spelling, expected):
    assert [str(site) for site in layout(family).sites(spelling)] == [expected]


def test_a_glob_takes_the_blocks_that_have_the_point():
    assert [str(s) for s in layout("Qwen3-MoE").sites("mlp_post[*]")] == ["mlp_post[0]"]
    assert [str(s) for s in layout("Qwen3-MoE").sites("model.layers.*.mlp.down_proj.input")] == ["mlp_post[0]"]
    with pytest.raises(SiteNotFound):
        layout("Qwen3-MoE").sites("mlp_post[0:2]")
    assert [str(s) for s in layout("Qwen3-Next").sites("z[*]")] == ["z[1]"]


@pytest.mark.parametrize(
    ("family", "spelling", "says"),
    [
        ("Llama", "resid_post[40]", ["no block 40", "LlamaForCausalLM", "3 blocks: 0-2, or -3 to -1"]),
        ("Llama", 40, ["no block 40", "LlamaForCausalLM", "0-2"]),
        ("Llama", Site("resid_post", 9), ["no block 9", "0-2"]),
        ("Llama", "model.layers.40", ["no block 40", "LlamaForCausalLM", "0-2"]),
        ("Llama", "blocks.7.hook_resid_post", ["no block 7", "0-2"]),
        ("Llama", "resid_pst[1]", ["resid_pst", "LlamaForCausalLM", "0-2", "resid_post[1]"]),
        ("Llama", "resid_post", ["needs a block index", "resid_post[0]", "0-2"]),
        ("Llama", "logits[1]", ["logits", "no block index"]),
        ("Llama", "model.layer.1", ["model.layer.1", "model.layers.1", "LlamaForCausalLM"]),
        (
            "Llama",
            "model.layers.1.attention",
            ["no module model.layers.1.attention", "model.layers.1.self_attn.output"],
        ),
        (
            "Llama",
            "model.layers.1.self_attn.q_proj",
            ["is no site", "attn_out = model.layers.1.self_attn.output"],
        ),
        ("Llama", "blocks.1.attn.hook_q", ["attn.hook_q", "attn.hook_z", "LlamaForCausalLM"]),
        ("Llama", 1.5, ["1.5 (float)", "model.layers.5"]),
        ("Llama", True, ["True (bool)"]),
        ("Llama", None, ["None (NoneType)"]),
        ("Llama", [], ["no site was named", "resid_post"]),
        ("Llama", "resid_post[2:1]", ["selects no block", "0-2"]),
        ("Llama", "resid_post[a]", ["[a]", "0-2"]),
        # A steered Gemma at the raw attention output is the classic wrong site.
        (
            "Gemma2",
            "model.layers.1.self_attn",
            ["is no site", "attn_out = model.layers.1.post_attention_layernorm.output"],
        ),
        ("GPT-NeoX", "resid_mid[1]", ["no resid_mid[1] in GPTNeoXForCausalLM", "parallel", "attn_out"]),
        ("GPT-NeoX", "resid_mid[*]", ["parallel"]),
        ("Mixtral", "mlp_post[0]", ["no mlp_post[0]", "MixtralExperts", "mlp_out"]),
        ("Qwen3-Next", "z[0]", ["no z[0]", "linear_attn.out_proj", "wide"]),
        ("Mamba", "attn_out[0]", ["no attn_out[0]", "MambaBlock", "only one module output"]),
    ],
)
def test_an_unknown_site_says_what_came_what_is_there_and_what_is_near(family, spelling, says):
    with pytest.raises(SiteNotFound) as error:
        layout(family).sites(spelling)
    for words in says:
        assert words in str(error.value)


def test_tap_refuses_a_block_out_of_range():
    with pytest.raises(SiteNotFound, match="no block 9"):
        layout("Llama").tap(Site("resid_post", 9))


# -- models that are refused ----------------------------------------------------------------------------


def _small_bert(name: str):
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return getattr(transformers, name)(config)


def _small_t5():
    import transformers

    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _small_bert("BertForMaskedLM"), "BertForMaskedLM cannot generate"),
        (lambda: _small_bert("BertModel"), "BertModel cannot generate"),
        (_small_t5, "encoder-decoder"),
        (lambda: nn.Linear(2, 2), "Linear has no config"),
        (lambda: families.build("Llama").model, "AutoModelForCausalLM"),
    ],
)
def test_models_without_a_causal_decoder_are_refused(make, says):
    with pytest.raises(UnsupportedArchitecture, match=says):
        Layout(make())


def test_a_model_without_its_blocks_says_what_was_looked_for():
    model = copy.deepcopy(families.build("Llama"))
    model.model.layers = model.model.layers[:2]
    with pytest.raises(UnsupportedArchitecture, match=r"one ModuleList of 3 blocks .* found layers \(2\)"):
        Layout(model)


def test_a_block_used_twice_is_refused():
    model = copy.deepcopy(families.build("Llama"))
    model.model.layers[2] = model.model.layers[0]
    with pytest.raises(UnsupportedArchitecture, match="several times"):
        Layout(model)


def test_a_failing_trace_is_reported_and_leaves_blocks_usable():
    model = copy.deepcopy(families.build("Llama"))
    where = Layout(model)
    model.model.norm.forward = lambda x: x / "no"
    with pytest.raises(UnsupportedArchitecture, match="over 5 tokens"):
        where.sites("attn_out[0]")
    assert where.available() == ["resid_pre", "resid_post", "logits"]
    assert [str(s) for s in where.sites("resid_post[*]")] == [
        "resid_post[0]",
        "resid_post[1]",
        "resid_post[2]",
    ]
    assert count_hooks(model) == 0


def test_compiled_models_are_refused():
    model = copy.deepcopy(families.build("Llama"))
    with pytest.raises(CompiledModel):
        Layout(torch.compile(model, backend="eager"))
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(CompiledModel):
        Layout(model).sites("attn_out[0]")
