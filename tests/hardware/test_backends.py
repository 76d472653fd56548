"""What cannot be built is refused by name, before any work, with what to install."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.house.rules import ROOT
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
from trtllm_dflash.hardware.module_probe import ImportedModule, probe_module
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


def pretend_installed(
    monkeypatch: pytest.MonkeyPatch, version: str = "", failure: str | None = None
) -> None:
    """Let every backend be installed, by default in the release that it needs."""
    releases = {backend.module: backend.release for backend in backends.BACKENDS.values()}
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    monkeypatch.setattr(
        backends,
        "probe_module",
        lambda name: ImportedModule(version or f"{releases[name]}.1", failure),
    )


def test_a_backend_of_another_release_is_refused_first(
    config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.6.1", "1.70.0", "2.7.0", "11.2.0"):
        pretend_installed(monkeypatch, version)
        words = rf"it needs TensorRT-RTX 1.7, and here is {version}: pip install"
        with pytest.raises(BuildError, match=words):
            build_engine(config(target="nowhere", arch="sm120", plugins=False))
    assert unbuildable_reason(ARCHS["cpu"]) is None  # ONNX Runtime's release is open
    for version in ("1.7", "1.7.1.116"):
        pretend_installed(monkeypatch, version)
        assert unbuildable_reason(ARCHS["sm120"], plugins=False) is None


def test_a_backend_that_cannot_be_imported_is_refused_first(
    config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(monkeypatch, failure="ImportError: libx.so: cannot open")
    words = (
        r"tensorrt_rtx of TensorRT-RTX is installed and cannot be imported \(ImportError: libx"
    )
    with pytest.raises(BuildError, match=words):
        build_engine(config(target="nowhere", arch="sm120"))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("__version__ = '1.7.1'; print('noise')", ("1.7.1", None)),
        ("", ("", None)),
        ("raise ImportError('libx.so is missing')", ("", "ImportError: libx.so is missing")),
        ("import os; os.abort()", ("", "its process said nothing (it ended with SIGABRT)")),
        ("raise SystemExit(3)", ("", "its process said nothing (it ended with status 3)")),
    ],
)
def test_a_module_is_tried_in_a_process_of_its_own(
    code: str, found: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tried.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    probe_module.cache_clear()
    assert probe_module("tried") == ImportedModule(*found)


def test_releases_are_those_that_the_extras_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for backend in backends.BACKENDS.values():
        if backend.extra:
            wanted = project["optional-dependencies"][backend.extra]
            assert f"{backend.package}=={backend.release}.*" in wanted


def test_another_module_named_cuda_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def shadowed(_: str) -> None:
        raise ModuleNotFoundError("__path__ attribute not found on 'cuda'")

    monkeypatch.setattr(kernel_compiler, "find_spec", shadowed)
    reason = kernel_compiler.uncompilable_reason()
    assert reason is not None
    assert "cannot be imported (ModuleNotFoundError: __path__ attribute" in reason
    assert "If another module is named cuda" in reason


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
    pretend_installed(monkeypatch)
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
    pretend_installed(monkeypatch)
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
    fp8 = config(arch="sm120", kv_cache_dtype="fp8")  # which need kernels as well
    with pytest.raises(UsageError, match="give --no-plugins --kv-cache-dtype bfloat16, and"):
        resolve_models(fp8, fetch=False)
    rows = dict(summary_rows(resolve_models(config(arch="sm120", plugins=False))))
    assert rows["kernels"] == "the compiler's own"
    assert rows["rings"].startswith(
        "none for the 2 layers with a window: the compiler by itself updates none in place"
    )
    assert "kernels" not in dict(summary_rows(resolve_models(config())))
