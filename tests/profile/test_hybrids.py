"""A profile of a target with linear attention: what runs beside it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.fixtures.tiny_hybrid import SIZES, tiny_hybrid
from tests.fixtures.tiny_models import tiny_drafter
from tests.profile.conftest import PROMPTS
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.profile.profiler import profile
from trtllm_dflash.profile.result import Profile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hybrid_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a DFlash engine of a tiny Qwen3.5 with a random drafter."""
    root = tmp_path_factory.mktemp("hybrid")
    target = tiny_hybrid(root / "target", "qwen3_5")
    drafter = tiny_drafter(root / "drafter", target, num_taps=2)
    sizes: dict[str, Any] = {"max_seq_len": 48, "max_num_tokens": 8}
    build_engine(BuildConfig(str(target), root / "engine", drafter=str(drafter), **sizes))
    return root / "engine"


@pytest.fixture(scope="module")
def hybrid_profile(hybrid_engine: Path) -> Profile:
    """Measure it beside a plain engine, which is built for it, and `generate`."""
    options: dict[str, Any] = {"against": "plain,hf", "max_tokens": 12, "num_threads": 1}
    return profile(ProfileConfig(hybrid_engine, **options), PROMPTS, argv=["test"])


def test_generate_runs_beside_and_gives_the_same_tokens(hybrid_profile: Profile) -> None:
    """But without a prompt lookup: transformers cannot take drafts back from a state."""
    systems = [result.system for result in hybrid_profile.results]
    assert systems[0] == "plain"
    assert systems[-1] == "hf"
    assert all(result.same_tokens == len(PROMPTS.prompts) for result in hybrid_profile.results)


def test_breakdown_has_full_and_linear_layers(hybrid_profile: Profile) -> None:
    for breakdown in hybrid_profile.step_breakdowns:
        names = [row.layer for row in breakdown.layers if "target/layers." in row.layer]
        assert names == [f"target/layers.{index}" for index in range(SIZES["layers"])]


def test_reference_is_refused_beside_linear_attention(hybrid_engine: Path) -> None:
    asked = ProfileConfig(hybrid_engine, against="plain,reference", max_tokens=4)
    words = "--against reference: this target has linear attention.*leaves a recurrent state"
    with pytest.raises(UsageError, match=words):
        profile(asked, PROMPTS)
