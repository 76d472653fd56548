"""One decode step of a GPU session, in a CUDA graph if it can be captured."""

from __future__ import annotations

import logging
from collections.abc import Callable

from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.runtime.sessions.trt_engine import TrtContext

_LOG = logging.getLogger(__name__)


class DecodeStep:
    """What decoding does for one batch size and width; captured from the second time on."""

    def __init__(
        self,
        context: TrtContext,
        run: Callable[[], None],
        cuda: Cuda,
        *,
        capture: bool,
        warn: Callable[[], None],
    ) -> None:
        """`run` puts the step into the stream, with `context` among others.

        `warn` is called if the step cannot be captured.
        """
        self._context = context
        self._run = run
        self._cuda = cuda
        self._to_capture = capture
        self._warn = warn
        self._has_run = False

    def launch(self) -> None:
        """Put the step into the stream."""
        if self._has_run:
            self._capture()
        self._run()
        self._has_run = True

    def prepare(self) -> None:
        """Put the step into the stream, and capture it for all later times."""
        self.launch()
        self._capture()

    def _capture(self) -> None:
        # TensorRT settles shapes, memory and kernels in a context's first run. That must not be
        # part of a capture.
        if not self._to_capture:
            return
        self._to_capture = False
        if self._context.is_capturable():
            self._run = self._cuda.capture(self._run)
        else:
            self._warn()


def warn_of_capture() -> None:
    """Say that steps stay as slow as they are launched one kernel after the other."""
    _LOG.warning(
        "this engine's steps cannot be captured in a CUDA graph, so they are slower than they may"
        " be"
    )
