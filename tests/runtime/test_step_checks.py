"""Numbers from the device are checked before any of them is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.patience import PATIENCE
from tests.runtime.callers import Caller
from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions.base import StepResult

VOCAB = 23  # of the fake
Change = Callable[[StepResult], StepResult]


def corrupt(engine: Engine, change: Change, *, steps: set[int]) -> None:
    """Change the results of the session's steps with these numbers, from 1."""
    session: Any = engine._session
    collect = session.collect
    number = 0

    def corrupted() -> StepResult:
        nonlocal number
        number += 1
        result: StepResult = collect()
        return change(result) if number in steps else result

    session.collect = corrupted


def with_num_new(value: int) -> Change:
    return lambda result: replace(result, num_new=np.full_like(result.num_new, value))


def with_first_id(value: int, slot: int = 0) -> Change:
    def change(result: StepResult) -> StepResult:
        new_ids = result.new_ids.copy()
        new_ids[slot, 0] = value
        return replace(result, new_ids=new_ids)

    return change


def with_last_id(value: int) -> Change:
    def change(result: StepResult) -> StepResult:
        new_ids = result.new_ids.copy()
        new_ids[0, result.num_new[0] - 1] = value
        return replace(result, new_ids=new_ids)

    return change


def with_next_len(result: StepResult) -> StepResult:
    assert result.next_len is not None
    return replace(result, next_len=result.next_len + 1)


def with_next_state_len(result: StepResult) -> StepResult:
    assert result.next_state_len is not None
    return replace(result, next_state_len=result.next_state_len - 1)


CASES: dict[str, tuple[Change, str]] = {
    "zeroed results": (with_num_new(0), "num_new is 0, expected 1 to 4"),
    "more than columns": (with_num_new(99), "num_new is 99, expected 1 to 4"),
    "negative": (with_num_new(-1), "num_new is -1, expected 1 to 4"),
    "id of the vocabulary's size": (
        with_first_id(VOCAB),
        f"the id {VOCAB}, and the vocabulary has 0 to {VOCAB - 1}",
    ),
    "poison": (with_first_id(-7), "the id -7, and the vocabulary has 0 to 22"),
    "id beyond int32": (with_first_id(2**40), f"the id {2**40}"),
    "another position": (with_next_len, r"next_len is \d+, expected \d+"),
    "another position of states": (
        with_next_state_len,
        r"next_state_len is \d+, expected \d+",
    ),
    "states of too many slots": (
        lambda result: replace(result, next_state_len=np.zeros(2, np.int32)),
        r"next_state_len has the shape \[2\], expected \[1\]",
    ),
    "a row too few": (
        lambda result: replace(result, new_ids=result.new_ids[1:]),
        r"new_ids has the shape \[0, 4\], expected \[1, 4\]",
    ),
    "a column too few": (
        lambda result: replace(result, new_ids=result.new_ids[:, 1:]),
        r"new_ids has the shape \[1, 3\]",
    ),
    "logits that are not finite": (with_first_id(-1), r"logits are not finite \(NaN"),
}


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_impossible_results_are_an_error(
    fake_engine: Callable[..., Engine], change: Change, words: str, lookahead: int
) -> None:
    engine = fake_engine(lookahead=lookahead)
    corrupt(engine, change, steps={3})
    with pytest.raises(EngineError, match=f"decode step 3: .*{words}"):
        engine.generate([[3, 4]], max_tokens=50, stop_token_ids=())
    expected = fake_engine().generate([[3, 4]], max_tokens=9, stop_token_ids=())
    again = engine.generate([[3, 4]], max_tokens=9, stop_token_ids=())
    assert again[0].token_ids == expected[0].token_ids, "the engine can be used again"


def test_error_names_slot_step_and_what_to_try(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine()

    def second_row(result: StepResult) -> StepResult:
        return replace(result, num_new=np.array([*result.num_new[:1], 0], np.int32))

    corrupt(engine, second_row, steps={4})
    words = r"slot 1, decode step 4: num_new is 0.*DFLASH_CUDA_GRAPH=0.*build the engine again"
    with pytest.raises(EngineError, match=words):
        engine.generate([[3], [4]], max_tokens=9, stop_token_ids=())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_num_new(2), "num_new is 2, expected 1 to 1"),
        (with_next_len, "next_len is 3, expected 2"),
        (with_next_state_len, "next_state_len is 1, expected 2"),
        (with_first_id(-1), "logits are not finite"),
    ],
)
def test_prefill_is_checked_too(
    fake_engine: Callable[..., Engine], change: Change, words: str
) -> None:
    engine = fake_engine()
    corrupt(engine, change, steps={1})
    with pytest.raises(EngineError, match=f"slot 0, prefill step 1: .*{words}"):
        engine.generate([[3, 4]], max_tokens=9, stop_token_ids=())


@pytest.mark.parametrize("lookahead", [0, 1])
def test_logits_not_finite_end_one_request_alone(
    fake_engine: Callable[..., Engine], lookahead: int
) -> None:
    engine = fake_engine(lookahead=lookahead)
    corrupt(engine, with_first_id(-1, slot=0), steps={5})
    (expected,) = fake_engine().generate([[4]], max_tokens=40, stop_token_ids=())
    with engine.serve() as server:
        bad, good, later = Caller(), Caller(), Caller()
        with server._engine_thread._changed:  # both before the first step
            server.submit([3], on_event=bad, max_tokens=40, stop_token_ids=())
            server.submit([4], on_event=good, max_tokens=40, stop_token_ids=())
        assert bad.done.wait(PATIENCE)
        assert "are not finite" in str(bad.end)
        good.wait()
        server.submit([4], on_event=later, max_tokens=40, stop_token_ids=())
        later.wait()
    assert good.token_ids == later.token_ids == expected.token_ids


def test_an_answer_may_end_before_logits_that_are_not_finite(
    fake_engine: Callable[..., Engine],
) -> None:
    """Plain decoding would have ended there, too, and would not have known."""
    (expected,) = fake_engine().generate([[4]], max_tokens=40, stop_token_ids=())
    lengths = expected.acceptance_lengths
    step = next(index for index, length in enumerate(lengths) if length > 1)
    before = 1 + sum(lengths[: step + 1]) - 1  # tokens before the step's last
    for most, ends in ((before, True), (before + 1, False)):
        engine = fake_engine()
        corrupt(engine, with_last_id(-1), steps={step + 2})  # the prompt is the first step
        if not ends:
            with pytest.raises(EngineError, match="logits are not finite"):
                engine.generate([[4]], max_tokens=most, stop_token_ids=())
            continue
        (answer,) = engine.generate([[4]], max_tokens=most, stop_token_ids=())
        assert answer.token_ids == expected.token_ids[:before]
        assert answer.finish_reason == "length"


class PanicError(BaseException):
    """As a panic of the tokenizers library: no Exception."""


def test_panic_in_a_text_is_an_error_of_ours(
    text_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> str:
        raise PanicError("index out of bounds")

    with monkeypatch.context() as patched:
        assert text_engine.tokenizer is not None
        patched.setattr(text_engine.tokenizer, "decode", fail)
        with pytest.raises(EngineError, match="answer 0 could not be made: PanicError: index"):
            text_engine.generate(["ab"], max_tokens=3)
    assert text_engine.generate(["ab"], max_tokens=3), "the engine can be used again"
