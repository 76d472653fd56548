"""The GPU session on a fake driver and a fake TensorRT, both as strict as the real ones may be.

The CPU engine's own graph takes the place of the engine, so tokens must equal the CPU session's. A
test module imports the fixture `open_gpu` from here; it is skipped where TensorRT-RTX is missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

from tests.runtime import fake_trt
from tests.runtime.fake_cuda import FakeDriver
from tests.runtime.fake_trt import FakeTrt
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.engine_dir.manifest import file_entry
from trtllm_dflash.hardware import cuda_driver
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions import trt_engine
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.runtime.sessions.trt import TrtSession

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], [6], list(range(20, 50)), [96, 96, 3]]
SAMPLED: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.01,
    "seed": 3,
}
GREEDY = SlotSampling()


@dataclass
class Gpu:
    """A session on a fake GPU, and the fakes that recorded its calls."""

    session: TrtSession
    engine: Engine
    driver: FakeDriver
    trt: FakeTrt


@pytest.fixture
def open_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built_engine: Path
) -> Callable[..., Gpu]:
    """`open_gpu(source=built_engine, with_plugins=True, eager=False, capture=True, …)`."""

    def open_it(
        source: Path = built_engine,
        *,
        with_plugins: bool = True,
        fp8_caches: bool = False,
        capture: bool | None = None,
        capturable: bool = True,
        invalid: int = 0,
        built_with: str = "1.6.0",
        warm_up: bool = False,
        draft_lens: Sequence[int] | None = None,
        prefix_bytes: int = 0,
        **driver_options: Any,
    ) -> Gpu:
        shutil.copytree(source, tmp_path / "engine", dirs_exist_ok=True)
        (tmp_path / "engine" / ENGINE_FILE).write_text(str(tmp_path / "engine"))
        facts = json.loads((source / "manifest.json").read_text())
        facts["versions"]["tensorrt-rtx-cu13"] = built_with
        facts["files"][ENGINE_FILE] = file_entry(tmp_path / "engine" / ENGINE_FILE)
        (tmp_path / "engine" / "manifest.json").write_text(json.dumps(facts))
        if with_plugins:
            (tmp_path / "engine" / "with_plugins").touch()
        driver = FakeDriver(**driver_options)
        trt = FakeTrt(driver, capturable=capturable, invalid=invalid)
        monkeypatch.setenv("DFLASH_WARM_UP", str(int(warm_up)))
        monkeypatch.setattr(cuda_driver, "_bindings", lambda: driver)
        monkeypatch.setattr(trt_engine, "trt", trt)
        config = EngineConfig.load(source)
        io_tensors = tuple(
            p for p in config.io if not (with_plugins and p.name == "kv_positions")
        )
        if fp8_caches:
            (tmp_path / "engine" / "fp8_caches").touch()
            io_tensors = fake_trt.with_fp8_caches(io_tensors)
        config = replace(
            config,
            io=io_tensors,
            backend="tensorrt_rtx",
            gpu_arch="sm120",
            plugins=with_plugins,
        )
        session = TrtSession(
            tmp_path / "engine",
            config,
            capture=capture,
            draft_lens=draft_lens,
            prefix_bytes=prefix_bytes,
        )
        return Gpu(session, Engine(config, session), driver, trt)

    return open_it


def tokens_of(engine: Engine, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Return the tokens of an engine's answers."""
    return [answer.token_ids for answer in engine.generate(prompts, **options)]
