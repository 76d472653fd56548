"""A server around a fake engine whose tokens are bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

from tests.http_server.running import Running, engine_of_bytes
from tests.runtime import tiny_tokenizer as tiny
from trtllm_dflash.runtime.engine import Engine

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def byte_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """`byte_engine(**sizes)` is an engine on a fake session whose tokens are bytes."""
    directory = tiny.write_byte_level(tmp_path_factory.mktemp("tokenizer"))

    return partial(engine_of_bytes, directory)


@pytest.fixture(scope="module")
def server(byte_engine: MakeEngine) -> Iterator[Running]:
    """Start one server for all tests of a file that leave it as it is."""
    with Running({"tiny": byte_engine()}) as running:
        yield running
