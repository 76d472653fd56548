"""The stand-in driver as a test sets it up and looks at it; all of this runs in its own process."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

ILLEGAL_ADDRESS = 700
OUT_OF_MEMORY, INVALID_IMAGE, NOT_FOUND = 2, 200, 500


@dataclass(frozen=True)
class Setup:
    """How the driver is: its GPUs, and what goes wrong.

    `late`: work in a stream is done when a call waits for it. `fail`: a function, the number of
    calls before those that fail, and their error; `once`: only one call fails. `skip`: kernels of
    this name do nothing.
    """

    archs: tuple[int, ...] = (120,)
    late: bool = False
    memory: int = 1 << 30
    version: int = 13050
    processors: int = 16
    fail: tuple[str, int, int] | None = None
    once: bool = False
    skip: str = ""


class Driver:
    """The library libcuda.so.1 of this process, which is found by its name from now on."""

    def __init__(self, library: str, starter: str) -> None:
        """Load it, over the kernels that `starter` starts."""
        self._library = ctypes.CDLL(library)
        self._library.stand_in_unimplemented.restype = ctypes.c_char_p
        self._library.stand_in_called.restype = ctypes.c_char_p
        assert not self._library.stand_in_load(starter.encode()), starter

    def reset(self, setup: Setup) -> None:
        """Forget everything of before, and be as `setup` says."""
        library = self._library
        library.stand_in_reset(len(setup.archs))
        for index, arch in enumerate(setup.archs):
            library.stand_in_device(index, arch, setup.processors)
        library.stand_in_late(setup.late)
        library.stand_in_memory(ctypes.c_size_t(setup.memory))
        library.stand_in_version(setup.version)
        if setup.fail:
            function, calls, status = setup.fail
            library.stand_in_fail(function.encode(), calls, status, setup.once)
        library.stand_in_skip(setup.skip.encode())

    def calls(self, function: str) -> int:
        """Return how often a function was called."""
        return int(self._library.stand_in_calls(function.encode()))

    def called(self) -> dict[str, int]:
        """Return how often each function was called that was called at all."""
        names: list[bytes] = self._library.stand_in_called().split()
        return {name.decode(): self.calls(name.decode()) for name in names}

    def launches(self, kernel: str = "") -> int:
        """Return how often kernels of this name were launched, inside captures too."""
        return int(self._library.stand_in_launches(kernel.encode()))

    def faults(self) -> list[str]:
        """Return what is left over or damaged now, or was asked for and is not there."""
        found = {
            "objects were not freed": int(self._library.stand_in_live()),
            "allocations were written outside their bounds": int(
                self._library.stand_in_damaged()
            ),
        }
        missing: Sequence[bytes] = self._library.stand_in_unimplemented().split()
        return [
            *(f"{count} {what}" for what, count in found.items() if count),
            *(f"{name.decode()} was called" for name in missing),
        ]
