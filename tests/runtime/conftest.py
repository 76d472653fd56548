"""Engines around the fake session, and one that is really built."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.engines import build_here
from tests.fixtures.tiny_models import EOS_ID
from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.tokenizer import Tokenizer


@pytest.fixture
def fake_engine() -> Callable[..., Engine]:
    """`fake_engine(accuracy=…, lookahead=…, **sizes)`: an engine without a model; its session is
    `engine._session`.
    """

    def make(*, accuracy: float = 0.7, lookahead: int = 0, **sizes: Any) -> Engine:
        config = fake_config(**sizes)
        return Engine(config, FakeSession(config, accuracy=accuracy, lookahead=lookahead))

    return make


@pytest.fixture
def text_engine(tmp_path: Path) -> Engine:
    """One whose tokens are bytes."""
    config = fake_config(vocab_size=tiny.VOCAB_SIZE)
    return Engine(config, FakeSession(config), Tokenizer(tiny.write_byte_level(tmp_path)))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every scheduler has ended its thread."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "dflash-engine"]


@pytest.fixture(scope="session")
def build_tiny(
    tmp_path_factory: pytest.TempPathFactory,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
) -> Callable[..., Path]:
    """`build_tiny(target=tiny Qwen3, draft=True, variant="full", **sizes)`: a CPU engine, without
    tokenizer files.
    """
    tiny = make_target(
        "qwen3", tied=True, eos_token_ids=(EOS_ID,), config={"max_position_embeddings": 1 << 15}
    )

    def build(
        *, target: Path = tiny, draft: bool = True, variant: str = "full", **sizes: Any
    ) -> Path:
        output = tmp_path_factory.mktemp("engine") / "cpu"
        drafter = str(make_drafter(target, variant=variant)) if draft else None
        sizes = {"max_batch_size": 3, "max_seq_len": 192, "max_num_tokens": 8} | sizes
        build_here(BuildConfig(str(target), output, drafter=drafter, **sizes))
        return output

    return build


@pytest.fixture(scope="session")
def ring_engine(build_tiny: Callable[..., Path]) -> Path:
    """One whose drafter keeps rings in all layers but the last."""
    return build_tiny(variant="mixed")


@pytest.fixture(scope="session")
def built_engine(build_tiny: Callable[..., Path]) -> Path:
    """A tiny DFlash engine for the CPU."""
    return build_tiny()
