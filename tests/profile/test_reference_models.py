"""The reference package and transformers are asked only for what they compute as an engine does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.engines import build_here
from tests.fixtures.published import published_copy
from tests.fixtures.speculators import speculators_drafter
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_models import (
    HIDDEN,
    VOCAB,
    tiny_drafter,
    tiny_target,
    write_safetensors,
)
from tests.fixtures.trained_pair.make_dflash2 import write_dflash2
from tests.profile.conftest import PROMPTS, TARGET
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.profile.profiler import profile
from trtllm_dflash.profile.reference_models import check_target, reference_class


def _with_tensors(drafter: Path, more: dict[str, np.ndarray]) -> Path:
    infos = read_tensor_infos(drafter / "model.safetensors")
    tensors = {name: np.array(info.array()) for name, info in infos.items()}
    write_safetensors(drafter / "model.safetensors", tensors | more)
    return drafter


def _with_sinks(directory: Path, target: Path) -> Path:
    drafter = tiny_drafter(directory, target, config={"attention_sink_bias": True})
    names = [f"layers.{layer}.self_attn.attention_sink_bias" for layer in range(3)]
    return _with_tensors(drafter, {name: np.zeros(9) for name in names})


def _with_own_embedding(directory: Path, target: Path) -> Path:
    rows = np.random.default_rng(5).standard_normal((VOCAB, HIDDEN))
    return _with_tensors(tiny_drafter(directory, target), {"embed_tokens.weight": rows})


REFUSED: dict[str, Callable[[Path, Path], Path]] = {
    "layout of speculators": speculators_drafter,
    "no attention sinks": _with_sinks,
    "embedding or head of the drafter's own": _with_own_embedding,
    "key num_target_layers": lambda directory, target: tiny_drafter(
        directory, target, config={"num_target_layers": None}
    ),
    "drafts from the anchor's row": lambda directory, target: tiny_drafter(
        directory, target, config={"sample_from_anchor": True}
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_the_package_does_not_compute_is_refused(words: str, tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = REFUSED[words](tmp_path / "drafter", target)
    with pytest.raises(UsageError, match=f"dflash 0.1.0 .*{words}"):
        reference_class(target, drafter)


def test_each_drafter_has_its_class(tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", "qwen3")
    first, second = tiny_drafter(tmp_path / "1", target), tiny_dflash2(tmp_path / "2", target)
    assert reference_class(target, first) == "DFlashDraftModel"
    assert reference_class(target, second) == "DFlash2DraftModel"


def test_a_quantized_target_is_refused_before_anything_runs(tmp_path: Path) -> None:
    source = tiny_target(tmp_path / "source", "qwen3")
    check_target(source)
    target = published_copy(source, tmp_path / "target", "fine_grained")
    with pytest.raises(UsageError, match="linears in fp8_block, and transformers"):
        check_target(target)


@pytest.mark.slow
def test_the_reference_of_dflash2_accepts_as_many(tmp_path: Path) -> None:
    """Of its other class, which has neither convolutions nor a selector, hardly any draft is."""
    pytest.importorskip("dflash")
    drafter = write_dflash2(tmp_path / "drafter")
    sizes = {"max_seq_len": 96, "max_num_tokens": 32}
    config = BuildConfig(str(TARGET), tmp_path / "engine", drafter=str(drafter), **sizes)
    found = profile(
        ProfileConfig(
            build_here(config), against="plain,reference", max_tokens=24, num_threads=1
        ),
        PROMPTS,
        argv=["test"],
    )
    (theirs,) = (result for result in found.results if result.system == "reference")
    ours = next(
        result
        for result in found.results
        if result.draft_len == theirs.draft_len and result.system != "reference"
    )
    assert theirs.same_tokens == len(PROMPTS.prompts)
    assert ours.acceptance.by_position == pytest.approx(theirs.acceptance.by_position)
    assert theirs.acceptance.acceptance_length > 2
