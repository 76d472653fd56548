"""Reading the configs of targets with experts: what layers they have, and every refusal by name."""

from __future__ import annotations

from typing import Any

import pytest

from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.base import MAX_EXPERTS_IN_ALL, MAX_LAYERS, TargetConfig
from trtllm_dflash.models.moe import MoEConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.rope import RopeConfig

# The published configs, shortened to what describes the model.
GPT_OSS_120B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
QWEN3_CODER_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5472,
    "max_position_embeddings": 262144,
    "max_window_layers": 28,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "shared_expert_intermediate_size": 0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def read(base: dict[str, Any], **changes: Any) -> TargetConfig:
    return read_target_config(base | changes, None, "target /m")


def test_gpt_oss() -> None:
    config = read(GPT_OSS_120B)
    assert (config.model_type, config.qk_norm, config.attention_bias, config.sinks) == (
        "gpt_oss",
        False,
        True,
        True,
    )
    assert config.windows == (128, 0) * 18
    assert config.moe == MoEConfig(
        128, 4, 2880, normalize=True, fused=True, limit=7.0, alpha=1.702, shift=1.0
    )
    assert config.rope == RopeConfig(
        64, 150000.0, "yarn", factor=32.0, original_max_position_embeddings=4096, truncate=False
    )


def test_qwen3_moe() -> None:
    config = read(QWEN3_CODER_30B)
    assert (config.model_type, config.qk_norm, config.attention_bias, config.sinks) == (
        "qwen3_moe",
        True,
        False,
        False,
    )
    assert config.windows == (0,) * 48
    assert config.moe == MoEConfig(128, 8, 768, normalize=True, fused=False)
    moe = read(QWEN3_CODER_30B, norm_topk_prob=False).moe
    assert moe is not None
    assert not moe.normalize


def test_a_dense_target_has_neither() -> None:
    dense = {key: value for key, value in QWEN3_CODER_30B.items() if "experts" not in key}
    config = read(dense, architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    assert (config.moe, config.sinks, config.windows) == (None, False, (0,) * 48)


def test_what_gpt_oss_fills_in() -> None:
    """Hugging Face's own defaults, and its two names for one number."""
    missing = ("attention_bias", "swiglu_limit", "num_experts_per_tok", "layer_types")
    assert read(
        {key: value for key, value in GPT_OSS_120B.items() if key not in missing}
    ) == read(GPT_OSS_120B)
    moe = read(GPT_OSS_120B, swiglu_alpha=1.5, swiglu_limit=3).moe
    assert moe is not None
    assert (moe.alpha, moe.limit) == (1.5, 3.0)


@pytest.mark.parametrize("base", [GPT_OSS_120B, QWEN3_CODER_30B])
def test_reads_what_transformers_reads(base: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoConfig.for_model(**base), read(base)
    assert ours.moe is not None
    assert ours.moe.num_experts == theirs.num_local_experts
    assert ours.moe.top_k == theirs.num_experts_per_tok
    if base is GPT_OSS_120B:
        assert (ours.moe.limit, ours.moe.alpha) == (theirs.swiglu_limit, theirs.swiglu_alpha)
        assert ours.windows[:2] == (theirs.sliding_window, 0)
        assert ours.moe.intermediate_size == theirs.intermediate_size
    else:
        assert ours.moe.normalize == theirs.norm_topk_prob
        assert ours.moe.intermediate_size == theirs.moe_intermediate_size


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (
            GPT_OSS_120B,
            {"layer_types": ["full_attention"]},
            "layer_types has 1 entries, expected num_hidden_layers",
        ),
        (
            GPT_OSS_120B,
            {"layer_types": ["chunked_attention"] * 36},
            "is .chunked_attention., expected full_attention or sliding_attention in gpt_oss",
        ),
        (GPT_OSS_120B, {"sliding_window": None}, "the key sliding_window is missing"),
        (GPT_OSS_120B, {"sliding_window": 0}, "sliding_window is 0, expected at least 1"),
        (GPT_OSS_120B, {"swiglu_limit": 0.0}, "swiglu_limit is 0.0, expected more than 0"),
        (
            GPT_OSS_120B,
            {"num_local_experts": 1},
            "num_local_experts is 1, expected at least 2 and at most 1024",
        ),
        (
            GPT_OSS_120B,
            {"num_local_experts": 1025},
            "num_local_experts is 1025, expected at least 2 and at most 1024",
        ),
        (
            GPT_OSS_120B,
            {"num_experts_per_tok": 5},
            "num_experts_per_tok is 5 but experts_per_token is 4",
        ),
        (
            GPT_OSS_120B,
            {"num_experts_per_tok": 129, "experts_per_token": None},
            "num_experts_per_tok is 129, exp",
        ),
        (GPT_OSS_120B, {"model_type": "qwen3_moe"}, "GptOssForCausalLM goes with 'gpt_oss'"),
        (
            QWEN3_CODER_30B,
            {"decoder_sparse_step": 2},
            "decoder_sparse_step is 2, and a layer without experts is not",
        ),
        (
            QWEN3_CODER_30B,
            {"mlp_only_layers": [0]},
            r"mlp_only_layers is \[0\], and a layer without experts is not",
        ),
        (
            QWEN3_CODER_30B,
            {"shared_expert_intermediate_size": 64},
            "an expert that every token uses is not built",
        ),
        (QWEN3_CODER_30B, {"norm_topk_prob": None}, "the key norm_topk_prob is missing"),
        (
            QWEN3_CODER_30B,
            {"moe_intermediate_size": None},
            "the key moe_intermediate_size is missing",
        ),
        (
            QWEN3_CODER_30B,
            {"layer_types": ["sliding_attention"] * 48},
            r"layer_types\[0\] is .sliding_attention., ",
        ),
        (
            QWEN3_CODER_30B,
            {"use_sliding_window": True},
            "use_sliding_window is true, and only false is supported",
        ),
    ],
)
def test_refusals(base: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"target /m: .*{words}"):
        read(base, **changes)


def test_a_table_of_names_cannot_exhaust_memory() -> None:
    """Tensors of each expert of each layer: both numbers are within their own bounds."""
    assert 1024 * MAX_LAYERS > MAX_EXPERTS_IN_ALL
    with pytest.raises(
        ConfigError,
        match="num_experts is 1024 in each of 1024 layers, expected at most 32768 in all",
    ):
        read(QWEN3_CODER_30B, num_experts=1024, num_hidden_layers=MAX_LAYERS)
