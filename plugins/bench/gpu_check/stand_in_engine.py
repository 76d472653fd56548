"""The whole step graph with our plugins on a GPU without TensorRT's runtime.

Between plugins ONNX Runtime works on the host, as host functions of the stream. What a session
allocates is therefore pinned host memory, which the GPU and the host address alike. It shows that
kernels, plugin class, session and CUDA graphs fit together, and nothing of speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from plugins.bench.gpu_check.rows import Check, SkippedError
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.hardware import cuda_driver
from trtllm_dflash.hardware.cuda_driver import load_driver
from trtllm_dflash.hardware.devices import cuda_gpus
from trtllm_dflash.trt.loader import import_tensorrt

_PAIRS = ("llama", "gpt_oss", "dflash2", "qwen3_5", "fp8")
_BUILT_FOR = "sm120"  # of tests/stand_in: what a session is told that its GPU is


class HostDriver:
    """The driver's functions, with pinned host memory in the place of device memory."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions

    def cuMemsetD8Async(  # noqa: N802 - the driver's name
        self, address: int, value: int, nbytes: int, stream: Any
    ) -> Any:
        """Copy zeros in the stream: the driver need not take host memory to set."""
        assert value == 0
        status, zeros = self._functions.cuMemAllocHost(nbytes)
        if int(status) != 0:
            return (status,)
        ctypes.memset(int(zeros), value, nbytes)
        return self._functions.cuMemcpyAsync(address, zeros, nbytes, stream)

    def __getattr__(self, name: str) -> Any:
        instead = {"cuMemAlloc": "cuMemAllocHost", "cuMemFree": "cuMemFreeHost"}
        return getattr(self._functions, instead.get(name, name))


def check_pairs(check: Check) -> None:
    """Check the tokens of small pairs against those of CPU engines that round alike."""
    try:
        import_tensorrt()
    except DFlashError as error:
        raise SkippedError(f"the plugin class needs TensorRT-RTX's module: {error}") from error
    from tests.stand_in.agreement import parted
    from tests.stand_in.checks import GREEDY, PROMPTS
    from tests.stand_in.expected import expected_tokens
    from tests.stand_in.pairs import PAIRS, build_pair

    for name in _PAIRS[:1] if check.small else _PAIRS:
        with check.case(name) as figures, _kernels_for_this_gpu():
            engines = build_pair(name, check.folder / f"pair-{name}")
            expected = expected_tokens(engines.twin, PROMPTS, **GREEDY)
            for capture in (False, True):
                tokens = answers(
                    engines.gpu, PROMPTS, GREEDY | {"stop_token_ids": []}, capture=capture
                )
                parted(engines.twin, PROMPTS, tokens, expected, PAIRS[name].near)
            figures["tokens"] = sum(map(len, tokens))


def answers(
    directory: Path, prompts: list[list[int]], options: dict[str, Any], *, capture: bool
) -> list[list[int]]:
    """Return the tokens of an engine that tests/stand_in has built."""
    from tests.stand_in.small_trt import SmallTrt
    from trtllm_dflash.engine_dir.config import EngineConfig
    from trtllm_dflash.runtime.engine import Engine
    from trtllm_dflash.runtime.sessions import trt_engine
    from trtllm_dflash.runtime.sessions.trt import TrtSession

    small, functions = SmallTrt(), HostDriver(load_driver().types)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(trt_engine, "trt", small))
        stack.enter_context(mock.patch.object(cuda_driver, "_bindings", return_value=functions))
        config = EngineConfig.load(directory)
        session = TrtSession(directory, config, capture=capture)
        found = Engine(config, session).generate(prompts, **options)
    if small.failures:
        raise small.failures[0]
    return [answer.token_ids for answer in found]


@contextmanager
def _kernels_for_this_gpu() -> Iterator[None]:
    """Let the builder of tests/stand_in compile for this GPU, and sessions take it for theirs."""
    from tests.plugins.cubins import compiled
    from tests.stand_in import small_builder
    from trtllm_dflash.hardware.cuda import Cuda

    gpus = cuda_gpus()
    assert not isinstance(gpus, str), gpus
    arch = gpus[0].arch
    with ExitStack() as stack:
        for owner, name, value in (
            (small_builder, "compiled", lambda key, _: compiled(key, arch)),
            (Cuda, "arch", _BUILT_FOR),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
