"""Whole engines on the GPU: built by TensorRT-RTX, loaded, captured in CUDA graphs and not."""

from __future__ import annotations

import os
import statistics
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from plugins.bench.gpu_check.rows import Check, SkippedError
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.cuda_driver import load_driver
from trtllm_dflash.hardware.devices import cuda_gpus
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.env import ANY_GPU, CUDA_GRAPH
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.trt.loader import import_tensorrt, select_flavor

_PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], list(range(20, 50))]
_TOKENS = 30
# A fixed number of drafts: which one is chosen depends on times.
_SIZES = {"max_batch_size": 3, "max_seq_len": 192, "max_num_tokens": 16, "draft_len": 3}
_STEPS, _FIRST_STEPS = 40, 5
_OLDEST = "sm80"


def check_engines(check: Check, which: str) -> None:
    """Check a tiny pair's engine with our kernels, and one with bodies.

    `which`: "native", for this GPU's arch; "sm80", that of an A100 on whatever GPU this is.
    """
    arch = _arch(which)
    for plugins in (True, False):
        name = f"{arch}, {'our kernels' if plugins else 'bodies'}"
        directory = check.folder / f"engine-{arch}-{plugins}"
        built = False
        with check.case(f"{name}: build") as figures:
            start = perf_counter()
            _build(check.folder, directory, arch=arch, plugins=plugins)
            figures["seconds"] = perf_counter() - start
            built = True
        if built:
            check_directory(check, name, directory, must_load=which == "native")


def _arch(which: str) -> str:
    """Return the arch to build for, with its TensorRT imported."""
    gpus = cuda_gpus()
    assert not isinstance(gpus, str), gpus
    here = gpus[0].arch
    arch = _OLDEST if which == _OLDEST else here
    if arch not in ARCHS:
        raise SkippedError(f"no TensorRT has code for {arch}; engine-sm80 tries that of sm80")
    try:
        select_flavor(ARCHS[arch].backend)
        import_tensorrt()
    except DFlashError as error:
        needed = f"an engine for {arch} needs {ARCHS[arch].backend}"
        raise SkippedError(f"{needed}: {error}") from error
    if which == _OLDEST and here == _OLDEST:
        raise SkippedError("this GPU is sm80: engine-native has checked it")
    if which == _OLDEST:
        os.environ[ANY_GPU] = "1"
    return arch


def _build(folder: Path, directory: Path, *, arch: str, plugins: bool) -> None:
    from tests.fixtures.tiny_models import tiny_drafter, tiny_target
    from trtllm_dflash.builder.build_engine import build_engine

    target, drafter = folder / "tiny-target", folder / "tiny-drafter"
    if not target.exists():
        tiny_target(target, "qwen3", tied=True, head_dim=64, dtype="BF16")
        tiny_drafter(drafter, target, head_dim=64, dtype="BF16")
    options: dict[str, Any] = {"arch": arch, "plugins": plugins, **_SIZES}
    build_engine(BuildConfig(str(target), directory, drafter=str(drafter), **options))


def check_directory(check: Check, name: str, directory: Path, *, must_load: bool) -> None:
    """Check an engine: its tokens with CUDA graphs and without, its steps' times, and their gaps.

    A GPU that TensorRT-RTX refuses is a reason to skip where the engine need not load.
    """
    tokens: dict[str, list[list[int]]] = {}
    for flag, way in (("1", "captured"), ("0", "launched")):
        os.environ[CUDA_GRAPH] = flag
        loaded: list[Engine] = []
        with check.case(f"{name}: load, steps {way}") as figures:
            start = perf_counter()
            loaded.append(_load(directory, must_load=must_load))
            figures["seconds"] = perf_counter() - start
        if not loaded:
            return
        engine = loaded[0]
        with check.case(f"{name}: answers, steps {way}"):
            tokens[flag] = _answers(engine)
            if tokens[flag] != tokens["1"]:
                raise AssertionError(f"{tokens[flag]}, and captured {tokens['1']}")
        with check.case(f"{name}: a step, {way}") as figures:
            figures["microseconds"] = 1e6 * statistics.median(step_seconds(engine))
        with check.case(f"{name}: host gap between steps, {way}") as figures:
            figures["microseconds"] = 1e6 * statistics.median(gap_seconds(engine))


def _load(directory: Path, *, must_load: bool) -> Engine:
    try:
        return Engine.load(directory)
    except DFlashError as error:
        if must_load:
            raise
        raise SkippedError(f"this GPU does not load it: {error}") from error


def _answers(engine: Engine) -> list[list[int]]:
    answers = engine.generate(_PROMPTS, max_tokens=_TOKENS, stop_token_ids=[])
    return [answer.token_ids for answer in answers]


def _begin(engine: Engine) -> Any:
    """Return the engine's session with a prompt in its first slot, and nothing in flight."""
    session = engine._session
    session.open_slot(0, SlotSampling())
    session.prefill(0, np.array([3]))
    session.collect()
    return session


def step_seconds(engine: Engine) -> list[float]:
    """Return the times of steps that the host waits for, one after the other."""
    session = _begin(engine)
    times = []
    for _ in range(_STEPS):
        start = perf_counter()
        session.decode(1, 1)
        session.collect()
        times.append(perf_counter() - start)
    return times[_FIRST_STEPS:]


def gap_seconds(engine: Engine) -> list[float]:
    """Return how long the stream is idle between two steps, with one step in flight ahead.

    The GPU's own clock is read behind a step and before the next. It counts what launches cost.
    """
    session = _begin(engine)
    driver = load_driver()
    stream = session._cuda.stream
    events: list[tuple[Any, Any]] = []

    def enqueue() -> None:
        pair = tuple(driver.call("cuEventCreate", 0) for _ in range(2))
        driver.call("cuEventRecord", pair[0], stream)
        session.decode(1, 1)
        driver.call("cuEventRecord", pair[1], stream)
        events.append((pair[0], pair[1]))

    enqueue()
    for _ in range(_STEPS - 1):
        enqueue()
        session.collect()
    session.collect()
    gaps = [
        driver.call("cuEventElapsedTime", before[1], after[0]) / 1e3
        for before, after in pairwise(events)
    ]
    for pair in events:
        for event in pair:
            driver.call("cuEventDestroy", event)
    return gaps[_FIRST_STEPS:]
