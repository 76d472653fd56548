"""Events to Triton's responses, without a server."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from trtllm_dflash.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    DFlashError,
    EngineError,
    UsageError,
)
from trtllm_dflash.runtime.outputs import FinishInfo, RequestOutput, TokenLogprobs
from trtllm_dflash.triton_server.request import GenerationRequest
from trtllm_dflash.triton_server.responses import Responses


def error_code(error: DFlashError) -> str:
    """Return the code of Triton's error that a client gets with our text."""
    sent: list[Any] = []

    def triton_error(text: str, code: str) -> tuple[str, str]:
        return text, code

    for code in ("CANCELLED", "INTERNAL", "INVALID_ARG", "UNAVAILABLE"):
        setattr(triton_error, code, code)
    triton = SimpleNamespace(
        TritonError=triton_error,
        InferenceResponse=lambda error: error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
    sender = SimpleNamespace(send=lambda response, flags: sent.append((response, flags)))
    failures: list[int] = []
    metrics = SimpleNamespace(add_failure=lambda _: failures.append(1))
    Responses(triton, sender, metrics).fail(error)  # type: ignore[arg-type]
    (((text, code), flags),) = sent
    assert (text, flags, failures) == (str(error), 1, [1])
    return code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("temperature"), "INVALID_ARG"),
        (BusyError("full", 3), "UNAVAILABLE"),
        (DeadlineError("late"), "CANCELLED"),
        (ClosedError("closing"), "UNAVAILABLE"),
        (EngineError("a step failed"), "INTERNAL"),
    ],
)
def test_error_codes_say_whether_to_retry(error: DFlashError, code: str) -> None:
    assert error_code(error) == code


class Sent:
    """Triton's side of one request: each response as {output: values}, and the final flags."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    TritonError = SimpleNamespace(CANCELLED=7)

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.flags: list[int] = []

    def Tensor(self, name: str, array: Any) -> tuple[str, Any]:  # noqa: N802
        return name, array.ravel().tolist()

    def InferenceResponse(self, output_tensors: Any) -> dict[str, Any]:  # noqa: N802
        return dict(output_tensors)

    def send(self, response: dict[str, Any], flags: int) -> None:
        self.outputs.append(response)
        self.flags.append(flags)


END = FinishInfo("stop", 2, 1, 1, 3, 1, 0.0, 0.1, 0.2, seed=9)


def respond(events: list[RequestOutput], **request: Any) -> Sent:
    """Send the events of a request, and return what its client got."""
    sent = Sent()
    metrics = SimpleNamespace(add=lambda _: None)
    responses = Responses(sent, sent, metrics)  # type: ignore[arg-type]
    responses.begin(GenerationRequest("p", **request), num_input_tokens=2)
    for event in events:
        responses(event)
    return sent


EVENTS = [
    RequestOutput([1], "a", reasoning="why"),
    RequestOutput([2], "", sample_index=1),
    RequestOutput([3], "b", END, logprobs=[TokenLogprobs(3, -math.inf, ((4, -0.5),))]),
    RequestOutput([4], "c", END, sample_index=1),
]


def test_samples_end_in_one_response() -> None:
    sent = respond(EVENTS, options={"n": 2}, counts_output=True, counts_input=True)
    (outputs,) = sent.outputs
    assert sent.flags == [1]
    assert outputs["text_output"] == [b"ab", b"c"]
    assert outputs["reasoning"] == [b"why", b""]
    assert outputs["num_output_tokens"] == [2, 2]
    assert outputs["num_input_tokens"] == [2]
    assert outputs["seed"] == [9, 9]
    assert outputs["sample_index"] == [0, 1]
    assert "logprobs" not in outputs


def test_stream_of_samples_says_which_one() -> None:
    options: Any = {"n": 2, "logprobs": 1}
    sent = respond(EVENTS, options=options, stream=True)
    assert sent.flags == [0, 0, 1]  # a response without text is none
    assert [outputs["sample_index"] for outputs in sent.outputs] == [[0], [0], [1]]
    assert [outputs["text_output"] for outputs in sent.outputs] == [[b"a"], [b"b"], [b"c"]]
    assert sent.outputs[0]["reasoning"] == [b"why"]
    (entry,) = json.loads(sent.outputs[1]["logprobs"][0])
    assert entry == {"token_id": 3, "logprob": None, "top": [[4, -0.5]]}
    assert ["finish_reason" in outputs for outputs in sent.outputs] == [False, True, True]


def test_events_after_the_end_are_nothing_new() -> None:
    cancelled = FinishInfo("cancelled", 2, 0, 0, 0, 0, 0.0, None, 0.2)
    sent = respond([EVENTS[2], RequestOutput([], "", cancelled)])
    assert sent.flags == [1]
