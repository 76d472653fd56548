"""Engines for tests that are not about building them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.build import engine as build
from trtllm_dflash.build.request import Request
from trtllm_dflash.build.worker import work
from trtllm_dflash.config.build import BuildConfig
from trtllm_dflash.log import Progress


def build_here(config: BuildConfig) -> Path:
    """`build_engine` for the CPU, without a builder process, which costs most of a second and has tests of its own."""

    def run(request: Request, *, log: Path, progress: Progress) -> dict[str, Any]:
        return work(request, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "run_worker", run)
        return build.build_engine(config).directory
