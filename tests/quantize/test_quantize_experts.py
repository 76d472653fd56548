"""Targets with experts: our quantization against ModelOpt's own export, and who calibrates them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("modelopt")

from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import tiny_tokenizer
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from tests.graph.test_moe_layer import HEADS
from tests.quantize import modelopt
from tests.quantize.test_quantize_target import stored
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.pipeline import quantize
from trtllm_dflash.quantize.report import QuantizeReport

pytestmark = pytest.mark.slow

# Numbers that linears read fill groups of 16.
HYBRID_SIZES = {"value_dim": 16, "expert_size": 32, "shared_size": 48}
MakeTarget = Callable[..., Path]
Quantize = Callable[..., QuantizeReport]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> MakeTarget:
    """`target(name, fused=False)`: a tiny BF16 target with experts, made once."""
    made: dict[tuple[str, bool], Path] = {}

    def make(name: str, fused: bool = False) -> Path:
        if (name, fused) not in made:
            directory = tmp_path_factory.mktemp("experts") / name
            if name == "qwen3_moe":
                sizes = {"expert_size": 32}
                tiny_qwen3_moe(directory, dtype="BF16", fused=fused, sizes=sizes)
                tiny_tokenizer(directory)
            else:
                tiny_hybrid(
                    directory,
                    name,
                    dtype="BF16",
                    fused=fused,
                    tokenizer=True,
                    sizes=HYBRID_SIZES,
                )
            made[name, fused] = directory
        return made[name, fused]

    return make


@pytest.fixture(scope="module")
def ours(
    target: MakeTarget, ids_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Quantize:
    """`ours(name, format, fused=False, **options)`: the report of `quantize`, made once."""
    made: dict[str, QuantizeReport] = {}

    def make(name: str, form: str, fused: bool = False, **options: object) -> QuantizeReport:
        key = repr((name, form, fused, options))
        if key not in made:
            asked = {"kv_cache_dtype": "fp8", "calib_file": ids_file} | options
            directory = tmp_path_factory.mktemp("quantized") / form
            made[key] = quantize(
                QuantizeConfig(str(target(name, fused)), directory, form, **asked)
            )  # type: ignore[arg-type]
        return made[key]

    return make


def contents(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: stored(info) for name, info in read_all_tensor_infos(directory).items()}


def record_of(report: QuantizeReport) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        (report.directory / "dflash_quantize.json").read_text()
    )
    return found


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("qwen3_moe", "nvfp4"),
        ("qwen3_moe", "w4a16_nvfp4"),
        ("qwen3_moe", "fp8"),
        ("qwen3_next", "nvfp4"),
        ("qwen3_5_moe", "nvfp4"),
        ("qwen3_5_moe", "fp8"),
    ],
)
def test_experts_have_every_byte_of_modelopts_export(
    name: str, form: str, target: MakeTarget, ours: Quantize, tmp_path: Path
) -> None:
    """But for A_log, which ModelOpt rounds to BF16 and we keep as it is."""
    directory = ours(name, form).directory
    model = modelopt.quantized_model(target(name), form, "fp8")
    theirs = modelopt.export(model, target(name), tmp_path / "theirs")
    mine, other = contents(directory), contents(theirs)
    assert mine.keys() == other.keys()
    different = {key for key in mine if mine[key] != other[key]}
    assert all(key.endswith(".A_log") for key in different)
    for file, key in (("config.json", "quantization_config"), ("hf_quant_config.json", None)):
        found = [json.loads((each / file).read_text()) for each in (directory, theirs)]
        first, second = (each[key] if key else each for each in found)
        assert first == second


def test_experts_in_one_tensor_give_the_same_checkpoint(ours: Quantize) -> None:
    for name in ("qwen3_moe", "qwen3_5_moe"):
        apart = contents(ours(name, "nvfp4").directory)
        assert contents(ours(name, "nvfp4", fused=True).directory) == apart


def test_experts_leave_routers_and_gates_as_they_are(
    target: MakeTarget, ours: Quantize
) -> None:
    before = load_target(target("qwen3_5_moe"))
    after = load_target(ours("qwen3_5_moe", "nvfp4").directory)
    kept = ("mlp.gate", "shared_expert_gate", "in_proj_a", "in_proj_b", "conv1d", "norm")
    names = [name for name in before.tensors if name.removesuffix(".weight").endswith(kept)]
    assert len(names) > 6 * 4
    assert all(stored(before.tensors[name]) == stored(after.tensors[name]) for name in names)
    inputs = [name for name in after.formats if ".experts." in name]
    assert len(inputs) == 6 * 7 * 3
    # Of what an engine multiplies, only experts keep their inputs as they are.
    assert {after.formats[name].name for name in inputs} == {"w4a16_nvfp4"}


def test_coverage_counts_the_tokens_of_every_expert(ours: Quantize) -> None:
    report = ours("qwen3_moe", "nvfp4")
    coverage = report.coverage
    assert coverage is not None
    assert list(coverage.tokens) == [f"model.layers.{layer}.mlp.experts" for layer in range(3)]
    for counts in coverage.tokens.values():
        assert len(counts) == 7
        assert sum(counts) == (17 + 23 + 31) * 2  # each token has two experts
    assert coverage.without_tokens == ()
    assert dict(report.rows())["experts"].startswith("all 21 reached, by at least ")
    assert record_of(report)["experts"] == coverage.facts()


def test_an_expert_without_tokens_is_named(
    target: MakeTarget, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights have scales of their own; its inputs have those of the layer."""
    text = tmp_path / "two.jsonl"
    text.write_text(json.dumps({"prompt": [5, 9]}))
    directory = tmp_path / "out"
    asked = QuantizeConfig(str(target("qwen3_moe")), directory, "nvfp4", calib_file=text)
    with caplog.at_level(logging.WARNING, "trtllm_dflash"):
        report = quantize(asked)
    coverage = report.coverage
    assert coverage is not None
    missed = coverage.without_tokens
    assert len(missed) >= 3 * (7 - 4)  # two tokens reach four experts of a layer at most
    assert f"no calibration token reached {missed[0]}, {missed[1]}" in caplog.text
    assert f"and {len(missed) - 4} more" in caplog.text
    assert dict(report.rows())["experts"] == (
        f"{21 - len(missed)} of 21 reached by calibration tokens"
    )
    infos = read_all_tensor_infos(directory)
    layer = missed[0].rpartition(".")[0]
    for linear in ("gate_proj", "up_proj", "down_proj"):
        scales = {stored(infos[f"{layer}.{j}.{linear}.input_scale"]) for j in range(7)}
        assert len(scales) == 1
    weight = read_all_tensor_infos(target("qwen3_moe"))[f"{missed[0]}.down_proj.weight"]
    largest = np.abs(weight.array().astype(np.float32)).max()
    scale = infos[f"{missed[0]}.down_proj.weight_scale_2"].array()
    assert float(scale) == pytest.approx(float(largest) / (6 * 448), rel=1e-6)


def test_all_tokens_through_all_experts(ours: Quantize) -> None:
    """What each expert computes of every token counts, and the outputs stay the router's."""
    chosen = ours("qwen3_moe", "nvfp4")
    everything = ours("qwen3_moe", "nvfp4", calib_all_experts=True)
    assert everything.coverage is not None
    assert everything.coverage.describe() == "all 21 saw every calibration token"
    assert everything.coverage.tokens == chosen.coverage.tokens  # type: ignore[union-attr]
    assert everything.agreed == chosen.agreed
    before, after = (read_all_tensor_infos(report.directory) for report in (chosen, everything))
    different = {name for name in before if stored(before[name]) != stored(after[name])}
    assert different
    for name in different:
        # Gates and ups see the same hidden states either way.
        assert re.search(r"\.experts\.\d\.down_proj\.input_scale$", name)
        assert float(after[name].array()) > float(before[name].array())


@pytest.mark.parametrize(("form", "weight_format"), [("nvfp4", 2), ("fp8", 3)])
def test_an_engine_for_blackwell_holds_the_packed_experts(
    form: str, weight_format: int, ids_file: Path, tmp_path: Path
) -> None:
    """Our kernel multiplies them; the compiler's own arithmetic multiplies what attention reads."""
    pytest.importorskip("tensorrt_rtx")
    sizes = {**HEADS, "hidden": 64, "expert_size": 96, "layers": 1}
    source = tiny_qwen3_moe(tmp_path / "source", dtype="BF16", sizes=sizes)
    asked = QuantizeConfig(str(source), tmp_path / form, form, calib_file=ids_file)
    target = quantize(asked).directory
    output = tmp_path / "engine"
    report = build_engine(
        BuildConfig(str(target), output, arch="sm120", max_seq_len=64, max_num_tokens=16)
    )
    assert manifest.check(report.directory, deep=True) == []
    kernels = [row["kernel"] for row in manifest.load(report.directory)["kernels"]]
    assert any(kernel.startswith(f"moe, weight_format {weight_format}") for kernel in kernels)
    engine = (report.directory / "rank0.engine").read_bytes()
    tensors = load_target(target).tensors
    for linear in ("gate_proj", "up_proj", "down_proj"):
        packed = tensors[f"model.layers.0.mlp.experts.3.{linear}.weight"].array()
        assert packed.tobytes() in engine
