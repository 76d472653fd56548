"""The GPU session on a real GPU. Without one these tests are skipped by name; DFLASH_REQUIRE_GPU=1
makes them fail.

Numbers in BF16 depend on the kernels, and kernels on the shapes; so only runs of equal shapes must
agree exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from tests.fixtures.engines import with_fixed_drafts
from tests.plugins.conftest import no_gpu
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.doctor import cuda_gpus
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.env import ANY_GPU, CUDA_GRAPH, env_flag
from trtllm_dflash.runtime.sessions.base import SlotSampling

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], [6], list(range(20, 50)), [96, 96, 3]]
SAMPLED: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.01,
    "seed": 3,
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def arch() -> str:
    """Return the --arch of this GPU; with DFLASH_ANY_GPU=1, that of an A100 for any other GPU."""
    gpus = cuda_gpus()
    if isinstance(gpus, str) or not gpus:
        no_gpu(f"cuda_gpus() is {gpus!r}")
    for gpu in gpus:
        if gpu.arch in ARCHS and ARCHS[gpu.arch].backend == "tensorrt_rtx":
            return gpu.arch
    if not env_flag(ANY_GPU, default=False):
        no_gpu(
            f"TensorRT-RTX has no code for {', '.join(map(str, gpus))}; DFLASH_ANY_GPU=1 tries that"
            " of sm80"
        )
    return "sm80"


@pytest.fixture(scope="module")
def build(
    arch: str,
    tmp_path_factory: pytest.TempPathFactory,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
) -> Callable[..., Path]:
    """`build(arch=…, plugins=…)`: a directory of a tiny engine whose heads have a size that there
    are kernels for.
    """
    target = make_target("qwen3", tied=True, head_dim=64, dtype="BF16")
    drafter = make_drafter(target, head_dim=64, dtype="BF16")
    made: dict[Any, Path] = {}

    def make(**options: Any) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            output = made[key] = tmp_path_factory.mktemp("engine") / "engine"
            sizes = {"max_batch_size": 3, "max_seq_len": 192, "max_num_tokens": 8}
            config = BuildConfig(
                str(target),
                output,
                drafter=str(drafter),
                **({"arch": arch} | sizes | options),
            )
            build_engine(with_fixed_drafts(config))
        return made[key]

    return make


def tokens_of(directory: Path, **options: Any) -> list[list[int]]:
    engine = Engine.load(directory)
    return [
        answer.token_ids
        for answer in engine.generate(PROMPTS, max_tokens=30, stop_token_ids=[], **options)
    ]


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("plugins", [True, False], ids=["plugins", "bodies"])
def test_captured_steps_equal_launched_steps(
    build: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    plugins: bool,
    sampling: dict[str, Any],
) -> None:
    directory = build(plugins=plugins)
    captured = tokens_of(directory, **sampling)
    assert captured == tokens_of(directory, **sampling)
    monkeypatch.setenv(CUDA_GRAPH, "0")
    assert captured == tokens_of(directory, **sampling)


def test_steps_with_plugins_are_captured(
    build: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    tokens_of(build(plugins=True))
    assert "cannot be captured" not in caplog.text


def test_plugins_agree_with_bodies(build: Callable[..., Path]) -> None:
    """A tiny model's logits lie close together, and BF16 may decide a tie the other way; most
    tokens must agree.
    """
    assert _agreement(tokens_of(build(plugins=True)), tokens_of(build(plugins=False))) > 0.7


def test_gpu_agrees_with_cpu(build: Callable[..., Path]) -> None:
    assert _agreement(tokens_of(build(plugins=True)), tokens_of(build(arch="cpu"))) > 0.5


@pytest.mark.demo
def test_demo_pair_agrees_with_cpu(arch: str, tmp_path: Path) -> None:
    pair = ROOT / "examples" / "demo_pair" / "drafter"
    sizes = {"max_batch_size": 4, "draft_vocab": str(pair / "draft_vocab.json"), "arch": arch}
    config = BuildConfig(
        str(ROOT / "demo" / "target"), tmp_path / "gpu", drafter=str(pair), **sizes
    )
    build_engine(with_fixed_drafts(config))
    prompts = [
        "The capital of France is",
        "List three fruits:",
        "def fibonacci(n):",
        "Once upon a time",
    ]
    answers = [
        Engine.load(directory).generate(prompts, max_tokens=32)
        for directory in (tmp_path / "gpu", ROOT / "demo" / "cpu")
    ]
    assert _agreement(*([answer.token_ids for answer in side] for side in answers)) > 0.8
    assert np.mean([answer.acceptance_length for answer in answers[0]]) > 1.5


def test_captured_step_is_not_slower(
    build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {}
    for flag in ("1", "0"):
        monkeypatch.setenv(CUDA_GRAPH, flag)
        session = Engine.load(build(plugins=True))._session
        session.open_slot(0, SlotSampling())
        session.prefill(0, np.array([3]))
        session.collect()
        best = float("inf")
        for _ in range(40):
            start = perf_counter()
            session.decode(1, 1)
            session.collect()
            best = min(best, perf_counter() - start)
        seconds[flag] = best
    print(f"seconds a step: captured {seconds['1']:.6f}, launched {seconds['0']:.6f}")
    assert seconds["1"] < seconds["0"] * 1.05


def test_memory_goes_back(build: Callable[..., Path]) -> None:
    from cuda.bindings import driver

    free = []
    for _ in range(4):
        tokens_of(build(plugins=True))
        free.append(driver.cuMemGetInfo()[1])
    assert free[-1] >= free[1] - (1 << 20)  # the first loads the libraries


def _agreement(first: list[list[int]], second: list[list[int]]) -> float:
    """Return the mean share of the answers that is equal up to their first difference."""
    shares = []
    for one, other in zip(first, second, strict=True):
        equal = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
            min(len(one), len(other)),
        )
        shares.append(equal / len(one))
    return float(np.mean(shares))
