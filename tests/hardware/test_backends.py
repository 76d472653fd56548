"""What cannot be built is refused by name, before any work, with what to install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.checkpoint import locate
from trtllm_dflash.cli import main
from trtllm_dflash.errors import BuildError, UsageError
from trtllm_dflash.hardware import backends, kernel_compiler
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import require_buildable, unbuildable_reason
from trtllm_dflash.hardware.devices import Gpu
from trtllm_dflash.options.build import BuildConfig


@pytest.mark.parametrize("arch", ["sm90", "sm100", "sm103"])
def test_an_arch_of_the_full_tensorrt_is_refused_before_any_work(
    arch: str, tmp_path: Path
) -> None:
    config = BuildConfig(
        target="no such directory: it must not even be looked for",
        output_dir=tmp_path / "e",
        arch=arch,
    )
    with pytest.raises(BuildError) as caught:
        build_engine(config)
    text = str(caught.value)
    assert text.startswith(f"--arch {arch} (")
    for words in (
        "it needs TensorRT, which is not installed here (no module tensorrt)",
        "nvcr.io/nvidia/tensorrt",
        "compiles only for the GPU that it runs on, and here is: ",
        f"--dry-run shows here what an engine for {arch} would need",
        "can be built here for --arch cpu, sm80, sm86, sm89, sm120, sm121",
    ):
        assert words in text
    assert len(text) < 24 * 80  # one screen
    assert not list(tmp_path.iterdir())


H200, H100 = (
    Gpu("NVIDIA H200", "sm90", 150_000_000_000),
    Gpu("NVIDIA H100", "sm90", 85_000_000_000),
)


@pytest.mark.parametrize(
    ("arch", "gpus", "words"),
    [
        ("sm90", [H100, H200], None),
        ("sm100", [H200], "on, and here is: NVIDIA H200 (sm90, 150.0 GB)"),
        ("sm103", [], "on, and here is: no GPU"),
        ("sm90", "none: no driver", "on, and here is: none: no driver"),
    ],
)
def test_tensorrt_builds_only_for_the_gpu_that_is_here(
    arch: str, gpus: list[Gpu] | str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    monkeypatch.setattr(backends, "cuda_gpus", lambda: gpus)
    reason = unbuildable_reason(ARCHS[arch], plugins=False)
    if words is None:
        assert reason is None
        assert require_buildable(ARCHS[arch], plugins=False).title == "TensorRT"
    else:
        assert reason is not None
        assert words in reason
        assert "not installed" not in reason
        assert unbuildable_reason(ARCHS["sm120"], plugins=False) is None


@pytest.mark.parametrize("path", ["", "nowhere/timings"])
def test_an_unwritable_timing_cache_is_refused_first(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    monkeypatch.setattr(backends, "cuda_gpus", lambda: [H200])
    config = BuildConfig(
        "nowhere", tmp_path / "e", arch="sm90", plugins=False, timing_cache=str(tmp_path / path)
    )
    with pytest.raises(
        UsageError, match=r"--timing-cache .*: give a file in a folder that exists"
    ):
        build_engine(config)
    with pytest.raises(
        UsageError,
        match=r"--timing-cache is for TensorRT, and nothing is timed .* --arch sm120",
    ):
        BuildConfig(
            "nowhere", tmp_path / "e", arch="sm120", timing_cache=str(tmp_path / "timings")
        )


def test_the_command_explains_before_it_fetches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(locate, "_fetch", lambda *_, **__: pytest.fail("it fetched"))
    options = [
        "--target",
        "gpt-oss-120b",
        "--arch",
        "sm100",
        "--output-dir",
        str(tmp_path / "e"),
    ]
    result = CliRunner().invoke(main, ["build", *options])
    assert result.exit_code == 1
    assert "it needs TensorRT, which is not installed here" in result.stderr
    assert "Nothing was fetched" in result.stderr


@pytest.mark.parametrize(
    ("arch", "title", "module", "command"),
    [
        ("sm120", "TensorRT-RTX", "tensorrt_rtx", r"pip install '\.\[rtx\]' in the dflash"),
        ("cpu", "ONNX Runtime", "onnxruntime", "pip install onnxruntime"),
    ],
)
def test_a_missing_backend_is_refused_by_name(
    arch: str, title: str, module: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    words = rf"it needs {title}, which is not installed here \(no module {module}\): {command}"
    with pytest.raises(BuildError, match=words):
        require_buildable(ARCHS[arch])


def test_a_missing_backend_is_refused_before_the_models_are_read(
    config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(BuildError, match="TensorRT-RTX, which is not installed"):
        build_engine(config(target="nowhere", arch="sm89"))


def test_a_missing_kernel_compiler_is_refused_before_any_work(
    config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(kernel_compiler, "find_spec", lambda _: None)
    words = (
        r"--arch sm89 \(.*\) cannot be built here: NVRTC needs cuda-bindings \(no module"
        r" cuda.bindings\), which is not "
        r"installed here: pip install '\.\[rtx\]' in the dflash-trt repository; or build with"
        r" --no-plugins, without our kernels"
    )
    with pytest.raises(BuildError, match=words):
        build_engine(config(target="nowhere", arch="sm89"))
    assert unbuildable_reason(ARCHS["sm89"], plugins=False) is None
    assert unbuildable_reason(ARCHS["cpu"]) is None


def test_what_is_installed_is_buildable() -> None:
    pytest.importorskip("onnxruntime")
    assert unbuildable_reason(ARCHS["cpu"]) is None


def test_a_head_dim_without_a_kernel_is_refused_before_any_work(
    config: Callable[..., BuildConfig],
) -> None:
    words = (
        r"no attention kernel for the target's head_dim 16, only for 64, 96, 128, 256; give"
        r" --no-plugins, and"
    )
    with pytest.raises(UsageError, match=words):
        resolve_models(config(arch="sm120"))
    rows = dict(summary_rows(resolve_models(config(arch="sm120", plugins=False))))
    assert rows["kernels"] == "the compiler's own"
    assert rows["rings"].startswith(
        "none for the 2 layers with a window: the compiler by itself updates none in place"
    )
    assert "kernels" not in dict(summary_rows(resolve_models(config())))
