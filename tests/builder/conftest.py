"""A tiny pair on disk and the configuration that builds it; `built` is an engine of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.options.build import BuildConfig


@pytest.fixture(autouse=True)
def logs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the builders' logs, which outlive builds that fail."""
    directory = tmp_path_factory.mktemp("logs")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture(scope="module")
def two_at_once() -> Iterator[Executor]:
    """Runs builds of GPU engines, each a process of its own, while the tests look at those that are
    done.
    """
    with ThreadPoolExecutor(2) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def pair(make_target: Callable[..., Path], make_drafter: Callable[..., Path]) -> dict[str, str]:
    """The `target` and `drafter` arguments of a BuildConfig; the target has a tokenizer."""
    target = make_target("llama", tokenizer=True, eos_token_ids=(95,))
    return {"target": str(target), "drafter": str(make_drafter(target, variant="mixed"))}


@pytest.fixture
def config(pair: dict[str, str], tmp_path: Path) -> Callable[..., BuildConfig]:
    """`config(**changes)` -> BuildConfig of the tiny pair, into tmp_path/engine."""

    def make(**changes: Any) -> BuildConfig:
        small: dict[str, Any] = {
            "output_dir": tmp_path / "engine",
            "max_seq_len": 64,
            "max_batch_size": 2,
        }
        return BuildConfig(**(pair | small | changes))

    return make


@pytest.fixture(scope="session")
def cpu_engine(pair: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CPU engine of the tiny pair; not to be changed."""
    pytest.importorskip("onnxruntime")
    directory = tmp_path_factory.mktemp("engines") / "cpu"
    build_engine(
        BuildConfig(**pair, output_dir=directory, max_seq_len=64, max_batch_size=2),
        argv=["dflash-trt", "build"],
    )
    return directory


@pytest.fixture
def engine(cpu_engine: Path, tmp_path: Path) -> Path:
    """A copy of `cpu_engine`, to be damaged."""
    return Path(shutil.copytree(cpu_engine, tmp_path / "copy"))
