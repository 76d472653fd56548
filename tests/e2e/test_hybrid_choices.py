"""Hybrid targets over the range of choices: every two values of different choices occur together.

Each case compares greedy tokens with Hugging Face's generate, with the drafter's own drafts and
with an oracle's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.e2e.hybrids import BLOCK, NAMES, HybridTargets, answers, with_oracle
from tests.fixtures.engines import build_here
from tests.fixtures.pairwise import Case, pairwise
from tests.fixtures.tiny_models import DRAFTER_VARIANTS, tiny_drafter
from trtllm_dflash import Engine
from trtllm_dflash.options.build import BuildConfig

pytestmark = pytest.mark.slow

CHOICES: dict[str, list[Any]] = {
    "name": list(NAMES),
    "tied": [False, True],
    "fused": [False, True],
    "variant": list(DRAFTER_VARIANTS),
    "block_size": [2, 3, 4, 7, BLOCK],
    "chunk": [1, 5, 8, 64],
    "batch": [1, 2, 3, 4, 5],
}


def _has_layout(case: Case) -> bool:
    return NAMES[case["name"]] or not case["fused"]


CASES = pairwise(CHOICES, _has_layout)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> HybridTargets:
    """Return the targets of this file."""
    return HybridTargets(tmp_path_factory.mktemp("hybrids"))


@pytest.mark.sample(10)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_tokens_equal_hugging_faces(case: Case, targets: HybridTargets, tmp_path: Path) -> None:
    target = targets(case["name"], tied=case["tied"], fused=case["fused"])
    reference = targets(case["name"], tied=case["tied"])  # the same numbers
    drafter = tiny_drafter(
        tmp_path / "drafter", target.directory, variant=case["variant"], block_size=BLOCK
    )
    config = BuildConfig(
        str(target.directory),
        tmp_path / "engine",
        drafter=str(drafter),
        block_size=case["block_size"],
        max_batch_size=case["batch"],
        max_num_tokens=max(case["chunk"], case["block_size"]),
        max_seq_len=96,
    )
    build_here(config)
    with Engine.load(tmp_path / "engine", num_threads=1) as speculative:
        own, _ = with_oracle(speculative, None, chunk=case["chunk"])
        assert answers(own) == reference.expected
        guided, oracle = with_oracle(
            speculative, reference.texts, seed=case["block_size"], chunk=case["chunk"]
        )
        assert answers(guided) == reference.expected
        assert oracle.accepted == oracle.offered
        assert max(oracle.accepted) == case["block_size"] - 1


@pytest.mark.parametrize("name", [name for name, has_experts in NAMES.items() if has_experts])
def test_both_layouts_of_experts_are_one_model(name: str, targets: HybridTargets) -> None:
    """What the cases above rely on: Hugging Face answers the same to both."""
    fused, usual = (targets(name, tied=False, fused=fused) for fused in (True, False))
    assert fused.expected == usual.expected
