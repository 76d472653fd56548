"""How many profiles an engine has, and the shapes that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_dflash.builder.optimization_profiles import profiles
from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.options.build import BuildConfig


@pytest.fixture
def pair(make_target: Callable[..., Path], make_drafter: Callable[..., Path]) -> ResolvedModels:
    """Resolve a pair whose blocks have 4 tokens, for sequences of 64."""
    target = make_target("llama", dtype="BF16", head_dim=64)
    drafter = make_drafter(target, dtype="BF16", head_dim=64)
    return _resolved(target, drafter)


@pytest.fixture
def plain(make_target: Callable[..., Path]) -> ResolvedModels:
    """Resolve the target alone."""
    return _resolved(make_target("llama", dtype="BF16", head_dim=64), None)


def _resolved(target: Path, drafter: Path | None) -> ResolvedModels:
    other = str(drafter) if drafter else None
    config = BuildConfig(
        str(target), Path("no-engine"), other, arch="sm120", plugins=False, max_seq_len=64
    )
    return resolve_models(config)


@pytest.mark.parametrize(("plugins", "usual"), [(True, 4), (False, 63)])
def test_one_slot_has_one_profile_for_both(
    plugins: bool, usual: int, pair: ResolvedModels
) -> None:
    """TensorRT-RTX chooses products by the step's own shape; TensorRT times those of a profile."""
    alone = replace(pair.resolved, max_batch_size=1, plugins=plugins)
    (both,) = profiles(pair.io, alone)
    assert both["input_ids"] == ((1, 1), (1, usual), (1, 63))
    assert both["decided"] == ((1,), (4,), (4,))
    assert both["kv_positions"] == ((1,), (64,), (128,))
    assert len(profiles(pair.io, replace(alone, backend="tensorrt"))) == 2


@pytest.mark.parametrize(("slots", "widest", "limit"), [(1, 63, 2), (1, 1, 1), (2, 63, 1)])
def test_a_row_alone_is_decoded_as_one_of_two(
    plain: ResolvedModels, slots: int, widest: int, limit: int
) -> None:
    """The compiler has another layout of weights for steps of exactly one row."""
    sizes = replace(
        plain.resolved, max_batch_size=slots, max_num_tokens=widest, backend="tensorrt"
    )
    decode = profiles(plain.io, sizes)[1]
    assert decode["input_ids"] == ((1, 1), (slots, 1), (slots, limit))
    assert decode["decided"] == ((1,), (1,), (1,))
