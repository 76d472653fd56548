"""The demo pair, real weights: SmolLM2-135M-Instruct and the drafter trained for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from trtllm_dflash import Engine, Generation

ROOT = Path(__file__).parents[2]
DEMO, PAIR = ROOT / "demo", ROOT / "examples" / "demo_pair"
NEW_TOKENS = 24

pytestmark = [pytest.mark.slow, pytest.mark.demo]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Fifty held-out and ten unseen prompts of all kinds, in the chat format."""
    tokenizer = Engine.load(DEMO / "plain").tokenizer
    assert tokenizer is not None
    lines = [*_lines("heldout")[::2], *_lines("unseen")[::4]]
    return [list(tokenizer.encode_chat(json.loads(line)["prompt"])) for line in lines]


@pytest.fixture(scope="module")
def answers(prompts: list[list[int]]) -> list[Generation]:
    """Return the DFlash engine's answers, four slots at a time."""
    return Engine.load(DEMO / "cpu").generate(prompts, max_tokens=NEW_TOKENS, stop_token_ids=[])


def test_every_prompt_equals_hugging_face(
    prompts: list[list[int]], answers: list[Generation]
) -> None:
    target = hugging_face.load_target(DEMO / "target")
    assert len(prompts) >= 50
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == hugging_face.choices(target, prompt, answer.token_ids)
    for prompt, answer in list(zip(prompts, answers, strict=True))[::20]:
        assert answer.token_ids == hugging_face.greedy(target, prompt, NEW_TOKENS)


def test_hugging_face_notices_a_wrong_token(
    prompts: list[list[int]], answers: list[Generation]
) -> None:
    wrong = [*answers[0].token_ids]
    wrong[NEW_TOKENS // 2] += 1
    assert (
        hugging_face.choices(hugging_face.load_target(DEMO / "target"), prompts[0], wrong)
        != wrong
    )


def test_plain_engine_gives_the_same_tokens(
    prompts: list[list[int]], answers: list[Generation]
) -> None:
    plain = Engine.load(DEMO / "plain").generate(
        prompts, max_tokens=NEW_TOKENS, stop_token_ids=[]
    )
    assert [item.token_ids for item in plain] == [item.token_ids for item in answers]


def test_the_drafter_is_accepted(answers: list[Generation]) -> None:
    """Far above the 1.0 of a drafter that is never right: the pair is wired as it was trained."""
    assert np.mean([length for answer in answers for length in answer.acceptance_lengths]) > 1.4


def _lines(name: str) -> list[str]:
    return (PAIR / "prompts" / f"{name}.jsonl").read_text().splitlines()
