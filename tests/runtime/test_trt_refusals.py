"""What the GPU session refuses, and the texts of the driver's and TensorRT's errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from tests.runtime.fake_cuda import FakeDriver, real
from tests.runtime.fake_gpu import GREEDY, Gpu, open_gpu
from tests.runtime.fake_trt import FakeEngine, FakeRuntime
from tests.runtime.fake_trt import real as real_trt
from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.sessions import trt_engine

__all__ = ["open_gpu"]  # a fixture


class TestTable:
    """The table in config.json is compared with what TensorRT says of the engine."""

    @pytest.mark.parametrize(
        ("method", "name", "answer", "words"),
        [
            (
                "get_tensor_dtype",
                "num_new",
                real_trt.DataType.INT64,
                "the type int64, .* int32",
            ),
            ("get_tensor_mode", "num_new", real_trt.TensorIOMode.INPUT, "the direction input"),
            ("get_tensor_shape", "noise_key", (-1, 7), r"the shape \[None, 7\]"),
            ("get_tensor_shape", "past_len", (-1, -1), r"the shape \[None, None\]"),
            ("get_aliased_input_tensor", "num_new", "past_len", "the alias past_len"),
            (
                "get_aliased_input_tensor",
                "target_key.0.out",
                "target_value.0",
                "the alias target_value.0, and config.json says target_key.0",
            ),
            (
                "get_tensor_profile_shape",
                "input_ids",
                [(1, 1), (1, 4), (2, 4)],
                r"at most the shape \[2, 4\] in profile 0, .* asks for width 8",
            ),
        ],
    )
    def test_differences_are_refused(
        self,
        open_gpu: Callable[..., Gpu],
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        name: str,
        answer: Any,
        words: str,
    ) -> None:
        right = getattr(FakeEngine, method)

        def wrong(engine: FakeEngine, asked: str, *rest: int) -> Any:
            return answer if asked == name else right(engine, asked, *rest)

        monkeypatch.setattr(FakeEngine, method, wrong)
        with pytest.raises(EngineError, match=rf"rank0\.engine: {name} has {words}"):
            open_gpu()

    def test_engine_may_leave_aliases_to_the_bindings(
        self, open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FakeEngine, "get_aliased_input_tensor", lambda *_: None)
        open_gpu()


class TestMisuse:
    """A caller's mistakes are errors before anything is written to a wrong place."""

    def test_more_steps_than_lookahead(self, open_gpu: Callable[..., Gpu]) -> None:
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prefill(0, np.array([3]))
        session.decode(1, 4)
        with pytest.raises(
            EngineError, match=r"2 steps are in flight, and no more may be: collect one first"
        ):
            session.decode(1, 4)

    def test_nothing_to_collect(self, open_gpu: Callable[..., Gpu]) -> None:
        with pytest.raises(
            EngineError, match="no step is in flight whose result could be collected"
        ):
            open_gpu().session.collect()

    def test_slot_moved_or_opened_during_a_step(self, open_gpu: Callable[..., Gpu]) -> None:
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prefill(0, np.array([3]))
        with pytest.raises(EngineError, match="a step is in flight while a slot is moved"):
            session.move_slot(0, 1)
        with pytest.raises(EngineError, match="slot 0 is opened while it is in a step"):
            session.open_slot(0, GREEDY)

    def test_prefill_in_a_slot_that_is_not_open(self, open_gpu: Callable[..., Gpu]) -> None:
        with pytest.raises(EngineError, match="slot 1 has a prompt and was not opened"):
            open_gpu().session.prefill(1, np.array([3]))

    def test_steps_beyond_the_caches(self, open_gpu: Callable[..., Gpu]) -> None:
        """Steps in flight count as if they had accepted everything."""
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prefill(0, np.array([3]))
        session.collect()
        session._lengths[0] = session._config.cache_len - 11
        session.decode(1, 4)
        with pytest.raises(EngineError, match=r"a step of width 4 at position .* cache rows"):
            session.decode(1, 4)


class TestFailures:
    """Failures of the driver and of TensorRT are EngineErrors that say what to do."""

    def test_no_driver(
        self, open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(*_: Any) -> None:
            raise RuntimeError("libcuda.so.1 is not here")

        monkeypatch.setattr(FakeDriver, "cuInit", missing)
        with pytest.raises(EngineError, match=r"NVIDIA driver .*\(libcuda.*doctor"):
            open_gpu()

    def test_no_gpu(
        self, open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status = real.CUresult.CUDA_ERROR_NO_DEVICE
        monkeypatch.setattr(FakeDriver, "cuInit", lambda *_: (status,))
        with pytest.raises(
            EngineError,
            match=r"cuInit failed: CUDA_ERROR_NO_DEVICE \(100: .*\)\. No GPU is visible",
        ):
            open_gpu()

    def test_too_little_memory(self, open_gpu: Callable[..., Gpu]) -> None:
        words = (
            r"failed to allocate .* of GPU memory for 3 × \S+: CUDA_ERROR_OUT_OF_MEMORY \(2: .*\);"
            r" .* are free\. Free GPU memory, .*--max-batch-size"
        )
        with pytest.raises(EngineError, match=words):
            open_gpu(memory=40_000)

    def test_engine_for_another_gpu(self, open_gpu: Callable[..., Gpu]) -> None:
        reasons = trt_engine.trt.EngineInvalidityDiagnostics
        words = (
            r"rank0\.engine: TensorRT-RTX [\d.]+ cannot load this engine \(unsupported cc\)\. It"
            r" was built for sm120 with TensorRT-RTX 1\.6\.0, and this GPU is sm90\. Build it for"
            r" sm90, or run it on a GPU of sm120:(.|\n)*no such engine here"
        )
        with pytest.raises(EngineError, match=words):
            open_gpu(invalid=int(reasons.UNSUPPORTED_CC.value), capability=(9, 0))

    def test_engine_of_another_version(self, open_gpu: Callable[..., Gpu]) -> None:
        reasons = trt_engine.trt.EngineInvalidityDiagnostics
        with pytest.raises(
            EngineError,
            match=r"\(version mismatch\).*, or pip install tensorrt-rtx-cu13==1\.6\.0",
        ):
            open_gpu(invalid=int(reasons.VERSION_MISMATCH.value))

    @pytest.mark.parametrize(
        ("log", "version", "words"),
        [
            (
                "(cudaError 35: CUDA driver version is insufficient)",
                13000,
                "older than the CUDA",
            ),
            ("(cudaError 803: system has unsupported)", 13000, "are of different drivers"),
            ("CUDA error 999", 13000, "nvidia-uvm"),
            ("no such engine", 12040, "the driver is for CUDA 12.4, .* needs .* 13.0 or newer"),
            ("no such engine", 13000, "Both agree, so the file or the driver is at fault"),
        ],
    )
    def test_same_arch_and_version_point_elsewhere(
        self,
        open_gpu: Callable[..., Gpu],
        monkeypatch: pytest.MonkeyPatch,
        log: str,
        version: int,
        words: str,
    ) -> None:
        def fail(runtime: FakeRuntime, _: Any) -> None:
            runtime._log.log(real_trt.ILogger.ERROR, log)

        monkeypatch.setattr(FakeRuntime, "deserialize_cuda_engine", fail)
        with pytest.raises(EngineError, match=words) as caught:
            open_gpu(version=version, built_with=real_trt.__version__)
        assert "pip install" not in str(caught.value)
        assert "uild it again here" not in str(caught.value)
        assert "river" in str(caught.value).split(log)[0]

    @pytest.mark.parametrize("log", ["(cudaError 2: out of memory)", "OutOfMemory"])
    def test_memory_too_small_to_load(
        self, open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch, log: str
    ) -> None:
        def fail(runtime: FakeRuntime, _: Any) -> None:
            runtime._log.log(real_trt.ILogger.ERROR, log)

        monkeypatch.setattr(FakeRuntime, "deserialize_cuda_engine", fail)
        with pytest.raises(EngineError, match=r"is sm120\. Free GPU memory, or build with"):
            open_gpu(built_with=real_trt.__version__)

    def test_kernel_that_fails(self, open_gpu: Callable[..., Gpu]) -> None:
        gpu = open_gpu()
        gpu.driver.fail["cuEventSynchronize"] = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        words = (
            r"cuEventSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS \(700.*A kernel is at fault"
        )
        with pytest.raises(EngineError, match=words):
            gpu.engine.generate([[3]])

    def test_refused_shape(self, open_gpu: Callable[..., Gpu]) -> None:
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prefill(0, np.arange(8))
        session.collect()
        with pytest.raises(
            EngineError, match=r"refuses shape \(1, 5\) of input_ids:\n  shape .* is outside"
        ):
            session.decode(1, 5)
        session.decode(1, 4)  # what failed has left nothing in flight
        session.collect()

    def test_graph_whose_capture_fails(self, open_gpu: Callable[..., Gpu]) -> None:
        gpu = open_gpu()
        gpu.session.open_slot(0, GREEDY)
        gpu.session.prefill(0, np.array([3]))
        gpu.session.collect()
        gpu.session.decode(1, 4)
        gpu.trt.contexts[-1]._settled = False
        with pytest.raises(
            EngineError, match=r"refuses the step:\n  memory would have to be allocated now"
        ):
            gpu.session.decode(1, 4)
        assert gpu.driver.captured is None
        gpu.session.discard()
