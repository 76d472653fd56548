"""FP8 caches on the CPU: what lies in them are E4M3 codes, and what is said does not depend on
drafts or batches.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.e2e.conftest import EngineFactory
from tests.e2e.logits import feeds, session
from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_models import VOCAB, tiny_drafter, tiny_target
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.graph.kv_scales import read_kv_scales
from trtllm_dflash.graph.step import build_step

PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in (1, 5, 8, 9, 27)]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Qwen3 in FP8 throughout, which has scales for its caches."""
    directory = tmp_path_factory.mktemp("fp8")
    return quantized_copy(
        tiny_target(directory / "source", "qwen3"), directory / "target", "fp8", kv_cache=True
    )


def test_speculative_equals_plain(target: Path, engine: EngineFactory, tmp_path: Path) -> None:
    plain = [
        item.token_ids for item in engine(target, None).generate(PROMPTS, max_tokens=NEW_TOKENS)
    ]
    speculative = engine(target, tiny_drafter(tmp_path / "drafter", target, variant="mixed"))
    for draft_len in (None, 1, 2):
        out = speculative.generate(PROMPTS, max_tokens=NEW_TOKENS, draft_len=draft_len)
        assert [item.token_ids for item in out] == plain
    sequentially = [
        speculative.generate([prompt], max_tokens=NEW_TOKENS)[0].token_ids for prompt in PROMPTS
    ]
    assert sequentially == plain
    unrounded = engine(target, None, kv_cache_dtype="float32").generate(
        PROMPTS, max_tokens=NEW_TOKENS
    )
    assert [
        item.token_ids for item in unrounded
    ] != plain  # or the scales would not have been used


def test_caches_hold_codes(target: Path) -> None:
    checkpoint = load_target(target)
    scales = read_kv_scales(checkpoint)
    model = build_step(
        checkpoint, None, dtype="float32", cache_len=64, block_size=1, kv_scales=scales
    )
    made, names = session(model)
    ids = np.random.default_rng(3).integers(0, VOCAB, (2, 11))
    results = dict(zip(names, made.run(names, feeds(made, ids)), strict=True))
    caches = [results[name] for name in names if name.startswith("target_")]
    assert len(caches) == 2 * checkpoint.config.num_layers
    for cache in caches:
        np.testing.assert_array_equal(
            cache, cache.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        )
        assert len(np.unique(cache)) > 50
