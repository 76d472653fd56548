"""Every other drafter dialect is refused by its name, from its config keys, its tensor names or its
files.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.models.test_drafter import QWEN3_4B, read
from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models.unsupported_drafters import (
    UNSUPPORTED_DRAFTERS,
    refuse_unsupported_in_files,
    refuse_unsupported_in_names,
)

# What published drafters of each dialect carry.
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("Laguna", {"architectures": ["DFlashLagunaForCausalLM"], "draft_vocab_size": 151936}),
    ("Laguna", {"gating": "per-head"}),
    ("Laguna", {"model_type": "laguna"}),
    ("DSpark of other layers", {"architectures": ["Gemma4DSparkForCausalLM"]}),
    ("DSpark of other layers", {"architectures": ["DSparkV41Model"]}),
    ("DSpark of other layers", {"architectures": ["K3DSparkDraftModel"]}),
    ("DSpark of other layers", {"architectures": ["MuseSparkModel"]}),
    ("Domino", {"dflash__projector_type": "domino"}),
    ("Domino", {"architectures": ["DominoDraftModel"]}),
    ("LiLiCorr", {"architectures": ["LiLiCorrDraftModel"]}),
    ("LiLiCorr", {"dflash__projector_type": "lilicorr"}),
    ("LiLiCorr", {"lilicorr_rank": 64}),
    ("LiLiCorr", {"dflash__lilicorr_hidden_size": 64}),
    ("XPress", {"architectures": ["Qwen3XPressModel"]}),
    ("AdaFlash", {"thresh_head_direct_len": True}),
    ("another correction head", {"projector_type": "later"}),
    ("MiMo", {"dflash__attention_value_scale": 0.5, "dflash__attention_sink_bias": True}),
    ("MiMo", {"add_swa_attention_sink_bias": True}),
    ("Muse-Glimmer", {"architectures": ["MuseGlimmerAssistantModel"]}),
    ("Muse-Glimmer", {"model_type": "muse_glimmer_assistant"}),
    ("EAGLE-3", {"architectures": ["LlamaForCausalLMEagle3"]}),
]

TENSORS: list[tuple[str, str]] = [
    ("Laguna", "layers.0.self_attn.qkv_proj.weight"),
    ("Laguna", "layers.0.self_attn.g_proj.weight"),
    ("Laguna", "aux_hidden_norms.3.weight"),
    ("MiMo", "mask_embedding"),
    ("Muse-Glimmer", "encoder.fc.weight"),
    ("Muse-Glimmer", "encoder.output_norm_enc.weight"),
    ("Domino", "gru.weight_ih_l0"),
    ("LiLiCorr", "lilicorr_head.weight"),
    ("AdaFlash", "thresh_head.weight"),
    ("EAGLE-3", "midlayer.self_attn.q_proj.weight"),
]

NEUTRAL: list[dict[str, Any]] = [
    {"dflash__projector_type": "dflash"},
    {"lilicorr_rank": None, "dspark_markov_rank": None},
    {
        "dflash__input_embedding_scale": 1.0,
        "dflash__output_multiplier": 1,
        "dflash__final_logit_softcapping": None,
    },
    {
        "dflash__attention_sink_bias": False,
        "dflash__sample_from_anchor": False,
        "dflash__shift_label": False,
    },
    {"dflash__attention_value_scale": 1.0},
    {"quantization_config": {"quant_algo": "NVFP4"}, "final_logit_softcapping": 0},
]

FILES = [("MiMo", "mask_embedding.pt")]


@pytest.mark.parametrize(("name", "changes"), CONFIGS)
def test_config_keys(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=f"shows a drafter of the variant '{re.escape(name)}': "
    ):
        read(QWEN3_4B, **changes)


@pytest.mark.parametrize("changes", NEUTRAL)
def test_neutral_values_are_dflash_v1(changes: dict[str, Any]) -> None:
    assert read(QWEN3_4B, **changes).num_layers == 5


@pytest.mark.parametrize(("name", "tensor"), TENSORS)
def test_tensor_names(name: str, tensor: str) -> None:
    words = (
        f"/d: tensor {re.escape(tensor)} shows a drafter of the variant '{re.escape(name)}': "
    )
    with pytest.raises(CheckpointError, match=words):
        refuse_unsupported_in_names(["fc.weight", tensor], "/d")


@pytest.mark.parametrize(("name", "file"), FILES)
def test_files(name: str, file: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"/d: {file} shows a drafter of the variant '{name}': "
    ):
        refuse_unsupported_in_files(["config.json", file], "/d")


def test_every_row_of_the_table_is_tested() -> None:
    tested = {name for name, _ in CONFIGS} | {name for name, _ in TENSORS}
    assert tested == {unsupported.name for unsupported in UNSUPPORTED_DRAFTERS}
    patterns = {
        pattern for unsupported in UNSUPPORTED_DRAFTERS for pattern in unsupported.tensors
    }
    assert patterns == {
        pattern for pattern in patterns for _, tensor in TENSORS if re.search(pattern, tensor)
    }
    assert {file for _, file in FILES} == {
        file for unsupported in UNSUPPORTED_DRAFTERS for file in unsupported.files
    }
