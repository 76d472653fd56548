"""How much context a step asks for, how many threads it gets, and which engines can run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime.fake_session import fake_config
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.hardware import backends
from trtllm_dflash.hardware.doctor import Gpu
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.env import env_flag
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.sessions import base
from trtllm_dflash.runtime.sessions.base import context_length, open_session
from trtllm_dflash.runtime.threads import available_cores, resolve_num_threads


@pytest.mark.parametrize(
    ("past_len", "width", "block_size", "expected"),
    [
        ([0], 1, 1, 64),
        ([63], 1, 1, 64),
        ([64], 1, 1, 128),
        ([52], 8, 4, 64),
        ([53], 8, 4, 128),
        ([3, 110, 7], 4, 4, 128),
        ([190], 5, 5, 200),  # never more than the cache has
    ],
)
def test_context_is_the_longest_past_in_whole_buckets(
    past_len: list[int], width: int, block_size: int, expected: int
) -> None:
    past = np.array(past_len, np.int32)
    sizes = replace(fake_config(), block_size=block_size, cache_len=200, max_num_tokens=8)
    assert context_length(past, width, sizes) == expected


def test_context_beyond_the_cache() -> None:
    past = np.array([190], np.int32)
    words = r"a step of width 8 at position 190 needs 202 cache rows, and this engine has 200\."
    with pytest.raises(EngineError, match=words):
        context_length(
            past, 8, replace(fake_config(), block_size=4, cache_len=200, max_num_tokens=8)
        )


def test_context_beyond_the_rings() -> None:
    words = (
        "a step of width 9 is wider than max_num_tokens, 8, for which this engine's caches were"
        " made"
    )
    with pytest.raises(EngineError, match=words):
        context_length(np.array([0], np.int32), 9, replace(fake_config(), max_num_tokens=8))


RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "sm120", 34_000_000_000)
CANNOT = (
    r"built with {} for {} and cannot run here: {}\. Build one with --arch cpu .*; dflash-trt"
    r" doctor shows"
)


@pytest.mark.parametrize(
    ("backend", "arch", "gpus", "reason"),
    [
        ("tensorrt_rtx", "sm120", [], "it needs a GPU of sm120, and here is: no GPU"),
        (
            "tensorrt_rtx",
            "sm120",
            "none: no driver",
            "it needs a GPU of sm120, and here is: none: no driver",
        ),
        (
            "tensorrt_rtx",
            "sm89",
            [RTX_5090],
            r"it needs a GPU of sm89, and here is: NVIDIA GeForce RTX 5090 \(sm120, 34\.0 GB\)",
        ),
        ("tensorrt", "sm100", [], "it needs a GPU of sm100, and here is: no GPU"),
        ("onnxruntime", "sm100", [], "this version of dflash-trt knows no such engines"),
        ("other", "sm75", [], "this version of dflash-trt knows no such engines"),
    ],
)
def test_engine_that_cannot_run_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    arch: str,
    gpus: list[Gpu] | str,
    reason: str,
) -> None:
    monkeypatch.setattr(base, "cuda_gpus", lambda: gpus)
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    config = replace(fake_config(), backend=backend, gpu_arch=arch)
    with pytest.raises(EngineError, match=CANNOT.format(backend, arch, reason)):
        open_session(tmp_path, config)


def test_backend_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "cuda_gpus", lambda: [RTX_5090])
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(
        EngineError, match=r"TensorRT-RTX is not installed: pip install '\.\[rtx\]' in the"
    ):
        open_session(tmp_path, replace(fake_config(), backend="tensorrt_rtx", gpu_arch="sm120"))


def test_any_gpu_switch_tries_another_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DFLASH_ANY_GPU=1 opens the session on whatever GPU there is; without a GPU it changes
    nothing.
    """
    opened: list[Path] = []
    monkeypatch.setitem(base.SESSIONS, "tensorrt_rtx", f"{__name__}:_opened")
    monkeypatch.setattr(
        base,
        "import_module",
        lambda _: SimpleNamespace(_opened=lambda path, *_, **__: opened.append(path)),
    )
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    monkeypatch.setenv("DFLASH_ANY_GPU", "1")
    config = replace(fake_config(), backend="tensorrt_rtx", gpu_arch="sm89")
    monkeypatch.setattr(base, "cuda_gpus", lambda: [RTX_5090])
    open_session(tmp_path, config)
    assert opened == [tmp_path]
    monkeypatch.setattr(base, "cuda_gpus", list)
    with pytest.raises(EngineError, match="and here is: no GPU"):
        open_session(tmp_path, config)


@pytest.mark.parametrize(("text", "expected"), [("", True), ("1", True), ("0", False)])
def test_switches(text: str, expected: bool) -> None:
    assert (
        env_flag("DFLASH_CUDA_GRAPH", default=True, environment={"DFLASH_CUDA_GRAPH": text})
        is expected
    )
    assert env_flag("DFLASH_CUDA_GRAPH", default=expected, environment={}) is expected


def test_switch_with_a_wrong_value() -> None:
    with pytest.raises(
        UsageError, match=r"DFLASH_CUDA_GRAPH is 'off', expected 1 \(on\) or 0 \(off\)"
    ):
        env_flag("DFLASH_CUDA_GRAPH", default=True, environment={"DFLASH_CUDA_GRAPH": "off"})


def test_threads_come_from_argument_then_variable_then_cores() -> None:
    assert resolve_num_threads(3, {"DFLASH_NUM_THREADS": "5"}) == 3
    assert resolve_num_threads(None, {"DFLASH_NUM_THREADS": "5"}) == 5
    assert (
        resolve_num_threads(None, {})
        == resolve_num_threads(None, {"DFLASH_NUM_THREADS": ""})
        == available_cores()
    )


@pytest.mark.parametrize(
    ("value", "quoted"), [("0", "0"), ("-1", "'-1'"), ("two", "'two'"), ("1.5", "'1.5'")]
)
def test_bad_thread_variable(value: str, quoted: str) -> None:
    words = f"DFLASH_NUM_THREADS is {quoted}, expected an integer from 1 to 1024"
    with pytest.raises(UsageError, match=words):
        resolve_num_threads(None, {"DFLASH_NUM_THREADS": value})


@pytest.mark.parametrize("value", [0, -1, True])
def test_bad_thread_argument(value: int) -> None:
    with pytest.raises(
        UsageError, match=f"num_threads is {value}, expected an integer from 1 to 1024"
    ):
        resolve_num_threads(value, {})


def test_hyper_threads_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    for processor, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}.items():
        topology = tmp_path / f"cpu{processor}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings)
    no_quota = tmp_path / "cpu.max"
    assert available_cores(tmp_path, no_quota) == 2
    assert available_cores(tmp_path / "unknown", no_quota) == 4


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("900000 100000", 4),
    ],
)
def test_container_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores(tmp_path, tmp_path / "cpu.max") == cores


def test_kernels_without_a_sampling_input_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel reads the address of every sampling input, so it must know the same ones."""
    monkeypatch.setattr(base, "unrunnable_here", lambda _: None)
    config = replace(fake_config(), plugins=True)
    earlier = replace(config, io=config.io[:-1])
    with pytest.raises(EngineError, match=r"earlier version of dflash-trt.* Build it again"):
        open_session(Path("engine"), earlier)


def test_sampling_option_unknown_to_the_engine_is_refused() -> None:
    """An engine for the CPU of an earlier version works on, without the new option."""
    config = fake_config()
    earlier = replace(config, io=config.io[1:])
    assert make_requests([[1]], SamplingParams(), earlier)
    with pytest.raises(
        UsageError, match=r"temperature is 0\.5, and this engine was built by a"
    ):
        make_requests([[1]], SamplingParams(temperature=0.5), earlier)
