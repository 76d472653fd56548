"""The door, and what TensorRT does otherwise than TensorRT-RTX: on stand-ins, since TensorRT is not
on PyPI.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
from trtllm_dflash.errors import BuildError, EngineError
from trtllm_dflash.trt import flavors, loader


class Config:
    """A builder configuration of TensorRT that notes what it is told."""

    def __init__(self, *, takes_cache: bool = True) -> None:
        self.limits: dict[Any, int] = {}
        self.started_from: bytes | None = None
        self.takes_cache = takes_cache

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, data: bytes) -> Any:
        self.started_from = data
        return SimpleNamespace(serialize=lambda: b"new timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        del cache
        return self.takes_cache and not ignore_mismatch


def test_a_process_has_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_chosen", [])
    loader.select_flavor("tensorrt_rtx")
    loader.select_flavor("tensorrt_rtx")
    assert loader.flavor().title == "TensorRT-RTX"
    with pytest.raises(
        EngineError,
        match="has loaded tensorrt_rtx already, and an engine of tensorrt needs a process",
    ):
        loader.select_flavor("tensorrt")


def test_without_a_choice_it_is_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_chosen", [])
    assert loader.import_tensorrt().__name__ == "tensorrt_rtx"


def test_a_kind_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_chosen", ["tensorrt"])
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="the Python module tensorrt cannot be imported"):
        loader.import_tensorrt()


def test_every_importer_gets_the_selected_flavor(tmp_path: Path) -> None:
    """Run in a subprocess, with a stand-in `tensorrt` made from TensorRT-RTX."""
    (tmp_path / "tensorrt.py").write_text(
        "from tensorrt_rtx import *\nname_of_mine = 'mine'\n__version__ = '11.4'\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from trtllm_dflash.trt import loader\n"
        "loader.select_flavor('tensorrt')\n"
        "import trtllm_dflash.builder.trt as builder\n"
        "from trtllm_dflash.trt_plugins import plugin\n"
        "from trtllm_dflash.runtime.sessions import trt_engine\n"
        "assert builder.trt is plugin.trt is trt_engine.trt is loader.import_tensorrt()\n"
        "print(plugin.trt.name_of_mine, loader.flavor().title)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("mine TensorRT\n", "")


def test_timings_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "timings"
    first, second = Config(), Config()
    with flavors.TensorRT().configure_builder(first, ["sm100"], file):
        assert not file.exists()
    assert first.started_from == b""
    assert file.read_bytes() == b"new timings"
    with flavors.TensorRT().configure_builder(second, ["sm100"], file):
        pass
    assert second.started_from == b"new timings"
    assert list(first.limits.values()) == [flavors.WORKSPACE_BYTES]
    assert [path.name for path in tmp_path.iterdir()] == ["timings"]


def test_timings_that_are_empty_replace_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "timings"
    file.write_bytes(b"old timings")
    for nothing in (b"", None):
        config = Config()
        monkeypatch.setattr(
            config,
            "create_timing_cache",
            lambda _, said=nothing: SimpleNamespace(serialize=lambda: said),
        )
        with (
            pytest.raises(BuildError, match="has returned no timings, so the file stays as it"),
            flavors.TensorRT().configure_builder(config, ["sm100"], file),
        ):
            pass
    assert file.read_bytes() == b"old timings"
    assert [path.name for path in tmp_path.iterdir()] == ["timings"]


def test_timings_of_a_build_that_fails_are_not(tmp_path: Path) -> None:
    def fail() -> None:
        with flavors.TensorRT().configure_builder(Config(), ["sm100"], tmp_path / "timings"):
            raise BuildError("no")

    with pytest.raises(BuildError, match="no"):
        fail()
    assert not list(tmp_path.iterdir())


def test_no_timings_unless_asked() -> None:
    config = Config()
    with flavors.TensorRT().configure_builder(config, ["sm90"], None):
        pass
    assert config.started_from is None


@pytest.mark.parametrize(
    ("archs", "takes_cache", "words"),
    [
        (["sm90", "sm100"], True, "the one GPU that it runs on, and not for sm90, sm100"),
        (["sm90"], False, r"--timing-cache .* was made on another GPU or by another TensorRT"),
    ],
)
def test_what_cannot_be_is_refused(
    archs: list[str], takes_cache: bool, words: str, tmp_path: Path
) -> None:
    context = flavors.TensorRT().configure_builder(
        Config(takes_cache=takes_cache), archs, tmp_path / "timings"
    )
    with pytest.raises(BuildError, match=words), context:
        pass


def test_a_context_of_tensorrt_has_no_memory_of_its_own() -> None:
    made: list[Any] = []
    engine: Any = SimpleNamespace(create_execution_context=made.append)
    contexts = flavors.TensorRT().contexts(engine, b"kernels")
    for fixed_shapes in (True, False):
        contexts.make(fixed_shapes=fixed_shapes)
    assert (contexts.takes_kept, contexts.finished_kernels()) == (False, b"")
    assert made == [flavors.full.ExecutionContextAllocationStrategy.USER_MANAGED] * 2
    assert flavors.TensorRT().is_capturable(None, 0)
    assert flavors.TensorRT().diagnose_engine(None, b"") == ""
