"""Builds with `--weight-only-precision`: refusals, and what plan, directory and `inspect` say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.fixtures.engines import build_here
from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_moe import OF_WHOLE_BLOCKS, tiny_gpt_oss, tiny_qwen3_moe
from trtllm_dflash.builder.build_engine import plan_build
from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.inspection import inspect_engine
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import WEIGHT_ONLY, BuildConfig

Make = Callable[..., Path]


def test_gpus_are_refused(llama: Path, tmp_path: Path) -> None:
    words = (
        r"--weight-only-precision int8 is for --arch cpu: tensorrt_rtx .*sm120, .dflash-trt q"
    )
    with pytest.raises(UsageError, match=words):
        BuildConfig(str(llama), tmp_path / "e", arch="sm120", weight_only_precision="int8")


@pytest.mark.parametrize("role", ["target", "drafter"])
def test_quantized_models_are_refused(
    role: str, make_target: Make, make_drafter: Make, tmp_path: Path
) -> None:
    target = make_target("llama", dtype="BF16")
    models = {"target": target, "drafter": make_drafter(target, dtype="BF16")}
    models[role] = quantized_copy(models[role], tmp_path / role, "fp8")
    config = BuildConfig(
        str(models["target"]),
        tmp_path / "e",
        drafter=str(models["drafter"]),
        weight_only_precision="int4",
    )
    words = f"int4: the {role} {models[role]} is quantized already .FP8., .* Build from its unq"
    with pytest.raises(UsageError, match=words):
        plan_build(config)


def _dflash2(make_target: Make, folder: Path) -> dict[str, str]:
    target = make_target("qwen3")
    return {"target": str(target), "drafter": str(tiny_dflash2(folder / "drafter", target))}


def _of(target: Path) -> dict[str, str]:
    return {"target": str(target)}


PAIRS: dict[str, Callable[[Make, Path], dict[str, str]]] = {
    "tied": lambda make, _: _of(make("qwen3", tied=True)),
    "untied with biases": lambda make, _: _of(make("qwen2")),
    "dflash2": _dflash2,
    "experts": lambda _, folder: _of(tiny_qwen3_moe(folder / "moe", sizes=OF_WHOLE_BLOCKS)),
    "experts of part blocks": lambda _, folder: _of(tiny_qwen3_moe(folder / "moe")),
    "experts as one tensor": lambda _, folder: _of(tiny_gpt_oss(folder / "moe", mxfp4=False)),
    "hybrid": lambda _, folder: _of(tiny_hybrid(folder / "hybrid", "qwen3_next")),
}


@pytest.mark.parametrize("precision", WEIGHT_ONLY)
@pytest.mark.parametrize("name", PAIRS)
def test_the_file_is_what_the_plan_says(
    name: str, precision: str, make_target: Make, tmp_path: Path
) -> None:
    """Every weight, byte for byte: the plan knows which are integers."""
    models = PAIRS[name](make_target, tmp_path)
    config = BuildConfig(
        output_dir=tmp_path / "e", max_seq_len=64, weight_only_precision=precision, **models
    )
    plan = MemoryPlan.of(plan_build(config))
    build_here(config)
    header = (tmp_path / "e" / "rank0.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    tensors = json.loads(header[8 : 8 + length])
    tensors.pop("__metadata__", None)
    stored = {key: row["data_offsets"] for key, row in tensors.items()}
    sizes = {key: end - start for key, (start, end) in stored.items()}
    integers = {key for key in sizes if key.endswith((".weight_scale", ".weight_zero_point"))}
    assert integers
    codes = {key.removesuffix("_scale") for key in integers if key.endswith("_scale")}
    assert all(tensors[key]["dtype"] == "U8" for key in codes)
    experts = [key for key in codes if ".experts." in key]
    assert bool(experts) is (name in ("experts", "experts as one tensor"))
    small = 0.03 * plan.engine_bytes + 2048  # norms lie in the graph, tables of positions here
    assert abs(sum(sizes.values()) - plan.engine_bytes) < small


def test_everything_names_the_precision(make_target: Make, tmp_path: Path) -> None:
    config = BuildConfig(
        str(make_target("llama")),
        tmp_path / "e",
        max_seq_len=64,
        weight_only_precision="int8",
    )
    rows = dict(summary_rows(plan_build(config)))
    assert "as int8 in blocks of 32 and float32" in rows["weights"]
    build_here(config)
    assert EngineConfig.load(tmp_path / "e").weight_only_precision == "int8"
    text = json.dumps(inspect_engine(tmp_path / "e").sections())
    assert "INT8 in blocks, others float32" in text
