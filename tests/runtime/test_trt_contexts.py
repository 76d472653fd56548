"""The GPU session works in its own CUDA context, whatever was current when it was called."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from tests.runtime.fake_gpu import GREEDY, Gpu, open_gpu

__all__ = ["open_gpu"]  # a fixture


def test_every_call_sets_its_own_context(open_gpu: Callable[..., Gpu]) -> None:
    """As beside an engine on another GPU, or a library that makes its context current."""
    gpu = open_gpu()
    session, driver = gpu.session, gpu.driver
    for name, arguments in (
        ("open_slot", (0, GREEDY)),
        ("prefill", (0, np.array([3]))),
        ("collect", ()),
        ("decode", (1, 4)),
        ("discard", ()),
        ("move_slot", (0, 1)),
    ):
        driver.cuCtxSetCurrent("somebody else's")
        driver.used.clear()
        getattr(session, name)(*arguments)
        contexts = {context for _, context in driver.used}
        assert contexts == {"context 0"}, name
