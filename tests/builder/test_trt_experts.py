"""Real TensorRT-RTX engines of targets with experts, built without a GPU: the form of their
weights, and the memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.quantized import quantized_copy, read_tensors
from tests.fixtures.tiny_models import tiny_drafter
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from tests.graph.test_moe_layer import HEADS, share_scales
from trtllm_dflash.builder.build_engine import build_engine, plan_build
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import BuildConfig

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx")
SIZES = {"max_seq_len": 64, "max_num_tokens": 16}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """gpt-oss in MXFP4, and Qwen3-MoE in BF16 and NVFP4."""
    root = tmp_path_factory.mktemp("targets")
    sizes = {**HEADS, "hidden": 64, "expert_size": 96, "layers": 3}
    plain = tiny_qwen3_moe(root / "qwen3_moe", dtype="BF16", sizes=sizes)
    routers = tuple(f"model.layers.{index}.mlp.gate" for index in range(3))
    nvfp4 = quantized_copy(plain, root / "qwen3_moe_nvfp4", exclude=("lm_head", *routers))
    share_scales(nvfp4)
    oss = tiny_gpt_oss(
        root / "gpt_oss", dtype="BF16", sizes={**HEADS, "layers": 3, "kv_heads": 2}
    )
    return {"gpt_oss": oss, "qwen3_moe": plain, "qwen3_moe_nvfp4": nvfp4}


def _config(
    targets: dict[str, Path], name: str, output: Path, **options: object
) -> BuildConfig:
    drafter = output.parent / "drafter"
    tiny_drafter(
        drafter,
        targets[name],
        attention_bias=True,
        yarn=True,
        num_layers=1,
        taps=(0,),
        head_dim=64,
        dtype="BF16",
    )
    return BuildConfig(str(targets[name]), output, str(drafter), **{**SIZES, **options})


BLACKWELL = [
    ("gpt_oss", "sm120"),
    ("qwen3_moe", "sm120"),
    ("qwen3_moe_nvfp4", "sm120"),
    ("qwen3_moe_nvfp4", "sm121"),
]
WITHOUT = [*BLACKWELL, ("gpt_oss", "sm80"), ("qwen3_moe", "sm89")]
WITH = [*BLACKWELL, ("gpt_oss", "sm80")]


@pytest.mark.sample(3)
@pytest.mark.parametrize(("name", "arch"), WITHOUT)
def test_without_kernels(
    name: str, arch: str, targets: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "engine"
    report = build_engine(_config(targets, name, output, arch=arch, plugins=False))
    assert manifest.check(report.directory, deep=True) == []
    engine = (report.directory / "rank0.engine").read_bytes()
    assert (_packed(targets["gpt_oss"]) in engine) == (name == "gpt_oss" and arch == "sm120")


def test_experts_are_stored_once_where_a_step_is_one_token(tmp_path: Path) -> None:
    sizes = {"hidden": 512, "layers": 1, "q_heads": 8, "head_dim": 64}
    sizes |= {"experts": 16, "expert_size": 512}
    target = tiny_qwen3_moe(tmp_path / "target", dtype="BF16", sizes=sizes)
    config = BuildConfig(
        str(target), tmp_path / "engine", arch="sm120", plugins=False, max_seq_len=64
    )
    engine = build_engine(config).directory / "rank0.engine"
    weights = (target / "model.safetensors").stat().st_size
    assert engine.stat().st_size < 1.7 * weights  # 1.5 with the code; stored twice 2.4


@pytest.mark.sample(3)
@pytest.mark.parametrize(("name", "arch"), WITH)
def test_with_our_kernels(
    name: str, arch: str, targets: dict[str, Path], tmp_path: Path
) -> None:
    report = build_engine(_config(targets, name, tmp_path / "engine", arch=arch))
    formats = {
        "gpt_oss": ", weight_format 1",
        "qwen3_moe": "",
        "qwen3_moe_nvfp4": ", weight_format 2",
    }
    (kernel,) = [
        row["kernel"]
        for row in manifest.load(report.directory)["kernels"]
        if row["kernel"].startswith("moe")
    ]
    assert kernel == f"moe{formats[name]}"
    engine = (report.directory / "rank0.engine").read_bytes()
    assert (_packed(targets["gpt_oss"]) in engine) == (name == "gpt_oss")


def _packed(target: Path) -> bytes:
    """Return a row of a layer's experts."""
    tensors = read_tensors(target / "model.safetensors")
    return tensors["model.layers.1.mlp.experts.gate_up_proj_blocks"][3, 5].tobytes()


def test_the_plan_says_what_experts_are(targets: dict[str, Path], tmp_path: Path) -> None:
    config = _config(targets, "gpt_oss", tmp_path / "a" / "engine", arch="sm120", plugins=False)
    rows = dict(summary_rows(plan_build(config)))
    assert rows["experts"] == "5 a layer, 2 a token; MXFP4, their activations as they are"
    assert rows["windows"] == "2 of 3 layers see 7 tokens, with sinks"
    assert "MXFP4 and bfloat16" in rows["weights"]
    config = _config(
        targets, "qwen3_moe", tmp_path / "b" / "engine", arch="sm80", plugins=False
    )
    rows = dict(summary_rows(plan_build(config)))
    assert rows["experts"] == "7 a layer, 2 a token; not quantized"
    assert "windows" not in rows


def test_the_engines_size_is_planned_by_the_form_of_experts(
    targets: dict[str, Path], tmp_path: Path
) -> None:
    """4-bit codes with Blackwell's compiler or our kernels, numbers of 2 bytes where there is
    neither. The compiler's have a scale for 16 codes.
    """
    sizes = [
        plan_build(
            _config(targets, "gpt_oss", tmp_path / arch / "engine", arch=arch, plugins=False)
        ).weight_bytes
        for arch in ("sm80", "sm120")
    ]
    experts = 3 * 5 * (192 * 64 + 64 * 96)
    assert sizes[0] - sizes[1] == experts * 2 - experts * 18 // 32


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            {"expert_size": 84},
            "the experts' intermediate_size is 84, no multiple of 8; give --no-plugins",
        ),
        ({"hidden": 68}, "hidden_size is 68, no multiple of 8; give --no-plugins"),
    ],
)
def test_sizes_without_a_kernel(sizes: dict[str, int], words: str, tmp_path: Path) -> None:
    target = tiny_qwen3_moe(
        tmp_path / "target", dtype="BF16", sizes={**HEADS, "layers": 1, **sizes}
    )
    with pytest.raises(
        UsageError, match=f"there is no kernel for the target's experts: {words}"
    ):
        plan_build(BuildConfig(str(target), tmp_path / "engine", arch="sm120", **SIZES))


def test_a_fallback_to_numbers_is_in_the_builds_log(
    targets: dict[str, Path], tmp_path: Path
) -> None:
    """The builder is a process of its own, whose warnings are kept."""
    target = tiny_gpt_oss(tmp_path / "target", dtype="BF16", sizes={**HEADS, "layers": 1})
    info = load_target(target).tensors["model.layers.0.mlp.experts.down_proj_scales"]
    data = bytearray((target / "model.safetensors").read_bytes())
    data[info.offset + 7] -= 40
    (target / "model.safetensors").write_bytes(data)
    report = build_engine(
        BuildConfig(str(target), tmp_path / "engine", arch="sm120", plugins=False, **SIZES)
    )
    assert (
        "down_proj: its exponents are too far apart"
        in (report.directory / "build.log").read_text()
    )
