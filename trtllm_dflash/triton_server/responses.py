"""From the events of one request to Triton's responses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtllm_dflash.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    DFlashError,
    UsageError,
)
from trtllm_dflash.runtime.outputs import (
    Event,
    FinishInfo,
    RequestOutput,
    TokenLogprobs,
)
from trtllm_dflash.runtime.text.pieces import ToolCall
from trtllm_dflash.triton_server.io_table import OUTPUTS
from trtllm_dflash.triton_server.metrics import Metrics
from trtllm_dflash.triton_server.request import GenerationRequest

_NUMPY_TYPES: dict[str, Any] = {
    "STRING": np.object_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
}
_OUTPUT_TYPES = {field.name: _NUMPY_TYPES[field.dtype] for field in OUTPUTS}


@dataclass
class _Sample:
    """One answer of a request: what has not been sent of it yet, and how it ended."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_tokens: int = 0
    finish: FinishInfo | None = None

    def take_in(self, output: RequestOutput) -> None:
        self.text += output.text
        self.reasoning += output.reasoning
        self.tool_calls += output.tool_calls
        self.logprobs += output.logprobs or []
        self.num_tokens += len(output.token_ids)
        self.finish = output.finish_info

    def clear(self) -> None:
        self.text = self.reasoning = ""
        self.tool_calls, self.logprobs = [], []
        self.num_tokens = 0


class Responses:
    """The responses to one request: if it streams, one for each step with text; and the last one.

    The last one carries data and the final flag, so that a client needs no empty response to know
    the end. A request has one end: an answer for each sample, or one error.
    """

    def __init__(self, triton: Any, sender: Any, metrics: Metrics) -> None:
        """Respond through `sender`; `triton` is the Python backend's module of utilities."""
        self._triton = triton
        self._sender = sender
        self._metrics = metrics
        self._request = GenerationRequest("")
        self._num_input_tokens = 0
        self._samples = [_Sample()]
        self._failed = False
        self._ended = False

    def begin(self, request: GenerationRequest, *, num_input_tokens: int) -> None:
        """Set what the request asks of its responses, before the first event."""
        self._request = request
        self._num_input_tokens = num_input_tokens
        echo = request.text if request.echo else ""
        self._samples = [_Sample(echo) for _ in range(request.num_samples)]

    def is_alive(self) -> bool:
        """Return whether anybody waits for the rest."""
        return not self._ended and not self._sender.is_cancelled()

    def __call__(self, event: Event) -> None:
        """Send a response for an event, if there is anything to send."""
        if not isinstance(event, RequestOutput):
            self.fail(event)
            return
        if event.finish_info is not None and not self._failed:
            self._metrics.add(event.finish_info)
        if self._ended:
            return
        index = event.sample_index
        sample = self._samples[index]
        sample.take_in(event)
        finish = sample.finish
        if finish is not None and finish.finish_reason == "cancelled":
            self._ended = True
            code = self._triton.TritonError.CANCELLED
            self._send_error("the request was cancelled", code)
            return
        is_last = all(each.finish is not None for each in self._samples)
        if self._request.stream:
            if finish is not None or sample.text or sample.reasoning or sample.tool_calls:
                self._ended = is_last
                self._send([index], last=is_last)
        elif is_last:
            self._ended = True
            self._send(range(len(self._samples)), last=True)

    def fail(self, error: DFlashError) -> None:
        """Send the error and its text as the last response; a second one is nothing new."""
        if self._ended:
            return
        self._ended = self._failed = True
        self._metrics.add_failure(error)
        triton_error = self._triton.TritonError
        code = triton_error.INTERNAL
        if isinstance(error, UsageError):
            code = triton_error.INVALID_ARG
        elif isinstance(error, BusyError | ClosedError):
            code = triton_error.UNAVAILABLE
        elif isinstance(error, DeadlineError):
            code = triton_error.CANCELLED
        self._send_error(str(error), code)

    def _send(self, indices: Sequence[int], *, last: bool) -> None:
        """Send what has not been sent of some samples: each output has a value for each."""
        samples = [self._samples[index] for index in indices]
        request = self._request
        outputs: dict[str, list[Any]] = {"text_output": [sample.text for sample in samples]}
        if any(sample.reasoning for sample in samples):
            outputs["reasoning"] = [sample.reasoning for sample in samples]
        if any(sample.tool_calls for sample in samples):
            outputs["tool_calls"] = [_calls_json(sample.tool_calls) for sample in samples]
        if request.counts_input:
            outputs["num_input_tokens"] = [self._num_input_tokens]
        if request.counts_output:
            outputs["num_output_tokens"] = [sample.num_tokens for sample in samples]
        if request.options.get("logprobs") is not None:
            outputs["logprobs"] = [_logprobs_json(sample.logprobs) for sample in samples]
        if request.num_samples > 1:
            outputs["sample_index"] = list(indices)
        ends = [sample.finish for sample in samples if sample.finish is not None]
        if len(ends) == len(samples):
            outputs |= _outputs_of_ends(ends)
        for sample in samples:
            sample.clear()
        tensors = []
        for name, values in outputs.items():
            array = np.array([list(map(_bytes, values))], _OUTPUT_TYPES[name])
            tensors.append(self._triton.Tensor(name, array))
        response = self._triton.InferenceResponse(output_tensors=tensors)
        self._send_response(response, last=last)

    def _send_error(self, text: str, code: int) -> None:
        error = self._triton.TritonError(text, code)
        self._send_response(self._triton.InferenceResponse(error=error), last=True)

    def _send_response(self, response: Any, *, last: bool) -> None:
        flags = 0
        if last:
            flags = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._sender.send(response, flags=flags)


def _outputs_of_ends(ends: Sequence[FinishInfo]) -> dict[str, list[Any]]:
    accepted = [end.num_accepted_draft_tokens for end in ends]
    drafted = [end.num_draft_tokens for end in ends]
    rates = [some / all_ if all_ else 0.0 for some, all_ in zip(accepted, drafted, strict=True)]
    outputs: dict[str, list[Any]] = {
        "finish_reason": [end.finish_reason for end in ends],
        "acceptance_rate": rates,
        "total_accepted_draft_tokens": accepted,
        "total_draft_tokens": drafted,
    }
    seeds = [end.seed for end in ends]
    if None not in seeds:
        outputs["seed"] = seeds
    return outputs


def _calls_json(calls: Sequence[ToolCall]) -> str:
    return json.dumps([call._asdict() for call in calls], ensure_ascii=False)


def _logprobs_json(logprobs: Sequence[TokenLogprobs]) -> str:
    """Return log probabilities in JSON, which has no number for that of an impossible token."""
    rows = []
    for entry in logprobs:
        top = [[token_id, _finite(value)] for token_id, value in entry.top]
        logprob = _finite(entry.logprob)
        rows.append({"token_id": entry.token_id, "logprob": logprob, "top": top})
    return json.dumps(rows)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
