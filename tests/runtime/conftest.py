"""Engines around the fake session, and one that is really built."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.builds import build_tiny, built_engine, ring_engine
from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

__all__ = ["build_tiny", "built_engine", "ring_engine"]


@pytest.fixture
def fake_engine() -> Callable[..., Engine]:
    """Return `make(accuracy=…, lookahead=…, **sizes)`: an engine on a FakeSession."""

    def make(*, accuracy: float = 0.7, lookahead: int = 0, **sizes: Any) -> Engine:
        config = fake_config(**sizes)
        return Engine(config, FakeSession(config, accuracy=accuracy, lookahead=lookahead))

    return make


@pytest.fixture
def text_engine(tmp_path: Path) -> Engine:
    """Return an engine on a fake session whose tokens are bytes."""
    config = fake_config(vocab_size=tiny.VOCAB_SIZE)
    return Engine(config, FakeSession(config), Tokenizer(tiny.write_byte_level(tmp_path)))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Check that every engine thread has ended."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "dflash-engine"]
