"""Plans of checkpoints in other makers' quantized layouts: what is counted is what is built."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from tests.fixtures.published import EXPERT_SIZES, SCHEMES, published_copy, published_experts
from tests.fixtures.tiny_models import tiny_target
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from trtllm_dflash.builder.dry_run import preview_build
from trtllm_dflash.builder.host_costs import HostCosts
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.errors import BuildError, CheckpointError, UsageError
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.plan import plan_quantization

EXPERTS = {"layers": 1, "head_dim": 64, "hidden": 64, "expert_size": 64, "experts": 3}


@pytest.mark.parametrize("plugins", [False, True])
@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_weights_are_counted_as_they_are_built(
    name: str, experts: bool, plugins: bool, tmp_path: Path
) -> None:
    """To the byte, but for what no weight is: tables of positions and zeros for biases."""
    source = (
        tiny_qwen3_moe(tmp_path / "source", sizes=EXPERTS, dtype="BF16")
        if experts
        else tiny_target(tmp_path / "source", "qwen3", num_layers=1, head_dim=64, dtype="BF16")
    )
    _check_counts(published_copy(source, tmp_path / "target", name), plugins=plugins)


@pytest.mark.parametrize("fused", [False, True])
def test_fp8_experts_are_counted_as_they_are_built(fused: bool, tmp_path: Path) -> None:
    """In one tensor they stay where they are; of each they are stacked."""
    target = published_experts(
        tmp_path, "fine_grained", fused=fused, sizes=EXPERT_SIZES | {"head_dim": 64}
    )
    converted = _check_counts(target, plugins=True)
    assert (converted < 200) == fused


def _check_counts(target: Path, *, plugins: bool) -> int:
    """Compare the bytes of a plan with a graph's weights; return those that are converted."""
    config = BuildConfig(
        str(target), target.parent / "e", arch="sm120", max_seq_len=64, plugins=plugins
    )
    run = preview_build(config)
    models = run.models
    model = build_step(
        models.target,
        None,
        dtype=models.resolved.dtype,
        cache_len=models.resolved.cache_len,
        block_size=1,
        fp4=True,
        plugins=plugins,
    )
    counted = {"weights": 0, "converted": 0}
    for value in model.graph.initializers.values():
        tensor, full = value.const_value, str(value.name)
        is_weight = full.startswith(("target.model.", "target.lm_head"))
        if tensor is not None and is_weight and not full.endswith("weight_scale_2"):
            counted["weights"] += tensor.nbytes
            is_in_place = isinstance(tensor, ir.ExternalTensor)
            counted["converted"] += 0 if is_in_place else tensor.nbytes
    assert counted["weights"] == models.weight_bytes
    assert counted["converted"] == HostCosts(run.plan).converted_bytes
    return counted["converted"]


def _planned(target: Path, arch: str, **options: object) -> dict[str, str]:
    config = BuildConfig(str(target), target.parent / "e", arch=arch, **options)
    return dict(summary_rows(resolve_models(config)))


def test_what_people_read(tmp_path: Path) -> None:
    source = tiny_target(tmp_path / "source", "qwen3", num_layers=1, dtype="BF16")
    blocks = published_copy(source, tmp_path / "blocks", "fine_grained")
    rows = published_copy(source, tmp_path / "rows", "fp8_channel", kv_cache=True)
    found = _planned(blocks, "sm80", plugins=False)
    assert "FP8_BLOCK and BF16" in found["target"]
    assert " as bfloat16; " in found["weights"]
    assert (
        " as W8A16_FP8 and bfloat16; "
        in _planned(rows, "sm89", plugins=False, kv_cache_dtype="bfloat16")["weights"]
    )
    assert "FP8 numbers, held in float32" in _planned(rows, "cpu")["caches"]
    with pytest.raises(BuildError, match=r"sm80 .* has no arithmetic for W8A16_FP8 .*original"):
        _planned(rows, "sm80", plugins=False)
    config = BuildConfig(str(rows), tmp_path / "e", arch="sm120")
    with pytest.raises(UsageError, match="rows is W8A16_FP8 already; leave the option out"):
        preview_build(config, quant="nvfp4")


def test_nothing_is_quantized_twice(tmp_path: Path) -> None:
    source = tiny_target(tmp_path / "source", "qwen3", num_layers=1, dtype="BF16")
    for name in ("fine_grained", "fp8_channel"):
        target = published_copy(source, tmp_path / name, name)
        config = QuantizeConfig(str(target), tmp_path / "out", "fp8")
        with pytest.raises(CheckpointError, match=r"already quantized .* unquantized original"):
            plan_quantization(config)
