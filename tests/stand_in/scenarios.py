"""What tests let the GPU path do in the stand-in driver's process; reports are plain data."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.stand_in.driver import Driver, Setup
from tests.stand_in.process import driver
from tests.stand_in.small_trt import Placed, SmallTrt
from tests.stand_in.traces import Trace, trace
from trtllm_dflash import trt_plugins
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions import trt_engine
from trtllm_dflash.runtime.sessions.trt import TrtSession

Tokens = list[list[int]]


@dataclass(frozen=True)
class Report:
    """What a run gave, and what was wrong in the driver when all of it was gone."""

    tokens: list[Tokens] = field(default_factory=list)  # by the options of a call
    launches: int = 0  # of kernels by plugins
    replays: int = 0  # of captured graphs
    faults: tuple[str, ...] = ()


@contextmanager
def opened(directory: Path, setup: Setup) -> Iterator[tuple[Engine, Driver, SmallTrt]]:
    """Open an engine over the driver as `setup` has it."""
    here = driver()
    here.reset(setup)
    small = SmallTrt()
    trt_plugins.pop_errors()
    with mock.patch.object(trt_engine, "trt", small):
        config = EngineConfig.load(directory)
        yield Engine(config, TrtSession(directory, config)), here, small
    if small.failures:
        raise small.failures[0]


def generate(
    directory: Path,
    prompts: Tokens,
    calls: Sequence[dict[str, Any]],
    setup: Setup,
) -> Report:
    """Generate once for each of `calls`, the options of a call; the slots are used again."""
    tokens, launches, replays = _generate(directory, prompts, calls, setup)
    gc.collect()
    return Report(tokens, launches, replays, tuple(driver().faults()))


def _generate(
    directory: Path, prompts: Tokens, calls: Sequence[dict[str, Any]], setup: Setup
) -> tuple[list[Tokens], int, int]:
    with opened(directory, setup) as (engine, here, _):
        tokens = []
        for options in calls:
            answers = engine.generate(prompts, **options)
            tokens.append([answer.token_ids for answer in answers])
        return tokens, here.launches(), here.calls("cuGraphLaunch")


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
        next_ids = Placed(address, shape, np.dtype(np.int64))
        return trace(session, next_ids.view, prompts, answers)
