"""A processor without the arithmetic of a checkpoint's format is refused before anything is
built.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from tests.fixtures.quantized import quantized_copy, read_tensors
from tests.fixtures.tiny_models import tiny_drafter, tiny_target, write_safetensors
from trtllm_dflash.builder.build_engine import plan_build
from trtllm_dflash.builder.format_support import check_kernels
from trtllm_dflash.builder.pair_support import published_target
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.errors import BuildError, UsageError
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
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
                "has no arithmetic for NVFP4 .* Blackwell can compute it: .*sm120, sm121. "
                "Quantize its unquantized original to FP8 for sm89"
            ),
        ),
        (
            "sm89",
            "w4a16_nvfp4",
            "has no arithmetic for W4A16_NVFP4 .*sm121. Quantize its unquantized original to FP8",
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
            "has no arithmetic for FP8 .* sm89 .Ada., sm90 .Hopper. and Blackwell can compute it",
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


def test_a_supposed_format_is_the_options(targets: dict[str, Path], tmp_path: Path) -> None:
    """The target is not stored in it, so the checkpoint is not to blame."""
    config = BuildConfig(str(targets["plain"]), tmp_path / "engine", arch="sm86")
    words = (
        r"^--quant fp8: --arch sm86 .* has no arithmetic for FP8\. sm89 .* --arch cpu, sm89,"
    )
    with pytest.raises(UsageError, match=words):
        resolve_models(config, quant="fp8")


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


@pytest.mark.parametrize("plugins", [None, False])
@pytest.mark.parametrize(("head_dim", "kv_heads"), [(100, 4), (36, 4), (20, 4)])
def test_heads_that_the_compiler_cannot_compile(
    head_dim: int, kv_heads: int, plugins: bool | None, tmp_path: Path
) -> None:
    target = _target_of_heads(tmp_path, head_dim, kv_heads)
    config = BuildConfig(str(target), tmp_path / "engine", arch="sm120", plugins=plugins)
    with pytest.raises(UsageError, match=f"head_dim {head_dim} is no multiple of 8") as caught:
        resolve_models(config)
    assert "--no-plugins" not in str(caught.value)
    resolve_models(replace(config, arch="cpu", plugins=None))


@pytest.mark.parametrize(("head_dim", "kv_heads"), [(72, 4), (100, 2), (16, 2)])
def test_heads_that_the_compiler_compiles_itself(
    head_dim: int, kv_heads: int, tmp_path: Path
) -> None:
    target = _target_of_heads(tmp_path, head_dim, kv_heads)
    config = BuildConfig(str(target), tmp_path / "engine", arch="sm120")
    with pytest.raises(UsageError, match=f"head_dim {head_dim}, only for .*--no-plugins"):
        resolve_models(config)
    resolve_models(replace(config, plugins=False))


def _target_of_heads(path: Path, head_dim: int, kv_heads: int) -> Path:
    """Write a one-layer Llama of 4 query heads."""
    source = tiny_target(path / "source", num_layers=1, head_dim=head_dim)
    config = json.loads((source / "config.json").read_text())
    tensors = read_tensors(source / "model.safetensors")
    if kv_heads == 4:
        for name in ("k_proj", "v_proj"):
            weight = f"model.layers.0.self_attn.{name}.weight"
            tensors[weight] = np.concatenate([tensors[weight]] * 2)
    directory = path / "target"
    directory.mkdir()
    write_safetensors(directory / "model.safetensors", tensors)
    config["num_key_value_heads"] = kv_heads
    (directory / "config.json").write_text(json.dumps(config))
    return directory


DELTA = LinearAttentionConfig(16, 48, 128, 128, 4, fused_projections=False)


@pytest.mark.parametrize(
    ("changes", "block_size", "words"),
    [
        ({"key_dim": 64}, 16, "key_dim is 64, expected 128; give --no-plugins"),
        ({"value_dim": 96}, 16, "value_dim is 96, expected 128; give --no-plugins"),
        ({"conv_kernel": 3}, 16, "conv_kernel is 3, expected 4; give --no-plugins"),
        ({}, 400, r"a block of 400 tokens and 48 value heads need \d+ bytes of shared memory"),
    ],
)
def test_gated_delta_nets_without_a_kernel(
    changes: dict[str, int], block_size: int, words: str
) -> None:
    """The operator's body takes them all, so --no-plugins is the way out."""
    found = published_target("Qwen/Qwen3.6-27B")
    assert found is not None
    sizes = {"expert_formats": (), "block_size": 16}
    check_kernels({"target": replace(found.config, linear_attention=DELTA)}, **sizes)
    other = replace(found.config, linear_attention=replace(DELTA, **changes))
    with pytest.raises(UsageError, match=f"no kernel for the target's gated delta .* {words}"):
        check_kernels({"target": other}, **sizes | {"block_size": block_size})
