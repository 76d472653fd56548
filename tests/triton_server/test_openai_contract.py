"""The contract of NVIDIA's OpenAI frontend for Triton, field by field.

Its names, types and shapes are those of python/openai in triton-inference-server's server, for
models of TensorRT-LLM's kind (`--backend tensorrtllm`), as of its version 2.73.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.triton_server.io_table import ALL_INPUTS, OUTPUTS
from trtllm_dflash.triton_server.request import GenerationRequest

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'


@dataclass(frozen=True)
class Sent:
    """An input that the frontend sends, and what it becomes of a request."""

    name: str
    dtype: str
    values: Any  # with the batch's dimension of 1
    option: str | None = None  # of `Engine.generate`
    becomes: Any = None


ALWAYS = (
    Sent("text_input", "STRING", [["Hello"]]),
    Sent("stream", "BOOL", [[True]]),
    Sent("max_tokens", "INT32", [[16]], "max_tokens", 16),
    Sent("return_num_input_tokens", "BOOL", [[True]]),
    Sent("return_num_output_tokens", "BOOL", [[True]]),
)
# OpenAI's field, and what is sent for it.
SOMETIMES = {
    "stop": Sent("stop_words", "STRING", [["a", "b"]], "stop_words", ["a", "b"]),
    "top_p": Sent("top_p", "FP32", [[0.5]], "top_p", 0.5),
    "frequency_penalty": Sent("frequency_penalty", "FP32", [[0.0]]),
    "presence_penalty": Sent("presence_penalty", "FP32", [[0.0]]),
    "seed": Sent("seed", "UINT64", [[7]], "seed", 7),
    "temperature": Sent("temperature", "FP32", [[0.5]], "temperature", 0.5),
    "echo": Sent("exclude_input_in_output", "BOOL", [[False]]),
}
# For a tool_choice that names a tool, or with a single tool that is required.
GUIDE = (
    Sent("guided_decoding_guide_type", "STRING", [["json_schema"]]),
    Sent("guided_decoding_guide", "STRING", [[SCHEMA]], "guided_json", SCHEMA),
)
READ = {"text_output": "STRING", "num_input_tokens": "INT32", "num_output_tokens": "INT32"}
_NUMPY = {
    "STRING": np.object_,
    "BOOL": np.bool_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
}


def tensors(*sent: Sent) -> dict[str, np.ndarray]:
    """Return inputs as Triton hands them to a Python model: texts are bytes."""
    made = {}
    for one in sent:
        (values,) = one.values
        if one.dtype == "STRING":
            values = [text.encode() for text in values]
        made[one.name] = np.array([values], _NUMPY[one.dtype])
    return made


def request_of(*sent: Sent) -> GenerationRequest:
    return GenerationRequest.from_tensors(tensors(*ALWAYS, *sent), eos_token_ids=(2,))


@pytest.mark.parametrize("sent", [*ALWAYS, *SOMETIMES.values(), *GUIDE], ids=lambda s: s.name)
def test_inputs_have_the_frontends_types(sent: Sent) -> None:
    field = ALL_INPUTS[sent.name]
    assert field.dtype == sent.dtype
    assert np.shape(sent.values)[0] == 1
    assert field.size in (-1, np.shape(sent.values)[1])


@pytest.mark.parametrize("name", SOMETIMES)
def test_fields_become_options(name: str) -> None:
    sent = SOMETIMES[name]
    extra = [] if name != "top_p" else [SOMETIMES["temperature"]]
    found = request_of(sent, *extra)
    assert found.stream
    assert found.counts_input
    assert found.counts_output
    assert found.echo == (name == "echo")
    if sent.option is not None:
        assert dict(found.options)[sent.option] == sent.becomes
    assert found.options["max_tokens"] == 16


def test_a_named_tool_is_a_json_schema() -> None:
    found = request_of(*GUIDE)
    assert found.options["guided_json"] == SCHEMA
    given: Any = found.options
    form = SamplingParams(**given).grammar
    assert form is not None
    assert (form.form, json.loads(form.text)) == ("json", json.loads(SCHEMA))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (GUIDE[:1], "guided_decoding_guide is missing"),
        (GUIDE[1:], "guided_decoding_guide_type is None, expected json, json_schema, regex"),
        (
            (Sent("guided_decoding_guide_type", "STRING", [["ebnf"]]), GUIDE[1]),
            "guided_decoding_guide_type is 'ebnf', expected",
        ),
        ((*GUIDE, Sent("guided_json", "STRING", [["{}"]])), "guided_json is given twice"),
    ],
)
def test_guides_come_with_their_type(sent: tuple[Sent, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        request_of(*sent)


def test_outputs_are_those_that_it_reads() -> None:
    found = {field.name: field.dtype for field in OUTPUTS}
    assert found.items() >= READ.items()


def test_other_guides_have_their_options() -> None:
    json_object = request_of(Sent("guided_decoding_guide_type", "STRING", [["json"]]))
    assert json_object.options["response_format"] == '{"type": "json_object"}'
    regex = (
        Sent("guided_decoding_guide_type", "STRING", [["regex"]]),
        Sent("guided_decoding_guide", "STRING", [["[0-9]"]]),
    )
    assert request_of(*regex).options["guided_regex"] == "[0-9]"
