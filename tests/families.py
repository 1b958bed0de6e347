"""Tiny random models of the families that latentlens is tested on, each built from its transformers config.

`build("Llama")` gives one model per process: tests must not change it (use `copy.deepcopy`). Every weight is
random, norms included, so that a norm is never the identity and no contribution is lost in rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

VOCAB = 120
WIDTH = 32
# Keywords that most configs share; grouped-query attention (4 query heads, 2 key-value heads) of width 8.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}


def _model(name: str, config: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise * 1.2 * parameter.shape[-1] ** -0.5)
    return model.float().eval()


def configured(prefix: str, *drop: str, **changes: Any) -> Callable[[], Any]:
    """A builder for a family whose config takes the shared keywords."""

    def make() -> Any:
        import transformers

        keywords = {key: value for key, value in (_COMMON | changes).items() if key not in drop}
        suffix = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
        return _model(prefix + suffix, getattr(transformers, f"{prefix}Config")(**keywords))

    return make


def _multimodal_gemma3() -> Any:
    import transformers

    text = _COMMON | {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    # As many vision layers as text layers, so that "the first list of the right length" would be the wrong one.
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text | {"num_hidden_layers": 4},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=VOCAB - 1,
        boi_token_index=VOCAB - 2,
        eoi_token_index=VOCAB - 3,
    )
    return _model("Gemma3ForConditionalGeneration", config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "Llama": configured("Llama"),
    "Mistral": configured("Mistral", sliding_window=8),
    "Qwen2": configured("Qwen2"),
    "Qwen3": configured("Qwen3", head_dim=16),
    "Qwen3-MoE": configured("Qwen3Moe", **_EXPERTS, num_experts=4, head_dim=8, mlp_only_layers=[0]),
    "Mixtral": configured("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "Gemma2": configured("Gemma2", head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "Gemma3": lambda: _model("Gemma3ForCausalLM", _gemma3_text()),
    "Gemma3-multimodal": _multimodal_gemma3,
    "Gemma4": lambda: _gemma4(hidden_size_per_layer_input=0),
    "Gemma4-per-layer-inputs": lambda: _gemma4(hidden_size_per_layer_input=8),
    "Phi-3": configured("Phi3"),
    "Phi": configured("Phi"),
    "OLMo": configured("Olmo"),
    "OLMo2": configured("Olmo2"),
    "gpt-oss": configured("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "GPT-2": configured("GPT2", "num_key_value_heads", "intermediate_size", n_inner=48),
    "GPT-NeoX": configured("GPTNeoX", "num_key_value_heads"),
    "GPT-NeoX-sequential": configured("GPTNeoX", "num_key_value_heads", use_parallel_residual=False),
    "GPT-J": configured("GPTJ", "num_key_value_heads", "intermediate_size", n_inner=48, rotary_dim=4),
    "OPT": configured("OPT", "num_key_value_heads", "intermediate_size", ffn_dim=48, word_embed_proj_dim=WIDTH),
    "BLOOM": configured("Bloom", "num_key_value_heads", "intermediate_size", "max_position_embeddings"),
    "Falcon": configured(
        "Falcon", "num_key_value_heads", "intermediate_size", new_decoder_architecture=True, num_kv_heads=2
    ),
    "Falcon-old": configured("Falcon", "num_key_value_heads", "intermediate_size", multi_query=True),
    "Falcon-sequential": configured(
        "Falcon",
        "num_key_value_heads",
        "intermediate_size",
        multi_query=False,
        parallel_attn=False,
        alibi=True,
    ),
    "StableLM": configured("StableLm"),
    "StableLM-parallel": configured("StableLm", use_parallel_residual=True),
    "Granite": configured("Granite", residual_multiplier=0.22, embedding_multiplier=3.0, logits_scaling=2.0),
    "SmolLM3": configured("SmolLM3", no_rope_layers=[1, 1, 0]),
    "Cohere": configured("Cohere", use_qk_norm=True),
    "Cohere2": configured("Cohere2", sliding_window=8),
    "GLM4": configured("Glm4", head_dim=8),
    "StarCoder2": configured("Starcoder2"),
    "MPT": lambda: _model("MptForCausalLM", _mpt()),
    "Mamba": configured("Mamba", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", state_size=4),
    "GPT-Neo": lambda: _model("GPTNeoForCausalLM", _gpt_neo()),
    "GPT-BigCode": configured("GPTBigCode", "num_key_value_heads", "intermediate_size", n_inner=48, multi_query=True),
    "Nemotron": configured("Nemotron", head_dim=8),
    "OLMoE": configured("Olmoe", num_experts=4, num_experts_per_tok=2),
    "DeepSeek-V3": configured(
        "DeepseekV3",
        **_EXPERTS,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        first_k_dense_replace=1,
    ),
    "Qwen3-Next": configured(
        "Qwen3Next",
        **_EXPERTS,
        num_experts=4,
        shared_expert_intermediate_size=24,
        head_dim=8,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
}


def _gemma3_text() -> Any:
    import transformers

    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return transformers.Gemma3TextConfig(**_COMMON, head_dim=8, sliding_window=8, layer_types=layers)


def _gemma4(**changes: Any) -> Any:
    """Blocks that differ: heads of the last are twice as wide. Every block multiplies its output by a number."""
    import transformers

    model = _model(
        "Gemma4ForCausalLM",
        transformers.Gemma4TextConfig(
            **_COMMON,
            head_dim=8,
            global_head_dim=16,
            sliding_window=8,
            vocab_size_per_layer_input=VOCAB,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            **changes,
        ),
    )
    for block in model.model.layers:
        block.layer_scalar.fill_(0.7)
    return model


def _mpt() -> Any:
    import transformers

    return transformers.MptConfig(vocab_size=VOCAB, d_model=WIDTH, n_heads=4, n_layers=3, max_seq_len=64)


def _gpt_neo() -> Any:
    import transformers

    return transformers.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        window_size=8,
        bos_token_id=1,
        eos_token_id=2,
    )


@functools.cache
def build(family: str) -> Any:
    """The model of a family, in float32 and evaluation mode; one object per process."""
    return FAMILIES[family]()
