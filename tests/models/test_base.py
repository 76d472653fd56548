"""Reading a target's config.json: the fields, Hugging Face's defaults, and every refusal by
name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.rope import RopeConfig

# The published configs, shortened to what describes the model.
LLAMA31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN3_4B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def read(
    base: dict[str, Any], generation: dict[str, Any] | None = None, **changes: Any
) -> TargetConfig:
    return read_target_config(base | changes, generation, "target /m")


def test_llama() -> None:
    config = read(LLAMA31_8B)
    assert (config.model_type, config.qk_norm, config.head_dim) == ("llama", False, 128)
    assert (config.num_layers, config.num_q_heads, config.num_kv_heads) == (32, 32, 8)
    assert config.rope == RopeConfig(
        head_dim=128,
        theta=500000.0,
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.bos_token_id == 128000


def test_qwen3() -> None:
    config = read(QWEN3_4B)
    assert (config.model_type, config.qk_norm, config.head_dim) == ("qwen3", True, 128)
    assert config.tie_word_embeddings
    assert not config.mlp_bias
    assert config.rope == RopeConfig(head_dim=128, theta=1e6)
    assert config.eos_token_ids == (151645,)


def test_generation_config_decides_the_stop_tokens() -> None:
    assert read(QWEN3_4B, {"eos_token_id": [151645, 151643]}).eos_token_ids == (151645, 151643)
    assert read(QWEN3_4B, {"temperature": 0.6}).eos_token_ids == (151645,)
    assert read(QWEN3_4B, eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize("stated", [{}, {"eos_token_id": None}, {"eos_token_id": 5}])
def test_stop_tokens_of_old_llama_configs(stated: dict[str, Any]) -> None:
    old = {key: value for key, value in LLAMA31_8B.items() if key != "eos_token_id"}
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaConfig(**old, **{"eos_token_id": 2} | stated).eos_token_id
    assert read(old | stated).eos_token_ids == (() if theirs is None else (theirs,))


def test_old_llama_config_uses_hugging_face_defaults() -> None:
    old = {
        key: LLAMA31_8B[key]
        for key in LLAMA31_8B
        if key not in ("num_key_value_heads", "rope_theta", "rope_scaling")
    }
    config = read(old)
    assert config.num_kv_heads == 32
    assert config.rope == RopeConfig(head_dim=128, theta=10000.0)


@pytest.mark.parametrize("base", [LLAMA31_8B, QWEN3_4B])
def test_reads_what_transformers_reads(base: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(**base)
    ours = read(base)
    for mine, name in {
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_q_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "rms_norm_eps": "rms_norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
        "attention_bias": "attention_bias",
    }.items():
        assert getattr(ours, mine) == getattr(theirs, name), name


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (
            LLAMA31_8B,
            {"architectures": ["FalconForCausalLM"]},
            r'architectures is \["FalconForCausalLM"\], and supported',
        ),
        (
            LLAMA31_8B,
            {"build_config": {"arch": "cpu"}},
            "build_config is of an engine, not of a model",
        ),
        (
            LLAMA31_8B,
            {"architectures": ["MixtralForCausalLM"]},
            "supported targets are GptOssForCausalLM, LlamaForCausalLM, .*Qwen3MoeForCausalLM",
        ),
        (LLAMA31_8B, {"architectures": None}, "the key architectures is missing"),
        (
            LLAMA31_8B,
            {"model_type": "mistral"},
            "model_type is .mistral., but LlamaForCausalLM goes with 'llama'",
        ),
        (
            LLAMA31_8B,
            {"hidden_act": "gelu"},
            'hidden_act is "gelu", and only "silu" or "swish" is supported: the MLP is built as',
        ),
        (LLAMA31_8B, {"is_causal": False}, "is_causal is false, and only true is supported"),
        (
            LLAMA31_8B,
            {"is_causal": None},
            "is_causal is null, which Hugging Face reads as false",
        ),
        (LLAMA31_8B, {"is_encoder_decoder": True}, "is_encoder_decoder is true, .*decoders"),
        (LLAMA31_8B, {"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config is"),
        (LLAMA31_8B, {"pretraining_tp": 2}, "pretraining_tp is 2, and only 1 is supported"),
        (
            LLAMA31_8B,
            {"num_local_experts": 8},
            "num_local_experts is 8, .*: this architecture has no experts",
        ),
        (
            LLAMA31_8B,
            {"num_experts": 128},
            "num_experts is 128, .*: this architecture has no experts",
        ),
        (
            LLAMA31_8B,
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping is 30.0, .*the logits are not capped",
        ),
        (
            LLAMA31_8B,
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping is 50.0, .*scores are not capped",
        ),
        (
            LLAMA31_8B,
            {"num_key_value_heads": 7},
            "num_key_value_heads is 7, and does not divide num_attention_heads = 32",
        ),
        (
            LLAMA31_8B,
            {"num_attention_heads": 33},
            "head_dim is missing, and hidden_size = 4096 is no multiple of 33 heads",
        ),
        (LLAMA31_8B, {"head_dim": 127}, "head_dim is 127, expected an even number"),
        (LLAMA31_8B, {"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0, expected at least 0.0"),
        (LLAMA31_8B, {"eos_token_id": -1}, "eos_token_id contains -1, expected token ids"),
        (
            QWEN3_4B,
            {"use_sliding_window": True},
            (
                "use_sliding_window is true, .*: which layers slide is in layer_types, and only"
                " gpt-oss has"
            ),
        ),
        (
            QWEN3_4B,
            {"layer_types": ["full_attention", "sliding_attention"]},
            r"layer_types\[1\] is .sliding_attention.",
        ),
        (QWEN3_4B, {"head_dim": None}, "the key head_dim is missing"),
        (QWEN3_4B, {"rope_theta": None}, "the key rope_theta is missing"),
        (
            QWEN3_4B,
            {"vocab_size": 0},
            "vocab_size is 0, expected at least 2 and at most 16777216",
        ),
    ],
)
def test_refusals(base: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"target /m: .*{words}"):
        read(base, **changes)


def test_error_in_generation_config_names_that_file() -> None:
    with pytest.raises(
        ConfigError,
        match=r"target /m \(generation_config.json\): eos_token_id is \"x\", expected an integer",
    ):
        read(QWEN3_4B, {"eos_token_id": "x"})


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_tiny_targets(make_target: Any, model_type: str) -> None:
    directory: Path = make_target(model_type, rope_style="new", rope="yarn")
    config = read_target_config(
        json.loads((directory / "config.json").read_text()), None, "tiny"
    )
    sizes = {
        config.hidden_size,
        config.num_q_heads * 16,
        config.num_kv_heads * 16,
        config.intermediate_size,
    }
    assert (
        len(sizes | {config.vocab_size, config.head_dim, config.num_layers, config.num_q_heads})
        == 8
    )
