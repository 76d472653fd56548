"""Engines around the fake session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime.fake import FakeSession, fake_config
from trtllm_dflash.runtime.engine import Engine


@pytest.fixture
def fake_engine() -> Callable[..., Engine]:
    """`fake_engine(accuracy=…, **sizes)`: an engine without a model; its session is `engine._session`."""

    def make(*, accuracy: float = 0.7, **sizes: Any) -> Engine:
        config = fake_config(**sizes)
        return Engine(config, FakeSession(config, accuracy=accuracy))

    return make
