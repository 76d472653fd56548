"""Reading DSpark's keys: three spellings of the method, the rows that draft, refused heads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.test_drafter import QWEN3_4B, read
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.dflash2 import SelectorConfig
from trtllm_dflash.models.tensor_specs import expand_specs, resolve_shapes

# deepseek-ai's and AutoModel's, SpecForge's, and ModelOpt's.
DEEPSPEC = {"architectures": ["Qwen3DSparkModel"], "markov_rank": 256, "block_size": 7}
SPECFORGE = {"architectures": ["DSparkDraftModel"], "markov_rank": 256, "block_size": 7}
MODELOPT = {
    "dflash__projector_type": "dspark",
    "dflash__shift_label": True,
    "dflash__markov_rank": 256,
    "dflash__markov_head_type": "vanilla",
    "block_size": 7,
}
NEMOTRON = DEEPSPEC | {"dflash__sample_from_anchor": False, "dspark_bonus_anchor": True}


@pytest.mark.parametrize("keys", [DEEPSPEC, SPECFORGE, MODELOPT])
def test_every_row_drafts(keys: dict[str, Any]) -> None:
    config = read(QWEN3_4B, **keys)
    assert (config.block_size, config.rows_of(8), config.sample_from_anchor) == (8, 7, True)
    assert config.walk == SelectorConfig(rank=256, top_k=64)


def test_the_anchor_may_be_a_bonus() -> None:
    config = read(QWEN3_4B, **NEMOTRON)
    assert (config.block_size, config.sample_from_anchor, config.markov_rank) == (7, False, 256)


def test_tables_of_the_markov_head() -> None:
    config = read(QWEN3_4B, **DEEPSPEC, draft_vocab_size=32000)
    shapes = resolve_shapes(expand_specs(config.tensors.used, config), config)
    assert shapes["markov_head.markov_w1.weight"] == (151936, 256)
    assert shapes["markov_head.markov_w2.weight"] == (32000, 256)
    assert "confidence_head.proj.bias" in expand_specs(config.tensors.ignored, config)


def test_a_head_of_rank_0_is_none() -> None:
    config = read(QWEN3_4B, **DEEPSPEC | {"markov_rank": 0})
    assert (config.markov_rank, config.walk, config.sample_from_anchor) == (None, None, True)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        DEEPSPEC | {"markov_head_type": "gated"},
        'markov_head_type is "gated", and only "vanilla"',
    ),
    (
        MODELOPT | {"dflash__markov_head_type": "rnn"},
        'is "rnn", and only "vanilla" is supported',
    ),
    (DEEPSPEC | {"markov_rank": None}, "markov_rank is missing"),
    (DEEPSPEC | {"markov_rank": -1}, "markov_rank is -1"),
    (NEMOTRON | {"dflash__sample_from_anchor": True}, "true, and so is sample_from_anchor"),
    (DEEPSPEC | {"block_size": 64}, "block_size is 64"),
    (DEEPSPEC | {"model_type": "gemma4_text"}, 'model_type is "gemma4_text", and only "qwen3"'),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_refusals(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(QWEN3_4B, **keys)
