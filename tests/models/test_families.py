"""What each dense family reads from config.json, beside Hugging Face; windows by layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.tiny_models import DENSE_FAMILIES, TARGET
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.registry import TARGET_FAMILIES, read_target_config

LAYERS = TARGET["layers"]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 32,
    "num_hidden_layers": LAYERS,
    "rms_norm_eps": 1e-6,
    "vocab_size": 97,
}
QWEN2 = SIZES | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MISTRAL = SIZES | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def read(base: dict[str, Any], **changes: Any) -> TargetConfig:
    """Read a config.json."""
    return read_target_config(base | changes, None, "target /m")


def their_windows(config: Any) -> list[int]:
    """Return the window of each layer as Hugging Face's model applies it."""
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * LAYERS
    window = getattr(config, "sliding_window", None) or 0
    return [window if layer_type == "sliding_attention" else 0 for layer_type in types]


@pytest.mark.parametrize("model_type", DENSE_FAMILIES)
def test_a_family_reads_what_transformers_reads(
    model_type: str, make_target: Callable[..., Path]
) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_target(model_type)
    theirs = transformers.AutoConfig.from_pretrained(directory)
    config_json = json.loads((directory / "config.json").read_text())
    ours = read_target_config(config_json, None, "tiny")
    assert ours.model_type == model_type == TARGET_FAMILIES[theirs.architectures[0]].model_type
    assert list(ours.windows) == their_windows(theirs)
    assert (ours.num_layers, ours.num_kv_heads) == (LAYERS, theirs.num_key_value_heads)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("base", [QWEN2, MISTRAL])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": None},
        {"sliding_window": 7},
        {"use_sliding_window": False, "sliding_window": 7},
        {"use_sliding_window": True},
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3},
        {"use_sliding_window": None, "sliding_window": 7, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"num_key_value_heads": 16},
        {"head_dim": 4, "rope_theta": 5000.0},
    ],
)
def test_defaults_are_those_of_the_config_class(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    """A missing key has the class's default, a null has not."""
    transformers = pytest.importorskip("transformers")
    config = base | changes
    theirs_read = {key: value for key, value in config.items() if key != "use_sliding_window"}
    switch = config.get("use_sliding_window", False) or False  # their class takes no null
    theirs = transformers.AutoConfig.for_model(**theirs_read, use_sliding_window=switch)
    ours = read(config)
    assert list(ours.windows) == their_windows(theirs)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 64 // 32)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


def test_null_kv_heads_are_one_per_query_head() -> None:
    assert read(QWEN2, num_key_value_heads=None).num_kv_heads == 32


def test_layer_types_of_qwen2_decide_which_layers_slide() -> None:
    types = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    config = read(QWEN2, use_sliding_window=True, sliding_window=9, layer_types=types)
    assert config.windows == (0, 9, 0, 9, 0)


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (
            QWEN2,
            {"layer_types": ["sliding_attention"] * LAYERS},
            "layer_types has sliding_attention, but use_sliding_window gives no window",
        ),
        (
            QWEN2,
            {"layer_types": ["linear_attention"] * LAYERS},
            "is .linear_attention., expected full_attention or sliding_attention in qwen2",
        ),
        (
            QWEN2,
            {"use_sliding_window": True, "max_window_layers": None},
            "the key max_window_layers is missing",
        ),
        (QWEN2, {"use_sliding_window": 1}, "use_sliding_window is 1, expected true or false"),
        (QWEN2, {"num_attention_heads": 16}, "num_key_value_heads is 32, and does not divide"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window is 0, expected at least 1"),
        (
            MISTRAL,
            {"layer_types": ["full_attention"] * LAYERS},
            r"layer_types\[0\] is .full_attention., expected sliding_attention in mistral",
        ),
        (
            MISTRAL,
            {"layer_types": ["sliding_attention"] * LAYERS, "sliding_window": None},
            "expected full_attention in mistral",
        ),
        (MISTRAL, {"model_type": "ministral"}, "MistralForCausalLM goes with 'mistral'"),
    ],
)
def test_a_family_refuses_what_is_not_built(
    base: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"target /m: .*{words}"):
        read(base, **changes)


def test_biases_belong_to_the_family(make_target: Callable[..., Path], tmp_path: Path) -> None:
    """Qwen2 has them on q, k and v, Mistral none, whatever `attention_bias` says."""
    biased = {
        name for name in load_target(make_target("qwen2")).tensors if name.endswith("bias")
    }
    parts = ("q_proj", "k_proj", "v_proj")
    attention = [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]
    assert biased == {f"{name}.{part}.bias" for name in attention for part in parts}
    assert load_target(make_target("mistral", config={"attention_bias": True})).tensors
    with pytest.raises(
        CheckpointError, match=r"unexpected: model.layers.0.self_attn.o_proj.bias"
    ):
        load_target(make_target("qwen2", attention_bias=True))
