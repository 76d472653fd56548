"""What we accept means what it means in transformers: no silent difference."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.fixtures.engines import build_here
from tests.fuzz import transformers_twin
from tests.fuzz.outcomes import FAULTS, outcome_of
from trtllm_dflash import Engine
from trtllm_dflash.options.build import BuildConfig

pytestmark = pytest.mark.slow

Compare = Callable[..., str]
Few = Callable[..., range]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    transformers_twin.write_bases(root)
    return root


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    logging.set_verbosity_warning()


def run(
    compare: Compare, numbers: range, bases: Path, tmp_path: Path, *more: Any
) -> Counter[str]:
    """Return how often each outcome came; fail for any fault."""
    counts = Counter[str]()
    faults = []
    for number in numbers:
        directory = tmp_path / "mutant"
        outcome = outcome_of(lambda n: compare(bases, n, directory, *more), number)  # noqa: B023
        shutil.rmtree(directory, ignore_errors=True)
        accepted = outcome.kind == "accepted"
        counts[outcome.detail if accepted else outcome.kind] += 1
        if outcome.kind in FAULTS:
            faults.append((number, *outcome))
    assert faults == []
    return counts


@pytest.fixture
def few(random_cases: Callable[[int], int]) -> Few:
    """`few(start, stop)` are the first numbers of a range, as many as run."""
    return lambda start, stop: range(start, start + random_cases(stop - start))


def test_logits_of_accepted_configurations(bases: Path, tmp_path: Path, few: Few) -> None:
    numbers = few(0, 300)
    counts = run(transformers_twin.compare_logits, numbers, bases, tmp_path)
    assert counts["equal"] > len(numbers) / 3
    assert counts["refused"] > len(numbers) / 6


def test_logits_of_accepted_hybrids(bases: Path, tmp_path: Path, few: Few) -> None:
    numbers = few(-200, 0)
    counts = run(transformers_twin.compare_logits, numbers, bases, tmp_path)
    assert counts["equal"] > len(numbers) * 30 / 200
    assert counts["refused"] > len(numbers) * 80 / 200


def test_tokens_of_accepted_configurations(bases: Path, tmp_path: Path, few: Few) -> None:
    numbers = few(1000, 1260)
    counts = run(transformers_twin.compare_tokens, numbers, bases, tmp_path)
    assert counts["equal"] >= len(numbers) * 100 / 260


def test_tokens_of_accepted_hybrids(bases: Path, tmp_path: Path, few: Few) -> None:
    numbers = few(-1060, -1000)
    counts = run(transformers_twin.compare_tokens, numbers, bases, tmp_path)
    assert counts["equal"] >= len(numbers) * 10 / 60


def test_settings_of_generate_are_followed_or_named(
    bases: Path, tmp_path: Path, few: Few
) -> None:
    output = build_here(BuildConfig(str(bases / "llama"), tmp_path / "e", max_seq_len=128))
    engine, numbers = Engine.load(output, num_threads=1), few(0, 150)
    counts = run(transformers_twin.compare_generation, numbers, bases, tmp_path, engine)
    assert counts["equal"] > len(numbers) * 60 / 150
    assert counts["named"] > len(numbers) * 10 / 150
