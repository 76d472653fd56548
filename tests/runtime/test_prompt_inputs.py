"""What counts as prompts, and what is refused before it is taken apart."""

from __future__ import annotations

import array
import itertools
from collections import UserDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.prompt_inputs import as_prompts, read_tokens


class Tensor:
    """Behaves as torch's: iterating gives tensors again, and one number cannot be iterated."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __iter__(self) -> Any:
        if not isinstance(self.value, list):
            raise TypeError("iteration over a 0-d tensor")
        return iter([Tensor(one) for one in self.value])

    def tolist(self) -> Any:
        return self.value


def ids_of(prompts: Any) -> list[list[Any]]:
    read: list[Any] = as_prompts(prompts)
    return [read_tokens(prompt, index) for index, prompt in enumerate(read)]


@pytest.mark.parametrize(
    "given",
    [
        [1, 2],
        (1, 2),
        range(1, 3),
        deque([1, 2]),
        (token for token in (1, 2)),
        array.array("i", [1, 2]),
        np.array([1, 2], np.uint8),
        [np.int32(1), np.int64(2)],
        Tensor([1, 2]),
        [Tensor(1), Tensor(2)],
        [Tensor([1, 2])],
        Tensor([[1, 2]]),
        {"input_ids": [1, 2]},
        {"input_ids": Tensor([[1, 2]])},
        UserDict(input_ids=[[1, 2]], attention_mask=[[1, 1]]),
        [{"input_ids": [1, 2], "attention_mask": [1, 1]}],
        {"input_ids": [[0, 1, 2]], "attention_mask": [[0, 1, 1]]},
        {"input_ids": np.array([[1, 2, 0]]), "attention_mask": np.array([[1, 1, 0]])},
    ],
)
def test_token_ids_in_any_container(given: Any) -> None:
    assert ids_of(given) == [[1, 2]]


def test_batches_in_any_container() -> None:
    expected = [[1, 2], [3, 4]]
    for given in (expected, Tensor(expected), {"input_ids": expected}, np.array(expected)):
        assert ids_of(given) == expected
    padded = {"input_ids": [[1, 2], [3, 0]], "attention_mask": [[1, 1], [1, 0]]}
    assert ids_of(padded) == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"!!", "prompts is b'!!': decode the bytes first"),
        (bytearray(b"!!"), "prompts is bytearray.*: decode the bytes first"),
        (memoryview(b"!!"), "decode the bytes first"),
        ([b"!!"], "prompt 0 is b'!!': decode the bytes first"),
        ({9, 7}, r"prompts is \{9, 7\}, expected a list of strings or of token-id lists"),
        ([{9, 7}], r"prompt 0 is \{9, 7\}, expected a string or a list of token ids"),
        (frozenset("ab"), "prompts is frozenset"),
        ({"prompt": "hello"}, "a mapping with the keys 'prompt', expected .* or input_ids"),
        ([{"role": "user", "content": "hi"}], "prompt 0 is a mapping .* engine.chat"),
        ({"messages": []}, "call engine.chat with the list of messages"),
        ({"input_ids": "ab"}, "input_ids is 'ab', expected one list of integers"),
        ([{"input_ids": [[1], [2]]}], "prompt 0 holds 2 sequences of input_ids, expected one"),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[1]]},
            "attention_mask of another shape than its input_ids",
        ),
        (
            {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]},
            "not ones with zeros before or behind them",
        ),
        (Tensor(3), "prompts is 3, expected a list"),
        (np.array(3), "prompts is 3, expected a list"),
        (np.zeros(2, [("id", int)]), "prompts cannot be read .*its entries are records"),
        (itertools.count, "prompts is <class 'itertools.count'>, expected a list"),
    ],
)
def test_other_containers_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ids_of(given)


def test_the_engine_checks_every_token(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine()
    for given, words in (
        ([[[1]]], r"prompt 0 has at place 0 \[1\], a list: expected an integer token id"),
        ([np.array([1.5])], "prompt 0 has at place 0 1.5, a float: expected an integer"),
        ([[10**5000]], "the id a value of type int that cannot be printed, outside"),
    ):
        with pytest.raises(UsageError, match=words):
            engine.generate(given)


def test_messages_are_refused_by_the_server_too(fake_engine: Callable[..., Engine]) -> None:
    with fake_engine().serve() as server:
        for given in (b"ab", {1, 2}, {"prompt": "x"}):
            with pytest.raises(UsageError, match="the prompt is"):
                server.submit(given, on_event=print)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="on_event is 3, expected a function"):
            server.submit([1], on_event=3)  # type: ignore[arg-type]
