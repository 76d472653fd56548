"""The synthetic checkpoints of large models: their shapes are the published ones, and they load as
real ones do.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.tensor_specs import (
    expand_specs,
    resolve_shape,
)

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmark" / "synthetic.py"
# Small enough for a test, and divided into blocks as the real sizes are.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "vocab_size": 211,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def _small(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | {key: value for key, value in SMALL.items() if key in config} | changes


@pytest.mark.parametrize("model", ["gpt-oss-120b", "qwen3-coder-30b"])
def test_synthetic_small_pair_is_sound(
    model: str, script: dict[str, Any], tmp_path: Path
) -> None:
    target = _small(script["target_config"](model, 7, 3), num_experts_per_tok=2)
    taps = {"mask_token_id": 200, "target_layer_ids": [1]}
    drafter = _small(script["drafter_config"](model, target), dflash_config=taps)
    for name, config_json, config in (
        ("target", target, read_target_config(target, None, "target")),
        ("drafter", drafter, DrafterConfig.from_hf(drafter, "drafter")),
    ):
        size = script["write"](tmp_path / name, config_json, config)
        assert size == (tmp_path / name / "model.safetensors").stat().st_size
    pair = load_target(tmp_path / "target"), load_drafter(tmp_path / "drafter")
    check_pair(*pair)
    for checkpoint in pair:
        check_finite(checkpoint)
    blobs = [
        np.asarray(info.array()).tobytes()
        for info in pair[0].tensors.values()
        if info.nbytes > 100
    ]
    assert len(set(blobs)) == len(blobs)


def test_synthetic_sizes_are_the_published_ones(script: dict[str, Any]) -> None:
    """gpt-oss-120b has 116.8 billion weights, Qwen3-Coder-30B-A3B 30.5; the first's drafter is 1.5
    GB in BF16.
    """
    for model, sizes, want in (
        ("gpt-oss-120b", (36, 128), 116.8),
        ("gpt-oss-20b", (24, 32), 20.9),
        ("qwen3-coder-30b", (48, 128), 30.5),
    ):
        config_json = script["target_config"](model, *sizes)
        config = read_target_config(config_json, None, model)
        count = sum(
            np.prod(resolve_shape(row, config))
            for row in expand_specs(config.tensors.used, config).values()
        )
        assert round(count / 1e9, 1) == want
    target = script["target_config"]("gpt-oss-120b", 36, 128)
    drafter = DrafterConfig.from_hf(script["drafter_config"]("gpt-oss-120b", target), "drafter")
    assert (drafter.num_taps, drafter.num_layers, drafter.block_size) == (5, 8, 10)
    count = sum(
        np.prod(resolve_shape(row, drafter))
        for row in expand_specs(drafter.tensors.used, drafter).values()
    )
    assert 2 * count / 2**30 == pytest.approx(1.46, abs=0.02)
