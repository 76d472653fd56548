"""A processor without the arithmetic of a checkpoint's format is refused before anything is
built.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")

from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.builder.build_engine import plan_build
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.errors import BuildError
from trtllm_dflash.options.build import BuildConfig

FORMATS = ("fp8", "nvfp4", "w4a16_nvfp4")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a small target in each format, and the unquantized one under "plain"."""
    directory = tmp_path_factory.mktemp("targets")
    source = tiny_target(directory / "source", num_layers=2, dtype="BF16")
    return {"plain": source} | {
        name: quantized_copy(source, directory / name, name) for name in FORMATS
    }


@pytest.mark.parametrize(
    ("arch", "name", "words"),
    [
        (
            "sm89",
            "nvfp4",
            (
                "has no arithmetic for NVFP4 .* Blackwell has it: .*sm120, sm121. Quantize it to"
                " FP8 for sm89"
            ),
        ),
        (
            "sm89",
            "w4a16_nvfp4",
            "has no arithmetic for W4A16_NVFP4 .*sm121. Quantize it to FP8 for sm89",
        ),
        (
            "sm86",
            "nvfp4",
            "has no arithmetic for NVFP4 .*. Use the unquantized original for sm86",
        ),
        (
            "sm80",
            "nvfp4",
            "has no arithmetic for NVFP4 .*. Use the unquantized original for sm80",
        ),
        (
            "sm86",
            "fp8",
            "has no arithmetic for FP8 .* sm89 .Ada., sm90 .Hopper. and Blackwell has it",
        ),
        ("sm80", "fp8", "has no arithmetic for FP8 .*. Use the unquantized original for sm80"),
    ],
)
def test_refused_in_words(
    arch: str, name: str, words: str, targets: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=f"--arch {arch} .* {words}"):
        plan_build(BuildConfig(str(targets[name]), tmp_path / "engine", arch=arch))
    assert not (tmp_path / "engine").exists()


def test_a_drafter_is_asked_too(targets: dict[str, Path], tmp_path: Path) -> None:
    source = tiny_drafter(tmp_path / "source", targets["plain"], taps=(0,))
    drafter = quantized_copy(source, tmp_path / "drafter", "fp8")
    with pytest.raises(BuildError, match=f"the drafter {drafter} is stored"):
        plan_build(
            BuildConfig(
                str(targets["plain"]), tmp_path / "engine", drafter=str(drafter), arch="sm80"
            )
        )


@pytest.mark.parametrize(
    ("arch", "name"),
    [("cpu", "nvfp4"), ("cpu", "fp8"), ("sm89", "fp8"), *(("sm120", name) for name in FORMATS)],
)
def test_the_plan_says_what_is_quantized(
    arch: str, name: str, targets: dict[str, Path], tmp_path: Path
) -> None:
    algo = {"fp8": "FP8", "nvfp4": "NVFP4", "w4a16_nvfp4": "W4A16_NVFP4"}[name]
    plugins = (
        None if arch == "cpu" else False
    )  # the tiny heads have sizes that there are no kernels for
    plain, prepared = (
        plan_build(
            BuildConfig(str(targets[kind]), tmp_path / "engine", arch=arch, plugins=plugins)
        )
        for kind in ("plain", name)
    )
    rows = dict(summary_rows(prepared))
    assert f"M parameters, {algo} and BF16)" in rows["target"]
    if arch == "cpu":
        assert prepared.weight_bytes == plain.weight_bytes
        assert "as float32; " in rows["weights"]
    else:
        assert prepared.weight_bytes < plain.weight_bytes * 0.8
        assert f"as {algo} and bfloat16; " in rows["weights"]
    quantization = prepared.engine_contents.to_json()["pretrained_config"]["quantization"]
    caches = {"kv_cache_quant_algo": None}
    assert quantization == {"quant_algo": algo, "quantized_linears": {algo: 14}} | caches
    assert (
        plain.engine_contents.to_json()["pretrained_config"]["quantization"]
        == {
            "quant_algo": None,
            "quantized_linears": {},
        }
        | caches
    )
