"""Speculative greedy = plain greedy = Hugging Face's generate, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.fixtures.tiny_models import (
    DENSE_FAMILIES,
    DRAFTER_VARIANTS,
    MASK_ID,
    VOCAB,
    tiny_drafter,
    tiny_target,
)

NEW_TOKENS = 24
# Lengths around the 8-token chunk: one token, less, exactly one chunk, one more, several chunks.
PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in (1, 5, 8, 9, 27)]
PROMPTS[1][2] = MASK_ID  # a prompt may contain the mask token

# Every dense family at its defaults, but for Llama.
TARGETS: dict[str, dict[str, Any]] = {name: {"model_type": name} for name in DENSE_FAMILIES} | {
    "llama": {"model_type": "llama", "rope": "llama3", "tied": True},
    "llama_bias": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "shards": 3,
    },
}


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the tiny targets."""
    root = tmp_path_factory.mktemp("targets")
    return {name: tiny_target(root / name, **options) for name, options in TARGETS.items()}


@pytest.fixture(scope="session")
def expected(targets: dict[str, Path]) -> dict[str, list[list[int]]]:
    """Return Hugging Face's greedy tokens for every target and prompt."""
    tokens = {}
    for name, path in targets.items():
        model = hugging_face.load_target(path)
        tokens[name] = [hugging_face.greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("variant", DRAFTER_VARIANTS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_every_mask_variant(
    name: str,
    variant: str,
    targets: dict[str, Path],
    expected: dict[str, list[list[int]]],
    engine: EngineFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Batches of 1 to 5 prompts of different lengths, in chunks, with every number of drafts up to
    the block's.
    """
    drafter = tiny_drafter(
        tmp_path_factory.mktemp(variant) / "drafter",
        targets[name],
        variant=variant,
        yarn=variant == "mixed",
        attention_bias=variant == "full",
        num_taps=2 if variant == "causal" else 4,
    )
    speculative = engine(targets[name], drafter)
    for batch in range(1, 6):
        out = speculative.generate(PROMPTS[:batch], max_tokens=NEW_TOKENS)
        assert [item.token_ids for item in out] == expected[name][:batch], f"batch of {batch}"
    for draft_len in (1, 2):
        out = speculative.generate(PROMPTS, max_tokens=NEW_TOKENS, draft_len=draft_len)
        assert [item.token_ids for item in out] == expected[name], f"draft_len {draft_len}"
    out = speculative.generate(PROMPTS, max_tokens=NEW_TOKENS, draft=False)
    assert [item.token_ids for item in out] == expected[name], "no draft"


@pytest.mark.parametrize("name", TARGETS)
def test_plain_engine(
    name: str,
    targets: dict[str, Path],
    expected: dict[str, list[list[int]]],
    engine: EngineFactory,
) -> None:
    """An engine without a drafter: the baseline of every speedup."""
    out = engine(targets[name], None).generate(PROMPTS, max_tokens=NEW_TOKENS)
    assert [item.token_ids for item in out] == expected[name]
    assert {length for item in out for length in item.acceptance_lengths} == {1}


@pytest.mark.parametrize("name", sorted(DENSE_FAMILIES))
def test_every_family_with_a_drafter(
    name: str,
    targets: dict[str, Path],
    expected: dict[str, list[list[int]]],
    engine: EngineFactory,
    tmp_path: Path,
) -> None:
    """Windowed drafter layers; prompts in chunks, alone and in a batch, with and without drafts."""
    drafter = tiny_drafter(tmp_path / "drafter", targets[name], variant="mixed")
    speculative = engine(targets[name], drafter)
    for options in ({}, {"draft_len": 1}, {"draft": False}):
        out = speculative.generate(PROMPTS, max_tokens=NEW_TOKENS, **options)
        assert [item.token_ids for item in out] == expected[name], options
    alone = [speculative.generate([prompt], max_tokens=NEW_TOKENS)[0] for prompt in PROMPTS]
    assert [item.token_ids for item in alone] == expected[name]


@pytest.mark.slow
@pytest.mark.sample(8)
@pytest.mark.parametrize("block_size", [2, 3, 7])
@pytest.mark.parametrize("variant", DRAFTER_VARIANTS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_block_sizes(
    name: str,
    variant: str,
    block_size: int,
    targets: dict[str, Path],
    expected: dict[str, list[list[int]]],
    engine: EngineFactory,
    tmp_path: Path,
) -> None:
    """Blocks shorter and longer than the window of a sliding layer."""
    drafter = tiny_drafter(tmp_path / "drafter", targets[name], variant=variant, block_size=7)
    out = engine(targets[name], drafter, block_size=block_size).generate(
        PROMPTS, max_tokens=NEW_TOKENS
    )
    assert [item.token_ids for item in out] == expected[name]
