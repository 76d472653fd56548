"""Tokens equal Hugging Face's from other layouts of the same weights, and padded drafters fit."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np

from tests.checkpoint.test_loader import copy_with
from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.e2e.test_greedy_equality import NEW_TOKENS, PROMPTS
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from trtllm_dflash.checkpoint.loader import load_target

pytestmark = pytest.mark.slow


def _tied_head(root: Path) -> Path:
    usual = tiny_target(root / "usual", "qwen3", tied=True)
    table = np.array(load_target(usual).tensors["model.embed_tokens.weight"].array())
    stored = {"model.embed_tokens.weight": None, "lm_head.weight": table}
    return copy_with(usual, root / "head", stored)


def _fused(root: Path) -> Path:
    return tiny_qwen3_moe(root / "fused", fused=True)


def _yarn(root: Path) -> Path:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}
    config = {"max_position_embeddings": 64, "rope_scaling": scaling}
    return tiny_target(root / "yarn", "qwen3", config=config)


@pytest.mark.parametrize("make", [_tied_head, _fused, _yarn])
def test_tokens_equal_hugging_faces(
    make: object, engine: EngineFactory, tmp_path: Path
) -> None:
    assert callable(make)
    target = make(tmp_path)
    model = hugging_face.load_target(target)
    drafter = tiny_drafter(tmp_path / "drafter", target, num_taps=2)
    drafter = copy_with(drafter, tmp_path / "padded", {}, vocab_size=128)
    out = engine(target, drafter).generate(PROMPTS, max_tokens=NEW_TOKENS)
    for prompt, answer in zip(PROMPTS, out, strict=True):
        assert answer.token_ids == hugging_face.greedy(model, prompt, NEW_TOKENS)


def test_yarn_beyond_max_position_embeddings(engine: EngineFactory, tmp_path: Path) -> None:
    target = _yarn(tmp_path)
    model = hugging_face.load_target(target)
    prompt = np.random.default_rng(5).integers(0, 97, 150).tolist()
    (out,) = engine(target, None).generate([prompt], max_tokens=NEW_TOKENS)
    assert out.token_ids == hugging_face.greedy(model, prompt, NEW_TOKENS)
