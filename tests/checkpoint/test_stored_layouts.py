"""Layouts of the same tensors: a tied table stored as the head, and experts in one tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint.test_loader import copy_with
from tests.fixtures.tiny_moe import QWEN3_MOE, tiny_qwen3_moe
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.errors import CheckpointError


def test_tied_target_that_stores_its_head(qwen3: Path, tmp_path: Path) -> None:
    usual = load_target(qwen3)
    table = np.array(usual.tensors["model.embed_tokens.weight"].array())
    stored = {"model.embed_tokens.weight": None, "lm_head.weight": table}
    loaded = load_target(copy_with(qwen3, tmp_path / "m", stored))
    assert loaded.tensors.keys() == usual.tensors.keys()
    assert np.array_equal(loaded.tensors["model.embed_tokens.weight"].array(), table)
    assert loaded.config.tie_word_embeddings


def test_untied_target_without_embedding(llama: Path, tmp_path: Path) -> None:
    stored = {"model.embed_tokens.weight": None}
    with pytest.raises(CheckpointError, match=r"missing: model\.embed_tokens\.weight"):
        load_target(copy_with(llama, tmp_path / "m", stored))


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_experts_in_one_tensor_are_their_linears(dtype: str, tmp_path: Path) -> None:
    usual = load_target(tiny_qwen3_moe(tmp_path / "usual", dtype=dtype))
    fused = load_target(tiny_qwen3_moe(tmp_path / "fused", dtype=dtype, fused=True))
    assert fused.tensors.keys() == usual.tensors.keys()
    assert fused.nbytes == usual.nbytes
    for name, info in usual.tensors.items():
        assert np.array_equal(info.array(), fused.tensors[name].array()), name


def test_fused_experts_of_another_number(tmp_path: Path) -> None:
    path = tiny_qwen3_moe(
        tmp_path / "m", fused=True, config={"num_experts": QWEN3_MOE["experts"] - 1}
    )
    with pytest.raises(CheckpointError, match="experts in one tensor of another shape"):
        load_target(path)
