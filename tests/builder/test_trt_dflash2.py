"""Real TensorRT-RTX engines of drafters of DFlash 2, built without a GPU."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_models import tiny_target
from trtllm_dflash.builder.build_engine import BuildReport, build_engine
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.options.build import BuildConfig

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """An engine of a tiny pair; `quant` is the target's, the drafter is BF16."""

    arch: str
    plugins: bool
    quant: str | None = None
    draft_vocab: bool = False


CASES = [
    Case("sm89", plugins=True),
    Case("sm120", plugins=False, draft_vocab=True),
    Case("sm121", plugins=True, quant="nvfp4"),
]


def _build(case: Case, directory: Path) -> BuildReport:
    target = tiny_target(directory / "target", "qwen3", num_layers=2, head_dim=64, dtype="BF16")
    if case.quant:
        target = quantized_copy(target, directory / "quantized", case.quant)
    drafter = tiny_dflash2(
        directory / "drafter",
        target,
        variant="sliding_bidirectional",
        taps=(0,),
        num_layers=2,
        head_dim=64,
        dtype="BF16",
        settings={"selector_rank": 16},
    )
    (directory / "vocab.json").write_text("[3, 5, 8, 90, 12, 41]")
    return build_engine(
        BuildConfig(
            str(target),
            directory / "engine",
            str(drafter),
            arch=case.arch,
            plugins=case.plugins,
            draft_vocab=str(directory / "vocab.json") if case.draft_vocab else None,
            max_batch_size=2,
            max_seq_len=64,
        )
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_engine_directory(case: Case, two_at_once: Executor, tmp_path: Path) -> None:
    """The selector's kernel is in the engine exactly where our kernels are."""
    report = two_at_once.submit(_build, case, tmp_path).result(timeout=600)
    assert manifest.check(report.directory, deep=True) == []
    facts = manifest.load(report.directory)
    assert facts["arch"] == case.arch
    kernels = {entry["kernel"] for entry in facts.get("kernels", [])}
    assert ("select" in kernels) == case.plugins
