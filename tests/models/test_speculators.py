"""The layout of `speculators` becomes the published one; what is wrong is refused by its key."""

from __future__ import annotations

from typing import Any

import pytest

from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.drafter import DrafterConfig, DraftLayerConfig
from trtllm_dflash.models.speculators import Verifier, read_verifier

LAYERS = {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "sliding_window": 2048,
    "use_sliding_window": True,
    "vocab_size": 151936,
}
VERIFIER = {"architectures": ["Qwen3ForCausalLM"], "name_or_path": "Qwen/Qwen3-8B"}
DRAFTER = {
    "architectures": ["DFlashDraftModel"],
    "aux_hidden_state_layer_ids": [2, 18, 34],
    "block_size": 8,
    "draft_vocab_size": 32000,
    "mask_token_id": 151669,
    "sample_from_anchor": False,
    "sliding_window_non_causal": False,
    "speculators_config": {"algorithm": "dflash", "verifier": VERIFIER},
    "speculators_model_type": "dflash",
    "transformer_layer_config": LAYERS,
}


def read(**changes: Any) -> DrafterConfig:
    """Read the configuration with keys changed; `body__KEY` is a key of the layers'."""
    body = {key[6:]: value for key, value in changes.items() if key.startswith("body__")}
    outer = {key: value for key, value in changes.items() if not key.startswith("body__")}
    layers = {"transformer_layer_config": {**LAYERS, **body}}
    return DrafterConfig.from_hf({**DRAFTER, **layers, **outer}, "drafter x")


def test_hidden_states_are_counted_from_the_embedding() -> None:
    assert read().target_layer_ids == (1, 17, 33)


def test_sizes_come_from_the_layers_configuration() -> None:
    config = read()
    assert (config.hidden_size, config.num_kv_heads, config.vocab_size) == (4096, 8, 151936)
    assert (config.block_size, config.mask_token_id, config.rope.theta) == (8, 151669, 1e6)


@pytest.mark.parametrize("non_causal", [False, True])
def test_only_sliding_layers_can_be_causal(non_causal: bool) -> None:
    assert read(sliding_window_non_causal=non_causal).layers == (
        DraftLayerConfig(causal=not non_causal, window=2048),
        DraftLayerConfig(causal=False, window=0),
    )


def test_keys_that_the_maker_does_not_read_change_no_mask() -> None:
    assert read(is_causal=True, body__is_causal=True, body__use_swa=True) == read()


@pytest.mark.parametrize(("size", "expected"), [(32000, 32000), (151936, None), (None, None)])
def test_draft_vocabulary(size: int | None, expected: int | None) -> None:
    assert read(draft_vocab_size=size).draft_vocab_size == expected


def test_verifier() -> None:
    assert read_verifier(DRAFTER, "x") == Verifier("Qwen/Qwen3-8B", ("Qwen3ForCausalLM",))
    assert read_verifier({}, "x") == Verifier("", ())


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"aux_hidden_state_layer_ids": [0, 18]},
        "contains 0, expected at least 1: hidden state 0 is",
    ),
    ({"aux_hidden_state_layer_ids": [2, 2]}, "names a layer twice"),
    ({"aux_hidden_state_layer_ids": []}, "is empty"),
    ({"aux_hidden_state_layer_ids": None}, "aux_hidden_state_layer_ids is missing"),
    ({"aux_hidden_state_layer_ids": [True]}, r"aux_hidden_state_layer_ids\[0\] is true"),
    ({"speculators_model_type": "eagle3"}, 'is "eagle3", and only "dflash"'),
    ({"speculators_model_type": None}, "speculators_model_type is missing"),
    ({"speculators_model_type": ["dflash"]}, "expected a string"),
    ({"transformer_layer_config": None}, "transformer_layer_config is missing"),
    ({"transformer_layer_config": [1]}, "expected an object"),
    ({"target_hidden_size": 16384}, "target_hidden_size is 16384, and only 4096"),
    ({"body__model_type": "llama"}, 'transformer_layer_config.model_type is "llama"'),
    ({"body__hidden_size": None}, "transformer_layer_config.hidden_size is missing"),
    ({"body__hidden_act": "gelu"}, 'hidden_act is "gelu", and only "silu"'),
    ({"body__sliding_window": None}, "sliding_window is missing"),
    ({"draft_vocab_size": 151937}, "draft_vocab_size is 151937, expected .* at most 151936"),
    ({"draft_vocab_size": 0}, "draft_vocab_size is 0"),
    ({"mask_token_id": None}, "mask_token_id is missing"),
    (
        {"sliding_window_non_causal": 1},
        "sliding_window_non_causal is 1, expected true or false",
    ),
    ({"speculators_config": {"verifier": {"architectures": "Qwen3"}}}, "expected a list"),
    ({"speculators_config": []}, r"speculators_config is \[\], expected an object"),
    (
        {"speculators_config": {"verifier": 3}},
        "speculators_config.verifier is 3, expected an obj",
    ),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(**changes)
