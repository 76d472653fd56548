"""Hybrid targets: speculative greedy = plain greedy = Hugging Face's generate, token for token.

Drafts come from the random drafter itself, of which few are accepted, and from an oracle, of which
a random number is. The full range of choices is in test_hybrid_choices.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e.conftest import EngineFactory
from tests.e2e.hybrids import NAMES, PROMPTS, HybridTargets, answers, with_oracle
from tests.fixtures.tiny_models import tiny_drafter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> HybridTargets:
    """Return the targets of this file."""
    return HybridTargets(tmp_path_factory.mktemp("hybrids"))


@pytest.fixture(scope="module")
def drafter(targets: HybridTargets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a drafter of windowed and full layers, for all targets: they have the same sizes."""
    folder = tmp_path_factory.mktemp("drafter") / "mixed"
    target = targets("qwen3_5", tied=True).directory
    return tiny_drafter(folder, target, variant="mixed", block_size=6)


@pytest.mark.parametrize("name", NAMES)
def test_speculative_plain_and_hugging_face_agree(
    name: str, targets: HybridTargets, drafter: Path, engine: EngineFactory
) -> None:
    """With fewer slots than prompts, so that slots are reused and moved."""
    target = targets(name, tied=False)
    speculative = engine(target.directory, drafter, max_batch_size=3)
    for options in ({}, {"draft_len": 1}, {"draft": False}):
        assert answers(speculative, **options) == target.expected, options
    assert answers(engine(target.directory, None, max_batch_size=3)) == target.expected
    alone = [answers(speculative, [prompt])[0] for prompt in PROMPTS]
    assert alone == target.expected


@pytest.mark.parametrize("name", NAMES)
def test_blocks_that_are_accepted_in_part_change_nothing(
    name: str, targets: HybridTargets, drafter: Path, engine: EngineFactory
) -> None:
    """Accepted drafts enter the state one step later, rejected ones never."""
    target = targets(name, tied=False)
    speculative = engine(target.directory, drafter, max_batch_size=3)
    for seed in range(3):
        guided, oracle = with_oracle(speculative, target.texts, seed=seed)
        for draft_len in (5, 3, 1):
            assert answers(guided, draft_len=draft_len) == target.expected
        assert oracle.accepted == oracle.offered
        assert set(oracle.offered) == set(range(6))


def test_the_oracle_notices_a_wrong_state(
    targets: HybridTargets, drafter: Path, engine: EngineFactory
) -> None:
    """The proof can fail: accepted drafts that never enter the state change the text."""
    target = targets("qwen3_5", tied=False)
    speculative = engine(target.directory, drafter, max_batch_size=3)
    session = speculative._session
    guided, oracle = with_oracle(speculative, target.texts, seed=0)
    whole = session.decode

    def decode(count: int, width: int, *, draft: bool = True) -> None:
        session._slots["state_len"][:count] = session._slots["past_len"][:count]
        whole(count, width, draft=draft)

    session.decode = decode
    try:
        assert answers(guided) != target.expected
    finally:
        del session.decode
    assert oracle.accepted != oracle.offered
    assert answers(speculative) == target.expected


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe_vl"])
def test_sampled_tokens_do_not_depend_on_drafts(
    name: str, targets: HybridTargets, drafter: Path, engine: EngineFactory
) -> None:
    """Alone and in a batch, plain and speculative, with the drafter's drafts and an oracle's."""
    target = targets(name, tied=True)
    speculative = engine(target.directory, drafter, max_batch_size=3)
    plain = engine(target.directory, None, max_batch_size=3)
    seeds = list(range(7, 7 + len(PROMPTS)))
    for options in ({"temperature": 0.8}, {"temperature": 1.3, "top_p": 0.9, "top_k": 20}):
        longer = answers(plain, seed=seeds, max_tokens=40, **options)
        expected = [text[:24] for text in longer]
        assert answers(speculative, seed=seeds, **options) == expected
        alone = [
            answers(speculative, [prompt], seed=seed, **options)[0]
            for prompt, seed in zip(PROMPTS, seeds, strict=True)
        ]
        assert alone == expected
        guided, oracle = with_oracle(speculative, longer, seed=1)
        assert answers(guided, seed=seeds, **options) == expected
        assert np.mean(oracle.accepted) > 1
    assert expected != target.expected
