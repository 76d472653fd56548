"""Drafters in the layout of `speculators`: their drafts are the maker's own, one by one.

The maker's are in tests/makers/speculators_drafts.json, since its package asks for an older
transformers than these tests use. Where it is installed all the same, it is asked again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.graph.stepper import Stepper
from tests.makers import speculators_drafts as maker
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair, draft_ids
from trtllm_dflash.graph.step import build_step

RECORD = json.loads(maker.RECORD.read_text(encoding="utf-8"))["cases"]
NEW_TOKENS = 24


def our_drafts(target_dir: Path, drafter_dir: Path) -> list[list[int]]:
    """Return the drafts of our step behind each of the maker's prompts."""
    target = load_target(target_dir)
    drafter = check_pair(target, load_drafter(drafter_dir))
    block = drafter.config.block_size
    model = build_step(
        target,
        drafter,
        dtype="float32",
        cache_len=32,
        block_size=block,
        draft_vocab=draft_ids(drafter),
    )
    stepper = Stepper(model, slots=len(maker.PROMPTS))
    drafts = []
    for slot, prompt in enumerate(maker.PROMPTS):
        rows = np.array([prompt])
        found = stepper.step(slice(slot, slot + 1), rows, known=len(prompt), rows=1)
        drafts.append(found["next_ids"][0, 1:].tolist())
    return drafts


@pytest.mark.parametrize("case", maker.CASES)
def test_the_fixtures_layout_is_the_makers(case: str, tmp_path: Path) -> None:
    """Keys of config.json, and tensors with their types and shapes, as the maker saves them."""
    pytest.importorskip("safetensors")
    _, drafter = maker.write_case(case, tmp_path)
    ours, theirs = maker.layout(drafter), RECORD[case]["layout"]
    assert ours["tensors"] == theirs["tensors"]
    assert maker.same_keys(ours["config"]) == theirs["config"]


@pytest.mark.parametrize("case", maker.CASES)
def test_drafts_are_the_makers(case: str, tmp_path: Path) -> None:
    assert our_drafts(*maker.write_case(case, tmp_path)) == RECORD[case]["drafts"]


@pytest.mark.slow
@pytest.mark.parametrize("case", maker.CASES)
def test_the_record_is_what_the_maker_gives(case: str, tmp_path: Path) -> None:
    pytest.importorskip("speculators")
    assert maker.drafts(*maker.write_case(case, tmp_path)) == RECORD[case]["drafts"]


@pytest.mark.parametrize("case", ["own vocabulary", "sliding, not causal"])
def test_answers_are_hugging_faces(case: str, engine: EngineFactory, tmp_path: Path) -> None:
    """Prompts in chunks, alone and in a batch, with and without drafts."""
    target, drafter = maker.write_case(case, tmp_path)
    model = hugging_face.load_target(target)
    prompts = maker.PROMPTS[:5]
    expected = [hugging_face.greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    speculative = engine(target, drafter)
    for options in ({}, {"draft_len": 1}, {"draft": False}):
        out = speculative.generate(prompts, max_tokens=NEW_TOKENS, **options)
        assert [item.token_ids for item in out] == expected, options
    alone = speculative.generate(prompts[:1], max_tokens=NEW_TOKENS)
    assert alone[0].token_ids == expected[0]
