"""Kernels that TensorRT-RTX has finished are kept for the next start; only good ones are used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")

from tests.runtime.fake_gpu import Gpu, open_gpu
from tests.runtime.stated_engine import StatedKernels
from trtllm_dflash.engine_dir.replacing import recognize_engine
from trtllm_dflash.runtime.sessions.kernel_cache import KernelCache

__all__ = ["open_gpu"]  # a fixture
FACTS = {"engine": "aa", "TensorRT-RTX": "1.7", "gpu": "A GPU sm120", "driver": "13.0"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "dflash-trt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "of an engine"
    made.mkdir()
    return made


def kept_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernels-*.cache"))


class TestFile:
    def test_kernels_come_back(self, folder: Path, home: Path) -> None:
        assert KernelCache(folder, FACTS).read() is None
        KernelCache(folder, FACTS).write(b"kernels")
        assert KernelCache(folder, FACTS).read() == b"kernels"
        assert len(kept_in(folder)) == 1
        assert not home.exists()

    @pytest.mark.parametrize("fact", FACTS)
    def test_other_facts_have_another_file(self, folder: Path, fact: str) -> None:
        KernelCache(folder, FACTS).write(b"kernels")
        others = KernelCache(folder, FACTS | {fact: "another"})
        assert others.read() is None
        others.write(b"others")
        assert KernelCache(folder, FACTS).read() == b"kernels"
        assert len(kept_in(folder)) == 2

    def test_folder_that_takes_no_files(self, tmp_path: Path, home: Path) -> None:
        """A file in the folder's place stands for a mount that is read-only: tests may be root."""
        (tmp_path / "no folder").touch()
        KernelCache(tmp_path / "no folder", FACTS).write(b"kernels")
        assert KernelCache(tmp_path / "no folder", FACTS).read() == b"kernels"
        assert len(kept_in(home)) == 1

    def test_nowhere_to_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        KernelCache(tmp_path / "file", FACTS).write(b"kernels")
        assert "so the next start takes as long: " in caplog.text
        assert caplog.text.count("kernels-") == 2

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:0],
            lambda data: data[:-1],
            lambda data: data + b"x",
            lambda data: data[:-3] + b"x" + data[-2:],
            lambda data: data[:20],
            lambda data: b"x" + data[1:],
            lambda data: data[:-7],
        ],
    )
    def test_damaged_file_is_not_used(
        self,
        folder: Path,
        caplog: pytest.LogCaptureFixture,
        damage: Callable[[bytes], bytes],
    ) -> None:
        KernelCache(folder, FACTS).write(b"kernels")
        (path,) = kept_in(folder)
        path.write_bytes(damage(path.read_bytes()))
        cache = KernelCache(folder, FACTS)
        assert cache.read() is None
        assert f"{path} is damaged and not used" in caplog.text
        cache.write(b"kernels")
        assert KernelCache(folder, FACTS).read() == b"kernels"

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    def test_no_file_in_its_place(self, folder: Path, make: Callable[[Path], None]) -> None:
        KernelCache(folder, FACTS).write(b"kernels")
        (path,) = kept_in(folder)
        path.unlink()
        make(path)
        assert KernelCache(folder, FACTS).read() is None

    def test_same_kernels_are_not_written_again(self, folder: Path) -> None:
        cache = KernelCache(folder, FACTS)
        cache.write(b"kernels")
        (path,) = kept_in(folder)
        before = path.stat().st_ino
        cache.write(b"kernels")
        assert path.stat().st_ino == before
        cache.write(b"more kernels")
        assert path.stat().st_ino != before

    def test_without_a_home(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def nowhere() -> Path:
            raise RuntimeError("no home")

        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setattr(Path, "home", nowhere)
        KernelCache(folder, FACTS).write(b"kernels")
        assert KernelCache(folder, FACTS).read() == b"kernels"


class TestSession:
    def test_next_start_finds_them(self, open_gpu: Callable[..., Gpu], tmp_path: Path) -> None:
        blobs = self._record(open_gpu())
        assert len(blobs) == 1
        assert b"'input_ids', (1, 4)" in blobs[0]
        again = open_gpu()
        assert again.trt.contexts[0]._kernels.serialize() == blobs[0]
        (path,) = kept_in(tmp_path / "engine")
        assert path.name in recognize_engine(tmp_path / "engine").files

    def test_kernels_of_a_warm_up_are_kept_at_once(
        self, open_gpu: Callable[..., Gpu], tmp_path: Path
    ) -> None:
        gpu = open_gpu(warm_up=True)
        assert len(kept_in(tmp_path / "engine")) == 1
        finished = gpu.trt.contexts[0]._kernels.serialize()
        assert b"'input_ids', (3, 4)" in finished
        assert open_gpu().trt.contexts[0]._kernels.serialize() == finished

    def test_another_driver_finishes_its_own(
        self, open_gpu: Callable[..., Gpu], tmp_path: Path
    ) -> None:
        self._record(open_gpu())
        again = open_gpu(version=13010)
        assert again.trt.contexts[0]._kernels.serialize() == StatedKernels.KIND
        again.engine.generate([[3]], max_tokens=2, stop_token_ids=[])
        again.engine.close()
        assert len(kept_in(tmp_path / "engine")) == 2

    def test_what_tensorrt_does_not_take(
        self,
        open_gpu: Callable[..., Gpu],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        self._record(open_gpu())
        monkeypatch.setattr(StatedKernels, "KIND", b"of another make")
        gpu = open_gpu()
        assert "its finished kernels are of another GPU or driver and not used" in caplog.text
        assert len(gpu.engine.generate([[3]], max_tokens=2, stop_token_ids=[])) == 1

    def test_switched_off(
        self, open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("DFLASH_KERNEL_CACHE", "0")
        assert self._record(open_gpu()) == []
        assert kept_in(tmp_path / "engine") == []

    def test_close_after_the_gpu_has_failed(
        self, open_gpu: Callable[..., Gpu], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        gpu = open_gpu()
        gpu.engine.generate([[3]], max_tokens=2, stop_token_ids=[])
        gpu.driver.fail["cuCtxSetCurrent"] = gpu.driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        gpu.engine.close()
        assert caplog.text == ""

    def _record(self, gpu: Gpu) -> list[bytes]:
        """Answer a prompt, close the engine, and return what was kept."""
        written: list[bytes] = []
        cache: Any = gpu.session._engine._kernels
        if cache is not None:
            write = cache.write
            cache.write = lambda data: (written.append(data), write(data))
        gpu.engine.generate([[3, 4]], max_tokens=12, stop_token_ids=[])
        gpu.engine.close()
        return written
