"""Engines of integer weights: DFlash is plain decoding, a batch is its prompts alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import EngineFactory
from tests.fixtures.tiny_models import VOCAB, tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import OF_WHOLE_BLOCKS, tiny_gpt_oss, tiny_qwen3_moe
from trtllm_dflash import Engine, Generation
from trtllm_dflash.checkpoint.block_integers import BITS

NEW_TOKENS = 24
PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in (1, 5, 8, 9, 27)]
ROOT = Path(__file__).parents[2]
DEMO, PAIR = ROOT / "demo", ROOT / "examples" / "demo_pair"


def _ids(answers: list[Generation]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


TARGETS: dict[str, Callable[[Path], Path]] = {
    "tied": lambda folder: tiny_target(folder, "qwen2", tied=True),
    "untied": lambda folder: tiny_target(folder, "qwen2"),
    "gpt_oss": lambda folder: tiny_gpt_oss(folder, mxfp4=False),
    "qwen3_moe": lambda folder: tiny_qwen3_moe(folder, sizes=OF_WHOLE_BLOCKS),
    "qwen3_moe_fused": lambda folder: tiny_qwen3_moe(folder, sizes=OF_WHOLE_BLOCKS, fused=True),
}


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", TARGETS)
def test_drafts_and_batches_change_no_token(
    name: str, precision: str, engine: EngineFactory, tmp_path: Path
) -> None:
    target = TARGETS[name](tmp_path / "target")
    drafter = tiny_drafter(tmp_path / "drafter", target, variant="mixed", num_taps=2)
    plain = engine(target, None, weight_only_precision=precision)
    speculative = engine(target, drafter, weight_only_precision=precision)
    alone = [_ids(plain.generate([prompt], max_tokens=NEW_TOKENS))[0] for prompt in PROMPTS]
    assert _ids(plain.generate(PROMPTS, max_tokens=NEW_TOKENS)) == alone
    for draft_len in (1, 2, 3):
        answers = speculative.generate(PROMPTS, max_tokens=NEW_TOKENS, draft_len=draft_len)
        assert _ids(answers) == alone, f"{draft_len} drafts"
    for prompt, expected in zip(PROMPTS, alone, strict=True):
        assert _ids(speculative.generate([prompt], max_tokens=NEW_TOKENS)) == [expected]


@pytest.mark.parametrize("widest", [1, 129])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_no_step_is_too_narrow_for_a_processor(
    family: str, widest: int, engine: EngineFactory, tmp_path: Path
) -> None:
    """Where a row must not be alone, steps of one row get a neighbour, at the caches' end too."""
    target = tiny_target(tmp_path / "target", family)
    prompts = [prompt * 20 for prompt in PROMPTS[1:4]]
    options = {"weight_only_precision": "int4", "max_batch_size": 2}
    wide = engine(target, None, **options)
    plain = engine(target, None, **options, max_num_tokens=widest)
    expected = _ids(wide.generate(prompts, max_tokens=192 - 180))
    assert _ids(plain.generate(prompts, max_tokens=192 - 180)) == expected


def test_integer_weights_are_not_the_float_ones(engine: EngineFactory, tmp_path: Path) -> None:
    """Four bits of random weights change texts, so the equality above is of another model."""
    target = tiny_target(tmp_path / "target", "llama")
    texts = []
    for precision in (None, "int4"):
        plain = engine(target, None, weight_only_precision=precision)
        texts.append(_ids(plain.generate(PROMPTS, max_tokens=NEW_TOKENS)))
    assert texts[0] != texts[1]


@pytest.mark.slow
@pytest.mark.demo("int8", "plain-int8")
def test_the_demo_pair_in_int8_is_lossless() -> None:
    """Fifteen prompts of the benchmark, alone and four at a time."""
    plain, dflash = (Engine.load(DEMO / name) for name in ("plain-int8", "int8"))
    assert plain.tokenizer is not None
    lines = (PAIR / "prompts" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[::7]
    texts = [json.loads(line)["prompt"] for line in lines]
    prompts = [list(plain.tokenizer.encode_chat(text)) for text in texts]
    expected = _ids(plain.generate(prompts, max_tokens=64))
    answers = dflash.generate(prompts, max_tokens=64)
    assert _ids(answers) == expected
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert _ids(dflash.generate([prompt], max_tokens=64)) == [tokens]
    assert np.mean([length for answer in answers for length in answer.acceptance_lengths]) > 1.4
