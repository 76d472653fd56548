"""Tensors to requests, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime import tiny_tokenizer
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.triton_server.io_table import INPUTS
from trtllm_dflash.triton_server.model import (
    check_dlpack_roundtrip,
    encode_prompt,
    restrict_to_gpu,
)
from trtllm_dflash.triton_server.request import GenerationRequest

EOS = (95,)
PENALTIES = {"repetition_penalty": 1.25, "frequency_penalty": 0.5, "presence_penalty": -0.5}


def read(**inputs: Any) -> GenerationRequest:
    tensors = {
        name: np.array([value if isinstance(value, list) else [value]])
        for name, value in inputs.items()
    }
    for name in ("text_input", "stop_words", "system", "messages", "chat_template_kwargs"):
        if name in tensors:
            tensors[name] = tensors[name].astype(np.object_)
    return GenerationRequest.from_tensors(tensors, EOS)


def test_prompt_alone_is_a_request() -> None:
    assert read(text_input=b"ab") == GenerationRequest("ab")


def test_every_input_arrives() -> None:
    read_all = read(
        text_input="é".encode(),
        chat=True,
        max_tokens=7,
        stream=True,
        temperature=np.float32(0.5),
        top_p=np.float32(0.25),
        top_k=3,
        min_p=np.float32(0.125),
        seed=np.uint64(2**63),
        n=3,
        logprobs=2,
        min_tokens=1,
        skip_special_tokens=False,
        system=b"Be.",
        chat_template_kwargs=b'{"enable_thinking": false}',
        stop_words=[b"x", "日".encode()],
        stop_token_ids=[4, 5],
        ignore_eos=False,
        draft_len=2,
        exclude_input_in_output=False,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
        **{name: np.float32(value) for name, value in PENALTIES.items()},
    )
    options: Any = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        **PENALTIES,
        "seed": 2**63,
        "n": 3,
        "logprobs": 2,
        "min_tokens": 1,
        "skip_special_tokens": False,
        "draft_len": 2,
        "stop_words": ["x", "日"],
        "stop_token_ids": (95, 4, 5),
    }
    assert read_all == GenerationRequest(
        "é",
        [{"role": "system", "content": "Be."}, {"role": "user", "content": "é"}],
        {"enable_thinking": False},
        stream=True,
        echo=True,
        counts_input=True,
        counts_output=True,
        options=options,
    )
    assert read(text_input=b"a", ignore_eos=True, stop_token_ids=[4]).options == {
        "stop_token_ids": (4,)
    }
    assert read(text_input=b"a", ignore_eos=True, draft=False).options == {
        "stop_token_ids": (),
        "draft": False,
    }
    assert read(text_input=b"a", stop_token_ids=np.zeros(0, np.int32).tolist()).options == {}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"max_tokens": 3}, "text_input is missing, and so is messages"),
        ({"text_input": b"a", "messages": b"[]"}, "give either text_input or messages"),
        ({"text_input": b"a", "chat": False, "system": b"b"}, "system is for chats"),
        ({"messages": b"{}"}, "messages is {}, expected a list of messages in JSON"),
        ({"messages": b"[" * 99_999}, "messages: the JSON is nested too deeply"),
        ({"messages": b"['a']"}, "messages is not JSON"),
        ({"text_input": b"a", "chat_template_kwargs": b"[1]"}, "expected an object in JSON"),
        (
            {"text_input": b"a", "chat_template_kwargs": b'{"a": 1, "a": 2}'},
            "chat_template_kwargs: the key 'a' stands in it twice",
        ),
        (
            {"system": b"b", "messages": b'[{"role": "system", "content": "c"}]'},
            "messages begin with a system message",
        ),
        (
            {"messages": b"[]", "exclude_input_in_output": False},
            "exclude_input_in_output: false is for text_input",
        ),
        ({"text_input": [b"a", b"b"]}, "text_input has 2 values, expected one"),
        ({"text_input": []}, "text_input has 0 values, expected one"),
        ({"text_input": b"a\xff"}, "text_input is not UTF-8: byte 1 begins no character"),
        (
            {"text_input": b"a", "stop_words": [b"b", b"\xe2\x82"]},
            "stop_words is not UTF-8: byte 0",
        ),
        (
            {"text_input": b"a", "mood": 1},
            "mood is not an input of this model. Its inputs are: text_input, chat",
        ),
    ],
)
def test_wrong_request_is_refused(inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(**inputs)


def test_chat_errors_are_for_clients(tmp_path: Path) -> None:
    """In the words of the request, without our files and commands."""
    plain = Tokenizer(tiny_tokenizer.write_byte_level(tmp_path / "plain", chat=False))
    assert encode_prompt(read(text_input=b"ab"), plain) == list(b"ab")
    with pytest.raises(UsageError) as error:
        encode_prompt(read(text_input=b"ab", chat=True), plain)
    assert str(error.value) == "chat: this model has no chat format; send chat: false."
    picky = Tokenizer(tiny_tokenizer.write_byte_level(tmp_path / "picky"))
    chat = picky.encode_chat("ab")
    assert encode_prompt(read(text_input=b"ab", chat=True), picky) == chat
    messages = b'[{"role": "user", "content": "ab"}]'
    assert encode_prompt(read(messages=messages), picky) == chat
    path = tmp_path / "picky" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = "{{ raise_exception('only in pairs') }}"
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError) as error:
        encode_prompt(read(text_input=b"ab", chat=True), Tokenizer(tmp_path / "picky"))
    assert "only in pairs" in str(error.value)
    assert str(tmp_path) not in str(error.value)


class Exported:
    """What owns a DLPack capsule of the processor's memory."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def backend_that_reads(read_memory: Callable[[Any], Any]) -> Any:
    """Triton's module of utilities, as far as the probe goes: it reads memory its own way, and
    keeps arrays.
    """

    class Tensor:
        def __init__(self, _: str, array: Any) -> None:
            self._array = array

        @staticmethod
        def from_dlpack(name: str, array: Any) -> Tensor:
            return Tensor(name, read_memory(array))

        def as_numpy(self) -> Any:
            return self._array

    return SimpleNamespace(Tensor=Tensor)


def test_server_that_corrupts_tensors_is_refused() -> None:
    """As the real 24.10 does with NumPy 2.4.6 (seen: [1, 1, 1] for [1, 2, 3], of requests and of
    this probe alike).
    """
    check_dlpack_roundtrip(
        backend_that_reads(lambda capsule: np.from_dlpack(Exported(capsule)))
    )
    with pytest.raises(
        EngineError,
        match=r"passes \[1.0, 1.0, 1.0\] for \[1.0, 2.0, 3.0\]: it does not work with",
    ):
        check_dlpack_roundtrip(
            backend_that_reads(lambda capsule: np.ones_like(np.from_dlpack(Exported(capsule))))
        )


def test_input_names_are_those_of_the_frontend() -> None:
    names = {field.name for field in INPUTS}
    assert {
        "text_input",
        "max_tokens",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop_words",
    } < names
    assert {
        "exclude_input_in_output",
        "return_num_input_tokens",
        "return_num_output_tokens",
    } < names
    assert {"frequency_penalty", "presence_penalty"} < names


@pytest.mark.parametrize(
    ("visible", "device", "shown"),
    [(None, 1, "1"), ("", 0, "0"), ("4,6", 1, "6"), ("3", 0, "3")],
)
def test_instance_sees_its_own_gpu(visible: str | None, device: int, shown: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    restrict_to_gpu(device, environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": shown}


TOOLS = '[{"type": "function", "function": {"name": "clock"}}]'


def _chat(**values: object) -> GenerationRequest:
    given = {"text_input": "Hi", "chat": True, **values}
    tensors = {
        name: np.array([[value.encode() if isinstance(value, str) else value]], object)
        for name, value in given.items()
    }
    return GenerationRequest.from_tensors(tensors, eos_token_ids=(2,))


def test_tools_are_of_a_chat() -> None:
    found = _chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert found.tools is not None
    assert (found.tools.choice, found.tools.parallel) == ("required", False)
    named = '{"type": "function", "function": {"name": "clock"}}'
    chosen = _chat(tools=TOOLS, tool_choice=named).tools
    assert chosen is not None
    assert isinstance(chosen.choice, dict)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tools": TOOLS, "chat": False}, "tools is for chats: send messages, or chat: true"),
        ({"tools": "{}"}, "tools is {}, expected a list of tools in JSON"),
        ({"tools": "[1]"}, r"tools\[0\] is 1, expected an object"),
        ({"tools": TOOLS, "tool_choice": "clock"}, "tool_choice is 'clock', expected none"),
        ({"tools": TOOLS, "tool_choice": "{"}, "tool_choice is not JSON"),
        ({"tool_choice": "required"}, "tool_choice is given, and there are no tools"),
        ({"guided_regex": "a", "guided_json": "{}"}, "are given together"),
    ],
)
def test_bad_tools_and_guides_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _chat(**values)
