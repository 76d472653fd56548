"""What cannot be built is refused by name, before any work, with what to install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trtllm_dflash.build import backends
from trtllm_dflash.build.backends import require_buildable, why_not_buildable
from trtllm_dflash.build.engine import build_engine
from trtllm_dflash.build.prepare import prepare
from trtllm_dflash.config.build import ARCHS, BuildConfig
from trtllm_dflash.errors import BuildError, UsageError
from trtllm_dflash.plugins import compile as kernels


@pytest.mark.parametrize("arch", ["sm90", "sm100", "sm103"])
def test_an_arch_of_the_full_tensorrt_is_refused_before_any_work(arch: str, tmp_path: Path) -> None:
    config = BuildConfig(
        target="no such directory: it must not even be looked for", output_dir=tmp_path / "e", arch=arch
    )
    words = (
        rf"--arch {arch} \(.*\) cannot be built here: .* needs the full TensorRT, on a machine with that GPU .*"
        r"nvcr.io/nvidia/tensorrt.* it builds for cpu, sm80, sm86, sm89, sm120, sm121"
    )
    with pytest.raises(BuildError, match=words):
        build_engine(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arch", "title", "module", "command"),
    [
        ("sm120", "TensorRT-RTX", "tensorrt_rtx", r'pip install "dflash-trt\[rtx\]"'),
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


def test_a_missing_kernel_compiler_is_refused_before_the_models_are_read(
    config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    words = (
        r"--arch sm89 \(.*\) cannot be built here: NVRTC needs cuda-bindings \(no module cuda.bindings\), which is not "
        r'installed here: pip install "dflash-trt\[rtx\]"; or build with --no-plugins, without our kernels'
    )
    with pytest.raises(BuildError, match=words):
        build_engine(config(target="nowhere", arch="sm89"))
    assert why_not_buildable(ARCHS["sm89"], plugins=False) is None
    assert why_not_buildable(ARCHS["cpu"]) is None


def test_what_is_installed_is_buildable() -> None:
    pytest.importorskip("onnxruntime")
    assert why_not_buildable(ARCHS["cpu"]) is None


def test_a_head_dim_without_a_kernel_is_refused_before_any_work(config: Callable[..., BuildConfig]) -> None:
    words = r"no attention kernel for the target's head_dim 16, only for 64, 96, 128, 256; give --no-plugins, and"
    with pytest.raises(UsageError, match=words):
        prepare(config(arch="sm120"))
    rows = dict(prepare(config(arch="sm120", plugins=False)).rows())
    assert rows["kernels"] == "the compiler's own"
    assert rows["rings"].startswith("none for the 2 layers with a window: the compiler by itself updates none in place")
    assert "kernels" not in dict(prepare(config()).rows())
