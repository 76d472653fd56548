"""Engines to evaluate, and the command that does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.fixtures.engines import build_here
from tests.fixtures.tiny_models import EOS_ID
from trtllm_dflash.cli import main
from trtllm_dflash.options.build import BuildConfig

Evaluate = Callable[..., Result]
TEXT = (
    "The night train from the coast arrives at ten past six, when the market is still hosing down"
    " its stalls. Nobody meets it; on Sundays even less so. (4,200 inhabitants = 2 printing works +"
    " 1 factory.)"
)


@pytest.fixture(scope="session")
def build_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return `build_cpu(target, drafter=None, **sizes)`, which builds an engine once per arguments.

    It returns the engine's directory.
    """
    built: dict[Any, Path] = {}

    def build(target: Path, drafter: Path | None = None, **sizes: Any) -> Path:
        key = (target, drafter, *sorted(sizes.items()))
        if key not in built:
            built[key] = tmp_path_factory.mktemp("engine") / "cpu"
            sizes = {"max_batch_size": 2, "max_seq_len": 80, "max_num_tokens": 16} | sizes
            build_here(
                BuildConfig(
                    str(target), built[key], drafter=str(drafter) if drafter else None, **sizes
                )
            )
        return built[key]

    return build


@pytest.fixture(scope="session")
def target(make_target: Callable[..., Path]) -> Path:
    """Make a tiny Llama with a tokenizer."""
    return make_target("llama", tokenizer=True, eos_token_ids=(EOS_ID,))


@pytest.fixture(scope="session")
def other_target(make_target: Callable[..., Path]) -> Path:
    """Make the same model with other weights."""
    return make_target("llama", tokenizer=True, eos_token_ids=(EOS_ID,), seed=1)


@pytest.fixture(scope="session")
def engine(
    build_cpu: Callable[..., Path], target: Path, make_drafter: Callable[..., Path]
) -> Path:
    """Build a DFlash engine of `target`."""
    return build_cpu(target, make_drafter(target))


@pytest.fixture(scope="session")
def other_engine(build_cpu: Callable[..., Path], other_target: Path) -> Path:
    """Build a plain engine of `other_target`."""
    return build_cpu(other_target)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """TEXT in a file: three windows of the engines' max_seq_len."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def run_eval(text_file: Path) -> Evaluate:
    """`run_eval(engine, *options)`: the result of `dflash-trt eval` on TEXT with one thread."""

    def invoke(directory: Path, *options: str | Path) -> Result:
        fixed = ["eval", str(directory), "--num-threads", "1", "--text", str(text_file)]
        return CliRunner().invoke(main, [*fixed, *(str(option) for option in options)])

    return invoke
