"""Reading a drafter's config.json: masks, taps, both key locations, and every refusal by name."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.draft_masks import DraftLayerConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.tensor_specs import expand_specs

# z-lab/Qwen3-4B-DFlash-b16 as published: block size at the top level, full attention.
QWEN3_4B: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "attention_bias": False,
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "block_size": 16,
    "bos_token_id": 151643,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
    "dtype": "bfloat16",
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "layer_types": ["full_attention"] * 5,
    "max_position_embeddings": 40960,
    "max_window_layers": 5,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 5,
    "num_key_value_heads": 8,
    "num_target_layers": 36,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# The layout of z-lab/Qwen3.5 drafters: everything in dflash_config, sliding layers and one full
# one, K != L.
QWEN35: dict[str, Any] = QWEN3_4B | {
    "block_size": None,
    "dflash_config": {
        "block_size": 16,
        "mask_token_id": 151669,
        "target_layer_ids": [1, 5, 9, 13, 17, 21, 25, 29],
    },
    "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000},
    "rope_theta": None,
    "sliding_window": 4096,
    "use_sliding_window": True,
}
SLIDING, FULL, CAUSAL_FULL = (
    DraftLayerConfig(True, 4096),
    DraftLayerConfig(False, 0),
    DraftLayerConfig(True, 0),
)


def read(base: dict[str, Any], **changes: Any) -> DrafterConfig:
    """Read a config with changes; a key "dflash_config.x" is written as dflash__x."""
    inner = {
        key.removeprefix("dflash__"): value
        for key, value in changes.items()
        if key.startswith("dflash__")
    }
    outer = {key: value for key, value in changes.items() if not key.startswith("dflash__")}
    return DrafterConfig.from_hf(
        base | {"dflash_config": base["dflash_config"] | inner} | outer, "drafter /d"
    )


def test_published_full_attention() -> None:
    config = read(QWEN3_4B)
    assert (config.block_size, config.mask_token_id, config.num_target_layers) == (
        16,
        151669,
        36,
    )
    assert config.target_layer_ids == (1, 9, 17, 25, 33)
    assert config.layers == (FULL,) * 5


def test_published_for_gpt_oss() -> None:
    """z-lab/gpt-oss-120b-DFlash: more layers than taps, biases, heads of 64, gpt-oss's own yarn."""
    yarn = {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    }
    sizes = {
        "hidden_size": 2880,
        "intermediate_size": 7680,
        "num_hidden_layers": 8,
        "num_attention_heads": 64,
    }
    config = read(
        QWEN3_4B,
        **sizes,
        head_dim=64,
        attention_bias=True,
        layer_types=["full_attention"] * 8,
        block_size=10,
        vocab_size=201088,
        rope_theta=150000,
        rope_scaling=yarn,
        dflash__mask_token_id=200000,
    )
    assert (config.attention_bias, config.num_layers, config.num_taps, config.block_size) == (
        True,
        8,
        5,
        10,
    )
    assert (config.rope.rope_type, config.rope.theta, config.rope.truncate) == (
        "yarn",
        150000.0,
        False,
    )
    assert config.layers == (FULL,) * 8


def test_published_mixed_with_more_taps_than_layers() -> None:
    config = read(QWEN35)
    assert config.num_taps == 8
    assert config.num_layers == 5
    assert config.rope.theta == 1e7
    assert config.layers == (SLIDING,) * 4 + (FULL,)


def test_gpt_oss_style_bias_and_yarn() -> None:
    yarn = {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    }
    config = read(
        QWEN3_4B, attention_bias=True, rope_scaling=yarn | {"beta_fast": 32.0, "beta_slow": 1.0}
    )
    assert config.attention_bias
    assert (config.rope.rope_type, config.rope.factor, config.rope.truncate) == (
        "yarn",
        32.0,
        False,
    )


def test_both_places_of_block_size_and_mask() -> None:
    everything_on_top = {"block_size": 8, "mask_token_id": 5, "target_layer_ids": [3, 1]}
    config = DrafterConfig.from_hf(
        QWEN3_4B | everything_on_top | {"dflash_config": None}, "drafter /d"
    )
    assert (config.block_size, config.mask_token_id, config.target_layer_ids) == (8, 5, (3, 1))
    assert read(QWEN3_4B, dflash__block_size=16).block_size == 16
    with pytest.raises(
        ConfigError,
        match=r"dflash_config.block_size is 8 but block_size is 16. Make them agree",
    ):
        read(QWEN3_4B, dflash__block_size=8)


def test_torch_dtype_none_as_a_string_is_tolerated() -> None:
    assert read(QWEN3_4B, torch_dtype="None").num_layers == 5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (SLIDING, FULL)),
        ({"is_causal": True}, (SLIDING, CAUSAL_FULL)),
        ({"is_causal": False}, (DraftLayerConfig(False, 4096), FULL)),
        ({"dflash__causal": True}, (SLIDING, CAUSAL_FULL)),
        ({"dflash__causal": False}, (DraftLayerConfig(False, 4096), FULL)),
        ({"is_causal": False, "dflash__causal": False}, (DraftLayerConfig(False, 4096), FULL)),
        ({"dflash__use_swa": True, "dflash__swa_window_size": 4096}, (SLIDING, FULL)),
        (
            {
                "sliding_window": None,
                "use_sliding_window": False,
                "dflash__swa_window_size": 4096,
            },
            (SLIDING, FULL),
        ),
        ({"use_sliding_window": None}, (SLIDING, FULL)),
    ],
)
def test_masks_of_sliding_and_full_layers(
    changes: dict[str, Any], expected: tuple[DraftLayerConfig, ...]
) -> None:
    layers = read(QWEN35, **changes).layers
    assert (layers[0], layers[-1]) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer_types": None}, FULL),
        ({"dflash__causal": True}, CAUSAL_FULL),
        (
            {"dflash__causal": True, "dflash__use_swa": True, "dflash__swa_window_size": 64},
            DraftLayerConfig(True, 64),
        ),
        (
            {"is_causal": False, "use_swa": True, "swa_window_size": 64},
            DraftLayerConfig(False, 64),
        ),
        ({"dflash__use_swa": False, "dflash__swa_window_size": 64}, FULL),
        (
            {
                "layer_types": None,
                "dflash__causal": True,
                "use_swa": True,
                "swa_window_size": 9,
            },
            DraftLayerConfig(True, 9),
        ),
    ],
)
def test_masks_of_full_layers(changes: dict[str, Any], expected: DraftLayerConfig) -> None:
    assert read(QWEN3_4B, **changes).layers == (expected,) * 5


def test_disagreeing_causal_keys_warn_and_the_top_level_wins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert read(QWEN3_4B, is_causal=False, dflash__causal=True).layers[0] == FULL
    assert (
        "is_causal is False but dflash_config.causal is True; is_causal is used" in caplog.text
    )


def test_agreeing_causal_keys_do_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(QWEN3_4B, is_causal=True, dflash__causal=True)
    assert not caplog.text


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (
            QWEN3_4B,
            {"dflash__mask_token_id": None},
            "the key dflash_config.mask_token_id or mask_token_id is missing. It has no",
        ),
        (
            QWEN3_4B,
            {"dflash__target_layer_ids": None},
            "the key dflash_config.target_layer_ids or target_layer_ids is missing",
        ),
        (
            QWEN3_4B,
            {"block_size": None},
            "the key dflash_config.block_size or block_size is missing",
        ),
        (QWEN3_4B, {"block_size": 1}, "block_size is 1, expected at least 2 and at most 64"),
        (QWEN3_4B, {"block_size": 65}, "block_size is 65, expected at least 2 and at most 64"),
        (
            QWEN3_4B,
            {"dflash__mask_token_id": 151936},
            "dflash_config.mask_token_id is 151936, .*at most 151935",
        ),
        (
            QWEN3_4B,
            {"dflash__target_layer_ids": []},
            "dflash_config.target_layer_ids is empty. List the target layers",
        ),
        (
            QWEN3_4B,
            {"dflash__target_layer_ids": [1, 9, 1]},
            r"target_layer_ids is \[1, 9, 1\], which names a layer twice",
        ),
        (
            QWEN3_4B,
            {"dflash__target_layer_ids": [1, 36]},
            r"contains 36, expected 0 \(the first layer\) to 35",
        ),
        (
            QWEN3_4B,
            {"dflash__target_layer_ids": [-1, 3]},
            r"contains -1, expected 0 \(the first layer\) to 35",
        ),
        (
            QWEN3_4B,
            {"dflash__target_layer_ids": [1.5]},
            r"target_layer_ids\[0\] is 1.5, expected an integer",
        ),
        (QWEN3_4B, {"dflash_config": [1]}, r"dflash_config is \[1\], expected an object"),
        (QWEN3_4B, {"architectures": None}, "the key architectures is missing"),
        (
            QWEN3_4B,
            {"architectures": ["Qwen3ForCausalLM"]},
            r'only \["DFlashDraftModel"\] or .* is supported',
        ),
        (
            QWEN3_4B,
            {"model_type": "llama"},
            'model_type is "llama", and only "qwen3" is supported: a DFlash drafter',
        ),
        (QWEN3_4B, {"hidden_act": "relu"}, 'hidden_act is "relu", and only "silu"'),
        (
            QWEN3_4B,
            {"mlp_bias": True},
            "mlp_bias is true, .*a DFlash drafter's MLP has no bias",
        ),
        (
            QWEN3_4B,
            {"layer_types": ["full_attention"]},
            "layer_types has 1 entries, expected num_hidden_layers = 5",
        ),
        (
            QWEN3_4B,
            {"layer_types": ["linear"] * 5},
            r'layer_types\[0\] is "linear", expected full_attention or sliding',
        ),
        (
            QWEN3_4B,
            {"layer_types": None, "use_sliding_window": True},
            "use_sliding_window is true but layer_types is missing",
        ),
        (
            QWEN3_4B,
            {"use_swa": True, "swa_window_size": 9},
            "use_swa is true for full_attention layers, but no key says",
        ),
        (QWEN3_4B, {"is_causal": 1}, "is_causal is 1, expected true or false"),
        (QWEN35, {"sliding_window": None}, "the key .*sliding_window is missing"),
        (QWEN35, {"sliding_window": 0}, "sliding_window is 0, expected at least 1"),
        (
            QWEN35,
            {"use_sliding_window": False},
            "use_sliding_window is false beside sliding_attention layers; engines differ",
        ),
        (
            QWEN35,
            {"dflash__swa_window_size": 64},
            "swa_window_size is 64 but sliding_window is 4096. Make them agree",
        ),
        (QWEN35, {"head_dim": None}, "the key head_dim is missing"),
    ],
)
def test_refusals(base: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"drafter /d: .*{words}"):
        read(base, **changes)


@pytest.mark.parametrize("key", ["attention_sink_bias", "dflash__attention_sink"])
def test_sinks_are_a_tensor_of_each_layer(key: str) -> None:
    config = read(QWEN3_4B, **{key: True})
    names = expand_specs(config.tensors.used, config)
    assert [name for name in names if "sink" in name] == [
        f"layers.{index}.self_attn.attention_sink_bias" for index in range(5)
    ]


@pytest.mark.parametrize("key", ["input_embedding_scale", "dflash__input_embedding_scale"])
def test_embeddings_may_be_scaled(key: str) -> None:
    assert read(QWEN3_4B, **{key: 73}).embedding_scale == 73.0
    for scale in (0, -2.5):
        with pytest.raises(ConfigError, match=r"input_embedding_scale is .* more than 0"):
            read(QWEN3_4B, **{key: scale})


@pytest.mark.parametrize("key", ["sample_from_anchor", "dflash__shift_label"])
def test_rows_that_predict_the_next_token(key: str) -> None:
    """The key counts rows, each of which drafts; our block size counts the anchor too."""
    config = read(QWEN3_4B, **{key: True})
    assert (config.block_size, config.rows_of(17), config.rows_of(5)) == (17, 16, 4)
    assert read(QWEN3_4B, **{key: True}, block_size=1).block_size == 2
    with pytest.raises(ConfigError, match=r"block_size is 64, expected .* at most 63"):
        read(QWEN3_4B, **{key: True}, block_size=64)
    with pytest.raises(ConfigError, match="Make them agree or drop one"):
        read(QWEN3_4B, sample_from_anchor=True, dflash__shift_label=False)
