"""The kernels' library, twice: emulated on the CPU, and on a GPU where there is one.

Tests that take `library` run on both. Without a GPU those of the second kind are skipped by name;
with DFLASH_REQUIRE_GPU=1 they fail instead.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.plugins.emulated_build import build_emulated
from tests.plugins.library import PLUGINS, GpuMemory, HostMemory, Library, run


def has_gpu() -> bool:
    """Return whether torch is here and sees a GPU."""
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def no_gpu(reason: str) -> None:
    """Skip this test, or fail it where a GPU is required."""
    if os.environ.get("DFLASH_REQUIRE_GPU") == "1":
        pytest.fail(f"DFLASH_REQUIRE_GPU=1, but {reason}")
    pytest.skip(f"needs a GPU: {reason}")


@pytest.fixture(scope="session")
def emulated_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the emulated library, built once a session."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the kernels for the emulator")
    return build_emulated(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated(emulated_path: Path) -> Library:
    """Return the emulated library, in forward order."""
    library = Library(emulated_path, HostMemory(), emulated=True)
    library.order("forward")
    return library


@pytest.fixture(scope="session")
def real_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library for GPUs and its build.log, built with CMake once a session: for this
    machine's GPU, or for sm_90.
    """
    if shutil.which("nvcc") is None or shutil.which("cmake") is None:
        pytest.skip("needs nvcc and cmake, which build plugins/CMakeLists.txt")
    folder = tmp_path_factory.mktemp("real")
    run(
        [
            "cmake",
            "-S",
            str(PLUGINS),
            "-B",
            str(folder),
            f"-DCMAKE_CUDA_ARCHITECTURES={'native' if has_gpu() else 90}",
        ]
    )
    log = run(["cmake", "--build", str(folder), "--target", "dflash_kernels", "--parallel"])
    (folder / "build.log").write_text(log)
    return folder / "libdflash_kernels.so"


@pytest.fixture(params=["emulated", "gpu"])
def library(request: pytest.FixtureRequest) -> Library:
    """Both libraries, one after the other."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    if not has_gpu():
        no_gpu("torch.cuda.is_available() is False")
    return Library(request.getfixturevalue("real_path"), GpuMemory(), emulated=False)
