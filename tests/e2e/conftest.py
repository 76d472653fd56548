"""Engines for the end-to-end tests: each pair is built once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.engines import build_here
from trtllm_dflash import Engine
from trtllm_dflash.options.build import BuildConfig

EngineFactory = Callable[..., Engine]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineFactory:
    """`engine(target, drafter or None, **build options)`: a loaded CPU engine, built on first
    use.
    """
    loaded: dict[tuple[Any, ...], Engine] = {}

    def get(target: Path, drafter: Path | None, **options: Any) -> Engine:
        key = (target, drafter, *sorted(options.items()))
        if key not in loaded:
            output = tmp_path_factory.mktemp("engine") / "cpu"
            sizes = {"max_batch_size": 5, "max_seq_len": 192, "max_num_tokens": 8, **options}
            config = BuildConfig(
                str(target), output, drafter=str(drafter) if drafter else None, **sizes
            )
            build_here(config)
            loaded[key] = Engine.load(output, num_threads=1)
        return loaded[key]

    return get
