"""The kernels' library, twice: emulated on the CPU, and on a GPU where there is one.

Tests that take `library` run on both. Without a GPU those of the second kind are skipped by name;
with DFLASH_REQUIRE_GPU=1 they fail instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.conftest import shared_base
from tests.plugins import cubins
from tests.plugins.emulated_build import build_emulated, build_starter
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


def built_once(
    factory: pytest.TempPathFactory, name: str, build: Callable[[Path], Path]
) -> Path:
    """Return what `build` makes in a folder that the processes of a parallel run share.

    The first process builds; the others wait for it.
    """
    folder = shared_base(factory) / name
    made = folder / "path"
    with FileLock(f"{folder}.lock"):
        if not made.exists():
            folder.mkdir(exist_ok=True)
            made.write_text(str(build(folder)))
    return Path(made.read_text())


@pytest.fixture(scope="session", autouse=True)
def shared_cubins(compiled_kernels: Path) -> Path:
    """Return the folder in which processes of a parallel run share what NVRTC compiles."""
    cubins.share(compiled_kernels)
    return compiled_kernels


@pytest.fixture(scope="session")
def emulated_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the emulated library, built once a run."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the kernels for the emulator")
    return built_once(tmp_path_factory, "emulated", build_emulated)


@pytest.fixture
def emulated(emulated_path: Path) -> Library:
    """Return the emulated library, in forward order."""
    library = Library(emulated_path, HostMemory(), emulated=True)
    library.order("forward")
    return library


@pytest.fixture(scope="session")
def real_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library for GPUs beside its build.log, built with CMake once a run.

    It is for this machine's GPU, or for sm_90.
    """
    if shutil.which("nvcc") is None or shutil.which("cmake") is None:
        pytest.skip("needs nvcc and cmake, which build plugins/CMakeLists.txt")
    return built_once(tmp_path_factory, "real", _build_real)


def _build_real(folder: Path) -> Path:
    arch = "native" if has_gpu() else 90
    options = ["-S", str(PLUGINS), "-B", str(folder), f"-DCMAKE_CUDA_ARCHITECTURES={arch}"]
    run(["cmake", *options])
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


@pytest.fixture(scope="module")
def starter(emulated_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that starts kernels of the emulated one by address."""
    return build_starter(tmp_path_factory.mktemp("starter"), emulated_path)


@pytest.fixture
def module(emulated: Library, starter: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what a plugin loads its kernels into; `module.processors` may be changed."""
    from tests.plugins.emulated_plugin import KERNELS, EmulatedModule
    from trtllm_dflash.trt_plugins import plugin

    made = EmulatedModule(emulated, starter, 132)

    def load(cubin: bytes, kernels: Sequence[str]) -> Any:
        assert cubin == KERNELS
        assert all(hasattr(emulated.c, kernel) for kernel in kernels)
        return made

    monkeypatch.setattr(plugin, "load_module", load)
    plugin.pop_errors()
    yield made
    plugin.pop_errors()


@pytest.fixture(params=["forward", "reverse", "random"])
def any_order(request: pytest.FixtureRequest, library: Library) -> Iterator[Library]:
    """Return the library, its threads in one order after the other."""
    library.order(request.param, seed=1)
    yield library
    library.order("forward")
