"""The objects that TensorRT calls while it builds an engine: log, writer, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from trtllm_dflash.hardware.memory import return_freed_memory
from trtllm_dflash.trt.loader import import_tensorrt

if TYPE_CHECKING:
    import tensorrt_rtx as trt
else:
    trt = import_tensorrt()

# Parts of the builder's message on an input of the engine that changes nothing.
_DROPPED_INPUT = ("Unused Input:", "is unused or used only at compile-time")


class BuilderLog(trt.ILogger):  # type: ignore[misc]
    """Prints TensorRT's messages on stderr, and keeps its warnings and errors.

    It never raises, since TensorRT calls it.
    """

    _NAMES: Mapping[Any, str] = {
        trt.ILogger.INTERNAL_ERROR: "internal error",
        trt.ILogger.ERROR: "error",
        trt.ILogger.WARNING: "warning",
        trt.ILogger.INFO: "info",
    }

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Keep and print one message."""
        name = self._NAMES.get(severity)
        if name is None:
            return
        if name == "warning":
            self.warnings.append(message)
        elif name != "info":
            self.errors.append(message)
        with suppress(OSError, ValueError):  # a full disk or a closed stream
            sys.stderr.write(f"TensorRT {name}: {message}\n")

    def dropped_inputs(self) -> list[str]:
        """Return the messages that say an input is ignored, each once."""
        found = [text for text in self.warnings if any(part in text for part in _DROPPED_INPUT)]
        return list(dict.fromkeys(found))


class EngineWriter(trt.IStreamWriter):  # type: ignore[misc]
    """Writes the engine as it is serialized, so that it is never whole in memory."""

    def __init__(self, file: BinaryIO) -> None:
        trt.IStreamWriter.__init__(self)
        self._file = file
        self.written = 0  # bytes
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write one chunk and return its size, or 0 to make TensorRT stop.

        `failure` then has the exception, which must not reach TensorRT.
        """
        try:
            count = self._file.write(data)
            self.written += count
            return count
        except OSError as error:
            self.failure = error
            return 0


class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Passes on the outermost phase that TensorRT is in. TensorRT's threads call it."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Report that a phase begins. Nested ones are not shown."""
        if parent_phase is None:
            self._steps[phase_name] = num_steps
            self._progress(f"compiling: {phase_name}", 0, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Report that a step of a phase is done; True makes TensorRT go on."""
        if phase_name in self._steps:
            self._progress(f"compiling: {phase_name}", step + 1, self._steps[phase_name])
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Report that a phase ends."""
        # Each phase leaves many small blocks, for the demo pair an eighth of its memory.
        return_freed_memory()
        if phase_name in self._steps:
            total = self._steps.pop(phase_name)
            self._progress(f"compiling: {phase_name}", total, total)
