"""Compiled kernels in a folder: taken from there, and never those of another source."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from tests.plugins.cubins import ADJUST_KEY
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.trt_plugins import cubin_cache
from trtllm_dflash.trt_plugins.cubin_cache import CUBIN_CACHE, cached_kernel
from trtllm_dflash.trt_plugins.nvrtc import Cubin, compile_in_subprocess

LOOKUP_KEY = KernelVariant("lookup")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(CUBIN_CACHE, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[KernelVariant, str]]:
    """What is compiled, by a compiler that makes something up."""
    calls: list[tuple[KernelVariant, str]] = []

    def compile_kernel(key: KernelVariant, arch: str) -> Cubin:
        calls.append((key, arch))
        return Cubin(key, arch, f"code {len(calls)}".encode(), "log")

    monkeypatch.setattr(cubin_cache, "compile_kernel", compile_kernel)
    return calls


@pytest.mark.slow
def test_a_build_takes_what_another_has_compiled(folder: Path) -> None:
    first = compile_in_subprocess(ADJUST_KEY, "sm120")
    (code,) = folder.glob("*.cubin")
    assert code.read_bytes() == first.code
    code.write_bytes(b"of the folder")
    again = compile_in_subprocess(ADJUST_KEY, "sm120")
    assert (again.code, again.log) == (b"of the folder", first.log)


def test_kernels_arches_and_sources_have_their_own(
    folder: Path, compiled: list[tuple[KernelVariant, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [(ADJUST_KEY, "sm120"), (ADJUST_KEY, "sm121"), (LOOKUP_KEY, "sm120")]
    codes = [cached_kernel(*one).code for one in wanted]
    assert [cached_kernel(*one).code for one in wanted] == codes
    assert compiled == wanted
    monkeypatch.setattr(cubin_cache, "source_digest", lambda source: f"another {source}")
    assert cached_kernel(*wanted[0]).code == b"code 4"
    assert len(list(folder.iterdir())) == 8  # four kernels and their logs, nothing else


def test_without_a_folder_each_is_compiled(
    compiled: list[tuple[KernelVariant, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CUBIN_CACHE, "")
    cached_kernel(ADJUST_KEY, "sm120")
    cached_kernel(ADJUST_KEY, "sm120")
    assert len(compiled) == 2


def test_a_folder_that_is_a_file_is_refused(
    folder: Path, compiled: list[tuple[KernelVariant, str]]
) -> None:
    folder.write_bytes(b"a file")
    with pytest.raises(BuildError, match=f"{CUBIN_CACHE} names .*kept.*Name a folder"):
        cached_kernel(ADJUST_KEY, "sm120")
