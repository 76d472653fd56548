"""A profile of the trained tiny pair, where drafts are accepted, and the command that makes one."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.fixtures.engines import build_here
from trtllm_dflash.cli import main
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.profile.ort_trace import STEPS
from trtllm_dflash.profile.profiler import profile
from trtllm_dflash.profile.prompts import Prompt, PromptSet
from trtllm_dflash.profile.result import Profile, SystemResult
from trtllm_dflash.runtime.sessions.ort import OrtSession

PAIR = Path(__file__).parents[1] / "fixtures" / "trained_pair"
TARGET, DRAFTER = PAIR / "target", PAIR / "drafter"
MODULUS = 61

RunProfile = Callable[..., Result]
MakeProfile = Callable[..., Profile]


def sentence(first: int, stride: int, length: int) -> list[int]:
    """Return a sentence of the language that the pair was trained on.

    The language is that of `tests/fixtures/trained_pair/make_pair.py`.
    """
    tokens = [first]
    while len(tokens) < length:
        stride = stride % 5 + 1 if tokens[-1] % 7 == 0 else stride
        tokens.append((tokens[-1] + stride) % MODULUS)
    return tokens


# Sentences are easy to draft for; noise never occurs in the language.
PROMPTS = PromptSet(
    "sentences",
    (
        Prompt(sentence(3, 2, 7), "sentence"),
        Prompt([5, 50, 5, 50, 5], "noise"),
        Prompt(sentence(40, 4, 11), "sentence"),
        Prompt([9, 9, 9], "noise"),
        Prompt(sentence(21, 1, 9), "sentence"),
        Prompt(sentence(60, 5, 6), "sentence"),
    ),
)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a DFlash engine of the pair: blocks of 8, 5 drafts by default, 3 slots."""
    output = tmp_path_factory.mktemp("engine") / "dflash"
    sizes: dict[str, Any] = {
        "draft_len": 5,
        "max_batch_size": 3,
        "max_seq_len": 96,
        "max_num_tokens": 16,
    }
    build_here(BuildConfig(str(TARGET), output, drafter=str(DRAFTER), **sizes))
    return output


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a plain engine of the same target."""
    output = tmp_path_factory.mktemp("engine") / "plain"
    sizes: dict[str, Any] = {"max_batch_size": 3, "max_seq_len": 96, "max_num_tokens": 16}
    build_here(BuildConfig(str(TARGET), output, **sizes))
    return output


@pytest.fixture(scope="session")
def make_profile(engine: Path, plain: Path) -> MakeProfile:
    """Return `make_profile(prompts=PROMPTS, **options of ProfileConfig)`, with one thread."""

    def make(prompts: PromptSet = PROMPTS, **options: Any) -> Profile:
        options = {"plain": plain, "max_tokens": 24, "num_threads": 1} | options
        return profile(ProfileConfig(engine, **options), prompts, argv=["test"])

    return make


@pytest.fixture(scope="session")
def found(make_profile: MakeProfile) -> Profile:
    """Measure a profile at batch 1 and 3, with 0, 5 and 7 drafts."""
    return make_profile(batch="1,3")


class Stopwatch:
    """An independent clock of the CPU sessions' decode steps while a profile is measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seconds: dict[tuple[bool, int, int], list[float]] = defaultdict(list)
        decode = OrtSession.decode

        def timed(session: OrtSession, count: int, width: int, *, draft: bool = True) -> None:
            start = time.monotonic()
            decode(session, count, width, draft=draft)
            key = (session._config.speculates, count, width)
            self._seconds[key].append(time.monotonic() - start)

        monkeypatch.setattr(OrtSession, "decode", timed)

    def total(self, result: SystemResult) -> float:
        """Return the seconds of the steps of a result, in a profile of one batch size.

        Warm-up came before them. After them came the timing of kernels, in two sessions of
        1 + STEPS steps each.
        """
        seconds = self._seconds[
            result.implementation == "dflash", result.batch, 1 + result.draft_len
        ]
        return sum(seconds[: len(seconds) - 2 * (1 + STEPS)][-result.full_steps :])


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    """Return another clock for what is profiled from now on."""
    return Stopwatch(monkeypatch)


@pytest.fixture
def run_profile(engine: Path, plain: Path, tmp_path: Path) -> RunProfile:
    """Return `run_profile(*options, engine=…)`, which runs `dflash-trt profile` on PROMPTS."""
    prompts = tmp_path / "prompts.jsonl"
    rows = (
        {"prompt": prompt.content, "category": prompt.category} for prompt in PROMPTS.prompts
    )
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def invoke(*options: str | Path, engine: Path = engine) -> Result:
        fixed = [
            "profile",
            str(engine),
            "--num-threads",
            "1",
            "--plain",
            str(plain),
            "--max-tokens",
            "12",
        ]
        return CliRunner().invoke(
            main, [*fixed, "--prompts", str(prompts), *(str(option) for option in options)]
        )

    return invoke
