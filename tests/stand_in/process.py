"""A process with the stand-in driver in it: what runs there finds it as this machine's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.plugins.cubins import share
from tests.stand_in.driver import Driver
from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.env import WARM_UP

_driver: list[Driver] = []


class StandIn:
    """Runs functions of a module in that process, one after the other."""

    def __init__(self, library: Path, starter: Path, cubins: Path) -> None:
        """Begin the process: the driver is loaded before anything that could look for one.

        `cubins` is the folder of those that this run has compiled.
        """
        self._pool = ProcessPoolExecutor(
            1,
            get_context("spawn"),
            initializer=_begin,
            initargs=(str(library), str(starter), cubins),
        )

    def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what a function returns there, and raise what it raises."""
        return self._pool.submit(_call, function, arguments, options).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def driver() -> Driver:
    """Return the driver of this process."""
    return _driver[0]


def _begin(library: str, starter: str, cubins: Path) -> None:
    os.environ[WARM_UP] = "0"  # each engine of a test would run shapes that it does not need
    _driver.append(Driver(library, starter))
    share(cubins)


def _call(function: Callable[..., Any], arguments: Any, options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except EngineError as error:
        raise EngineError(str(error)) from None  # some of its classes cannot be sent
