"""What DFlash 2 adds to a drafter's config.json: read from both places, and bounded."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.test_drafter import QWEN3_4B, read
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.dflash2 import DraftConvConfig, SelectorConfig
from trtllm_dflash.models.tensor_specs import expand_specs, resolve_shapes

KEYS = {
    "conv_kernel_size": 2,
    "conv_group_size": 16,
    "selector_rank": 256,
    "selector_top_k": 16,
}
NAME = {"architectures": ["DFlash2DraftModel"]}
NESTED = NAME | {f"dflash__{key}": value for key, value in KEYS.items()}


@pytest.mark.parametrize("changes", [NAME | KEYS, NESTED], ids=["top", "dflash_config"])
def test_both_places(changes: dict[str, Any]) -> None:
    config = read(QWEN3_4B, **changes)
    assert config.conv == DraftConvConfig(kernel_size=2, group_size=16)
    assert config.selector == SelectorConfig(rank=256, top_k=16)
    assert config.num_conv_groups == 160
    assert (config.output_multiplier, config.logit_softcap) == (1.0, None)


def test_v1_has_neither() -> None:
    config = read(QWEN3_4B, **dict.fromkeys(KEYS))
    assert (config.conv, config.selector, config.num_conv_groups) == (None, None, 0)
    assert not [name for name in expand_specs(config.tensors.used, config) if "conv" in name]


def test_tensors_and_their_shapes() -> None:
    config = read(QWEN3_4B, **NAME, **KEYS)
    rows = expand_specs(config.tensors.used, config)
    shapes = resolve_shapes(rows, config)
    added = {
        name: shape for name, shape in shapes.items() if "_conv." in name or "cand" in name
    }
    assert len(added) == 5 * 4 + 3
    assert added["layers.4.mlp_conv.base_kernel"] == (2, 2, 2560)
    assert added["layers.0.attention_conv.kernel_projection.weight"] == (640, 2560)
    assert added["candidate_selector.predecessor_codebook.weight"] == (151936, 256)
    assert added["candidate_selector.successor_codebook.weight"] == (151936, 256)
    assert added["candidate_selector.hidden_projection.weight"] == (256, 2560)
    assert not any(rows[name].is_linear for name in added)  # none is quantized


@pytest.mark.parametrize("base", [{}, NESTED], ids=["v1", "v2"])
def test_scaled_and_capped_logits(base: dict[str, Any]) -> None:
    config = read(QWEN3_4B, **base, output_multiplier=0.5, final_logit_softcapping=30)
    assert (config.output_multiplier, config.logit_softcap) == (0.5, 30.0)
    nested = read(QWEN3_4B, **base, dflash__final_logit_softcapping=0)
    assert (nested.output_multiplier, nested.logit_softcap) == (1.0, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dflash__conv_kernel_size": None}, "conv_kernel_size or conv_kernel_size is missing"),
        ({"dflash__selector_rank": None}, "selector_rank or selector_rank is missing"),
        ({"dflash__conv_group_size": 17}, "is 17, expected a divisor of hidden_size 2560"),
        ({"dflash__conv_group_size": 0}, "conv_group_size is 0, expected at least 1"),
        ({"dflash__conv_kernel_size": 0}, "conv_kernel_size is 0, expected at least 1"),
        ({"dflash__conv_kernel_size": 65}, "is 65, expected at least 1 and at most 64"),
        ({"dflash__conv_kernel_size": True}, "conv_kernel_size is true, expected an integer"),
        ({"dflash__selector_rank": -1}, "selector_rank is -1, expected at least 1"),
        (
            {"dflash__selector_rank": 1 << 30},
            "selector_rank is 1073741824, .* at most 16777216",
        ),
        ({"dflash__selector_top_k": 65}, "selector_top_k is 65, .* at most 64"),
        ({"dflash__selector_top_k": 0}, "selector_top_k is 0, expected at least 1"),
        ({"dflash__selector_top_k": "16"}, 'selector_top_k is "16", expected an integer'),
        ({"selector_top_k": 8}, "selector_top_k is 16 but selector_top_k is 8"),
        ({"selector_vocab_size": 32000}, "is 32000, and only vocab_size 151936 is supported"),
        ({"output_multiplier": -1}, "output_multiplier is -1, expected more than 0"),
        ({"output_multiplier": 0}, "output_multiplier is 0, expected more than 0"),
        ({"dflash__final_logit_softcapping": -30}, "softcapping is -30.0, expected at least 0"),
        ({"architectures": ["DFlashDraftModel"]}, "is a key of DFlash 2, but architectures is"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(QWEN3_4B, **NESTED | changes)


def test_candidates_of_a_small_vocabulary() -> None:
    small = {"vocab_size": 9, "dflash__mask_token_id": 8}
    assert read(QWEN3_4B, **NESTED | small | {"dflash__selector_top_k": 9}).selector is not None
    with pytest.raises(ConfigError, match=r"selector_top_k is 16, .* at most 9"):
        read(QWEN3_4B, **NESTED | small)
