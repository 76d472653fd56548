"""A server around a fake engine whose tokens are bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

from tests.http_server.running import Running
from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def byte_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """`byte_engine(**sizes)` is an engine on a fake session whose tokens are bytes."""
    directory = tiny.write_byte_level(tmp_path_factory.mktemp("tokenizer"))

    def make(**sizes: Any) -> Engine:
        roomy = {"max_input_len": 150, "max_seq_len": 240} | sizes
        config = fake_config(vocab_size=tiny.VOCAB_SIZE, **roomy)
        return Engine(config, FakeSession(config), Tokenizer(directory))

    return make


@pytest.fixture(scope="module")
def server(byte_engine: MakeEngine) -> Iterator[Running]:
    """Start one server for all tests of a file that leave it as it is."""
    with Running({"tiny": byte_engine()}) as running:
        yield running
