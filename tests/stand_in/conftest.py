"""The stand-in driver's library and process, and engines for it, each made once a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plugins.conftest import built_once, emulated_path, shared_cubins
from tests.plugins.emulated_build import build_emulated, build_starter
from tests.stand_in.driver_build import build_driver, cuda_header
from tests.stand_in.process import StandIn

if TYPE_CHECKING:
    from tests.stand_in.pairs import Engines

__all__ = ["emulated_path", "shared_cubins"]  # fixtures
# Of the quick tests' pair: they do without the other kernels, which take a minute to compile.
QUICK_KERNELS = (
    "attention_64",
    "accept_kernel",
    "argmax_kernel",
    "lookup_kernel",
    "adjust_kernel",
)


@pytest.fixture(scope="session")
def driver_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in driver's library, built once a run."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the stand-in driver")
    if cuda_header() is None:
        pytest.skip("needs cuda.h of the package nvidia-cuda-runtime")
    return built_once(tmp_path_factory, "stand-in driver", build_driver)


@pytest.fixture(scope="session")
def stand_in(
    driver_path: Path,
    emulated_path: Path,
    shared_cubins: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StandIn]:
    """Return the process with the stand-in driver over all kernels."""
    starter = build_starter(tmp_path_factory.mktemp("starter"), emulated_path)
    process = StandIn(driver_path, starter, shared_cubins)
    yield process
    process.close()


@pytest.fixture(scope="session")
def quick_stand_in(
    driver_path: Path, shared_cubins: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StandIn]:
    """Return the process with the stand-in driver over the kernels of the quick tests' pair."""
    folder = tmp_path_factory.mktemp("quick")
    starter = build_starter(folder, build_emulated(folder, QUICK_KERNELS))
    process = StandIn(driver_path, starter, shared_cubins)
    yield process
    process.close()


@pytest.fixture(scope="session")
def pair_engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engines]:
    """`pair_engines(name)`: the engines of a pair, built once a process."""
    from tests.stand_in.pairs import build_pair

    made: dict[str, Engines] = {}

    def get(name: str) -> Engines:
        if name not in made:
            made[name] = build_pair(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get
