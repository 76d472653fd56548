"""What tests let the GPU path do in the stand-in driver's process; reports are plain data."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.runtime.stated_engine import StatedEngine
from tests.stand_in.driver import ILLEGAL_ADDRESS, Driver, Setup
from tests.stand_in.process import driver
from tests.stand_in.small_trt import Placed, SmallTrt
from tests.stand_in.traces import Trace, trace
from trtllm_dflash import trt_plugins
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.hardware.doctor import MachineReport, diagnose_machine
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.env import WARM_UP
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.scheduler import Scheduler, Step
from trtllm_dflash.runtime.sessions import trt_engine
from trtllm_dflash.runtime.sessions.trt import TrtSession

Tokens = list[list[int]]
_MOST_CALLS = 100
# What a step must not ask of the driver while clients wait.
AT_LOAD = (
    "cuGraphInstantiateWithFlags",
    "cuStreamBeginCapture",
    "cuMemAlloc",
    "cuMemAllocHost",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
)


@dataclass(frozen=True)
class Report:
    """What a run gave, and what was wrong in the driver when all of it was gone."""

    tokens: list[Tokens] = field(default_factory=list)  # by the options of a call
    launches: int = 0  # of kernels by plugins
    merges: int = 0  # of them, those that merge attention's splits
    replays: int = 0  # of captured graphs
    faults: tuple[str, ...] = ()


@contextmanager
def opened(
    directory: Path, setup: Setup, capture: bool = True
) -> Iterator[tuple[Engine, Driver, SmallTrt]]:
    """Open an engine over the driver as `setup` has it."""
    here = driver()
    here.reset(setup)
    small = SmallTrt()
    trt_plugins.pop_errors()
    with mock.patch.object(trt_engine, "trt", small):
        config = EngineConfig.load(directory)
        yield Engine(config, TrtSession(directory, config, capture=capture)), here, small
    if small.failures:
        raise small.failures[0]


def generate(
    directory: Path,
    prompts: Tokens,
    calls: Sequence[dict[str, Any]],
    setup: Setup,
    *,
    capture: bool = True,
) -> Report:
    """Generate once for each of `calls`, the options of a call; the slots are used again."""
    report = _generate(directory, prompts, calls, setup, capture)
    gc.collect()
    return replace(report, faults=tuple(driver().faults()))


def _generate(
    directory: Path,
    prompts: Tokens,
    calls: Sequence[dict[str, Any]],
    setup: Setup,
    capture: bool,
) -> Report:
    with opened(directory, setup, capture) as (engine, here, _):
        tokens = []
        for options in calls:
            answers = engine.generate(prompts, stop_token_ids=[], **options)
            tokens.append([answer.token_ids for answer in answers])
        launches = here.launches(), here.launches("attention_merge")
        return Report(tokens, *launches, here.calls("cuGraphLaunch"))


@dataclass(frozen=True)
class WarmReport:
    """Answers, how many slots decoded together, and calls of `AT_LOAD` at load and behind it."""

    tokens: Tokens
    batches: set[int]
    at_load: list[int]
    later: list[int]
    faults: tuple[str, ...] = ()


def arriving(
    directory: Path, prompts: Tokens, options: dict[str, Any], setup: Setup
) -> WarmReport:
    """Answer prompts that arrive one by one at an engine that was warmed up.

    Each runs in chunks, between steps of those before it.
    """
    with mock.patch.dict(os.environ, {WARM_UP: "1"}):
        found = _arriving(directory, prompts, options, setup)
    gc.collect()
    return replace(found, faults=tuple(driver().faults()))


def _arriving(
    directory: Path, prompts: Tokens, options: dict[str, Any], setup: Setup
) -> WarmReport:
    with opened(directory, setup) as (engine, here, _):
        at_load = [here.calls(name) for name in AT_LOAD]
        steps: list[Step] = []
        size = engine.config.vocab_size
        scheduler = Scheduler(
            engine._session, vocab_size=size, prompt_tokens_per_step=6, on_step=steps.append
        )
        requests = make_requests(prompts, SamplingParams(**options), engine.config)
        for request in requests:
            scheduler.add(request)
            scheduler.step()
        while scheduler.busy:
            scheduler.step()
        tokens = [request.output_ids for request in requests]
        later = [here.calls(name) for name in AT_LOAD]
        return WarmReport(tokens, {step.slots for step in steps}, at_load, later)


def forced_drafts(
    directory: Path, prompts: Tokens, answers: Tokens, setup: Setup
) -> tuple[Trace, tuple[str, ...]]:
    """Return `traces.trace` of an engine, and what was wrong when all of it was gone."""
    found = _forced_drafts(directory, prompts, answers, setup)
    gc.collect()
    return found, tuple(driver().faults())


def _forced_drafts(directory: Path, prompts: Tokens, answers: Tokens, setup: Setup) -> Trace:
    with opened(directory, setup) as (engine, _, __):
        session = engine._session
        address = session._slots.address("next_ids")
        shape = (session.max_batch_size, session._config.block_size)
        placed = Placed(address, shape, np.dtype(np.int64))

        def next_ids() -> np.ndarray:
            session._cuda.synchronize()  # a move may still be on its way
            return placed.view()

        return trace(session, next_ids, prompts, answers)


def refusals(
    directory: Path, prompts: Tokens, function: str, status: int
) -> tuple[list[str], list[str]]:
    """Let a driver's function fail from its first, second, … call on.

    It ends when a whole run makes fewer calls. Returns the errors' texts, and what was left over
    behind any of them.
    """
    texts: list[str] = []
    left: list[str] = []
    while len(texts) < _MOST_CALLS:
        text = _refusal(directory, prompts, Setup(fail=(function, len(texts), status)))
        gc.collect()
        if text is None:
            break
        texts.append(text)
        left += driver().faults()
    return texts, left


def _refusal(directory: Path, prompts: Tokens, setup: Setup) -> str | None:
    found = _outcome(directory, prompts, setup)
    return found if isinstance(found, str) else None


def _outcome(directory: Path, prompts: Tokens, setup: Setup) -> Tokens | str:
    """Return the tokens of a run, or the text of the error that ended it."""
    try:
        with opened(directory, setup) as (engine, *_):
            answers = engine.generate(prompts, max_tokens=4, stop_token_ids=[])
            return [answer.token_ids for answer in answers]
    except EngineError as error:
        return str(error)


def failures(
    directory: Path, prompts: Tokens, status: int
) -> dict[tuple[str, int], tuple[Tokens | str, list[str]]]:
    """Let each call of the driver fail that is the first or the last of its function in a run.

    Returns the outcome and what was left over, by function and number of the call; of the run in
    which none fails by "" and 0.
    """
    found = {("", 0): _settled(directory, prompts, Setup())}
    for function, count in driver().called().items():
        for place in sorted({0, count - 1}):
            setup = Setup(fail=(function, place, status), once=True)
            found[function, place] = _settled(directory, prompts, setup)
    return found


def _settled(directory: Path, prompts: Tokens, setup: Setup) -> tuple[Tokens | str, list[str]]:
    outcome = _outcome(directory, prompts, setup)
    gc.collect()
    return outcome, driver().faults()


def load_over(directory: Path, setup: Setup) -> str:
    """Return the error of a load."""
    try:
        with opened(directory, setup):
            return ""
    except EngineError as error:
        return str(error)


def load_stated(directory: Path, method: str, about: tuple[str | int, ...], answer: Any) -> str:
    """Return the error of a load where an engine states another `answer`.

    `about`: the arguments of the method, which are a tensor's name, and for a profile its number.
    """
    right = getattr(StatedEngine, method)

    def wrong(engine: StatedEngine, *asked: str | int) -> Any:
        return answer if asked == about else right(engine, *asked)

    with mock.patch.object(StatedEngine, method, wrong):
        return load_over(directory, Setup())


def lost_context(directory: Path, prompts: Tokens) -> list[str]:
    """Lose the context in the third step; return the errors of that call and of two later ones."""
    texts = []
    with opened(directory, Setup(fail=("cuEventSynchronize", 3, ILLEGAL_ADDRESS))) as (
        engine,
        *_,
    ):
        for _ in range(3):
            try:
                engine.generate(prompts, max_tokens=4, stop_token_ids=[])
            except EngineError as error:
                texts.append(str(error))
    return texts


def on_second_gpu(directory: Path, prompts: Tokens, count: int) -> tuple[Tokens, list[str]]:
    """Generate on the second of two GPUs, while the first is made current before every call."""
    tokens = []
    with opened(directory, Setup(archs=(80, 120))) as (engine, *_):
        elsewhere = Cuda(0)
        for prompt in prompts:
            elsewhere.make_current()
            elsewhere.allocate(64, "a test")
            _generate_one(engine, prompt, count, tokens)
        del engine, elsewhere
    gc.collect()
    return tokens, driver().faults()


def in_threads(directory: Path, prompts: Tokens, count: int) -> tuple[Tokens, list[str]]:
    """Generate each answer in a thread of its own, whose identity the next one may get."""
    tokens: Tokens = []
    with opened(directory, Setup(late=True)) as (engine, *_):
        for prompt in prompts:
            thread = threading.Thread(
                target=_generate_one, args=(engine, prompt, count, tokens)
            )
            thread.start()
            thread.join()
        del engine, thread
    gc.collect()
    return tokens, driver().faults()


def _generate_one(engine: Engine, prompt: list[int], count: int, tokens: Tokens) -> None:
    tokens.append(engine.generate([prompt], max_tokens=count, stop_token_ids=[])[0].token_ids)


def report_of_machine(setup: Setup) -> MachineReport:
    """Return what `doctor` finds over the stand-in driver."""
    driver().reset(setup)
    return diagnose_machine(BACKENDS)
