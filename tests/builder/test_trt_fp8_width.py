"""Engines of one layer of real width in FP8 blocks: one byte a weight, as the plan says."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.quantized import read_tensors, write_tensors
from tests.fixtures.tiny_models import tiny_target
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.checkpoint.formats import FP8_BLOCK_SIZE
from trtllm_dflash.options.build import BuildConfig

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.slow

VOCAB = 97
# Of Qwen3-4B, and of a layer of Qwen3-30B-A3B with 16 of its 128 experts.
DENSE = {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32}
EXPERTS = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 16}
EXPERTS |= {"num_attention_heads": 32, "num_experts_per_tok": 8}
KEY_HEADS, HEAD_DIM = 4, 128


def _linears(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the shapes of a layer's quantized linears by name."""
    hidden = config["hidden_size"]
    q_size, kv_size = config["num_attention_heads"] * HEAD_DIM, KEY_HEADS * HEAD_DIM
    found = {f"self_attn.{name}_proj": (kv_size, hidden) for name in "kv"}
    found |= {"self_attn.q_proj": (q_size, hidden), "self_attn.o_proj": (hidden, q_size)}
    groups = {"mlp": config.get("intermediate_size", 0)}
    if "num_experts" in config:
        size = config["moe_intermediate_size"]
        groups = {f"mlp.experts.{n}": size for n in range(config["num_experts"])}
    for group, inner in groups.items():
        found |= {f"{group}.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        found[f"{group}.down_proj"] = (hidden, inner)
    return found


def _target(directory: Path, config: dict[str, int]) -> Path:
    """Write a target of one layer whose linears are random codes."""
    has_experts = "num_experts" in config
    sizes = {"layers": 1, "head_dim": HEAD_DIM, "kv_heads": KEY_HEADS}
    source = (
        tiny_qwen3_moe(directory, sizes=sizes)
        if has_experts
        else tiny_target(directory, "qwen3", num_layers=1, head_dim=HEAD_DIM)
    )
    hidden = config["hidden_size"]
    random = np.random.default_rng(0)
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for name, array in read_tensors(source / "model.safetensors").items():
        if ".experts." in name or name.endswith("_proj.weight"):
            continue
        rows = config.get("num_experts", 0) if name.endswith("mlp.gate.weight") else VOCAB
        shape = (rows, hidden) if array.ndim == 2 else (hidden,)
        shape = array.shape if name.endswith(("q_norm.weight", "k_norm.weight")) else shape
        tensors[name] = ("BF16", np.full(shape, 0.5, np.float32))
    for name, shape in _linears(config).items():
        codes = random.integers(0, 0x7F, shape, np.uint8).view(ml_dtypes.float8_e4m3fn)
        blocks = tuple(-(-size // FP8_BLOCK_SIZE) for size in shape)
        tensors[f"model.layers.0.{name}.weight"] = ("F8_E4M3", codes)
        scales = np.full(blocks, 0.25, np.float32)
        tensors[f"model.layers.0.{name}.weight_scale_inv"] = ("BF16", scales)
    stated = json.loads((source / "config.json").read_text()) | config
    stated |= {"num_key_value_heads": KEY_HEADS, "vocab_size": VOCAB}
    stated["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    if has_experts:
        stated["quantization_config"]["modules_to_not_convert"] = ["lm_head", "mlp.gate"]
    (source / "config.json").write_text(json.dumps(stated))
    write_tensors(source / "model.safetensors", tensors)
    return source


@pytest.mark.parametrize(("config", "arch"), [(DENSE, "sm121"), (EXPERTS, "sm89")])
def test_a_real_layer_is_a_byte_a_weight(
    config: dict[str, int], arch: str, tmp_path: Path
) -> None:
    target = _target(tmp_path / "target", config)
    build = BuildConfig(
        str(target), tmp_path / "engine", arch=arch, max_seq_len=64, max_num_tokens=16
    )
    report = build_engine(build)
    weights = sum(prod(shape) for shape in _linears(config).values())
    engine = max(path.stat().st_size for path in report.directory.iterdir())
    assert weights < engine < 1.04 * weights + 8e6
    plan = MemoryPlan.of(resolve_models(build))
    assert engine == pytest.approx(plan.engine_bytes, rel=0.04)
