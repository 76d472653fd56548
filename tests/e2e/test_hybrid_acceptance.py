"""What a hybrid target's drafter proposes equals a computation without any cache or state.

The reference of each step is one pass of Hugging Face's target over the whole text. The reference
package's drafter then takes all its features at once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.e2e.hybrids import HybridTargets, answers, with_oracle
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import MASK_ID, tiny_drafter

pytestmark = pytest.mark.slow

BLOCK_SIZE = 5


@pytest.mark.parametrize(
    ("name", "variant"),
    [("qwen3_next", "mixed"), ("qwen3_5", "full"), ("qwen3_5_moe_vl", "sliding_bidirectional")],
)
def test_proposals_after_partly_accepted_blocks(
    name: str, variant: str, engine: EngineFactory, tmp_path: Path
) -> None:
    """Features of accepted drafts come out of a state that has not taken them in yet."""
    target = HybridTargets(tmp_path)(name, tied=True)
    directory = tiny_drafter(
        tmp_path / "drafter", target.directory, variant=variant, block_size=BLOCK_SIZE
    )
    drafter = hugging_face.load_drafter(directory)
    guided, oracle = with_oracle(engine(target.directory, directory), target.texts, seed=4)
    assert answers(guided) == target.expected
    assert np.mean(oracle.accepted) > 1
    assert len(oracle.proposals) > 20
    for text, drafts in oracle.proposals:
        assert drafts == hugging_face.drafts_without_caches(
            drafter, target.model, text, MASK_ID, BLOCK_SIZE
        )


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5"])
def test_acceptance_equals_that_of_the_reference(
    name: str, engine: EngineFactory, tmp_path: Path
) -> None:
    """Of seven tokens a random drafter is right now and then. Step by step, but for the last one,
    which may be cut.
    """
    vocab, count = 7, 60
    target = tiny_hybrid(tmp_path / "target", name, vocab_size=vocab)
    directory = tiny_drafter(tmp_path / "drafter", target, block_size=BLOCK_SIZE)
    model, drafter = hugging_face.load_target(target), hugging_face.load_drafter(directory)
    prompts = [np.random.default_rng(n).integers(0, vocab, n).tolist() for n in (3, 11, 20)]
    lengths = []
    answers = engine(target, directory).generate(prompts, max_tokens=count, drafts="dflash")
    for prompt, answer in zip(prompts, answers, strict=True):
        text = hugging_face.greedy(model, prompt, count)
        assert answer.token_ids == text
        place = 1
        for length in answer.acceptance_lengths[:-1]:
            drafts = hugging_face.drafts_without_caches(
                drafter, model, [*prompt, *text[:place]], vocab - 1, BLOCK_SIZE
            )
            assert length == 1 + _equal_at_first(drafts, text[place:])
            place += length
            lengths.append(length)
    assert len(set(lengths)) > 2


def _equal_at_first(drafts: list[int], text: list[int]) -> int:
    """Return how many drafts stand before the first that is not the text's token."""
    equal = [draft == token for draft, token in zip(drafts, text, strict=False)]
    return equal.index(False) if False in equal else len(equal)
