"""Where a generation begins and ends, on a real engine that accepts several drafts in a step."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.e2e.test_trained_pair import DRAFTER, TARGET
from trtllm_dflash.errors import UsageError

PROMPT = [3, 5, 7, 10]
MASK = 66


@pytest.fixture(scope="module")
def greedy() -> list[int]:
    """Return the target's greedy answer to PROMPT, by Hugging Face."""
    return hugging_face.greedy(hugging_face.load_target(TARGET), PROMPT, 60)


def test_a_stop_token_inside_a_block_ends_the_answer_there(
    greedy: list[int], engine: EngineFactory
) -> None:
    """Every token of the answer as the stop token, so that it stands at every place of a block."""
    target = hugging_face.load_target(TARGET)
    for stop in dict.fromkeys(greedy):
        (answer,) = engine(TARGET, DRAFTER).generate(
            [PROMPT], max_tokens=60, stop_token_ids=[stop]
        )
        assert answer.token_ids == hugging_face.greedy(target, PROMPT, 60, eos=stop)
        assert answer.finish_reason == "stop"
        assert answer.token_ids.index(stop) == len(answer.token_ids) - 1
        assert sum(answer.acceptance_lengths) + 1 == len(answer.token_ids)


@pytest.mark.parametrize("limit", range(1, 12))
def test_the_answer_ends_at_its_limit(
    limit: int, greedy: list[int], engine: EngineFactory
) -> None:
    (answer,) = engine(TARGET, DRAFTER).generate([PROMPT], max_tokens=limit)
    assert (answer.token_ids, answer.finish_reason) == (greedy[:limit], "length")


def test_a_sequence_fills_max_seq_len(greedy: list[int], engine: EngineFactory) -> None:
    """Blocks that would reach behind the end are cut; neighbours go on unharmed."""
    small = engine(TARGET, DRAFTER, max_seq_len=32)
    long = PROMPT + greedy[:20]
    answers = small.generate([PROMPT, long], max_tokens=1000)
    assert [answer.finish_reason for answer in answers] == ["length", "length"]
    assert answers[0].token_ids == greedy[:28]
    assert answers[1].token_ids == greedy[20:28]


def test_a_prompt_may_contain_the_mask_token(engine: EngineFactory) -> None:
    prompt = [MASK, 3, MASK, 5, 7, MASK]
    expected = hugging_face.greedy(hugging_face.load_target(TARGET), prompt, 30)
    for draft in (True, False):
        assert (
            engine(TARGET, DRAFTER).generate([prompt], max_tokens=30, draft=draft)[0].token_ids
            == expected
        )


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "is empty"),
        ([1] * 17, "has 17 tokens, and prompts of this engine hold at most 16"),
        ([67], r"the id 67, outside the vocabulary \(0 to 66\)"),
    ],
)
def test_what_cannot_be_a_prompt(prompt: list[int], words: str, engine: EngineFactory) -> None:
    with pytest.raises(UsageError, match=words):
        engine(TARGET, DRAFTER, max_seq_len=32, max_input_len=16).generate([prompt])
