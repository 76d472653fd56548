"""From the events of one request to Triton's responses."""

from __future__ import annotations

from typing import Any

import numpy as np

from trtllm_dflash.errors import BusyError, ClosedError, DFlashError, UsageError
from trtllm_dflash.runtime.outputs import Event, FinishInfo, RequestOutput
from trtllm_dflash.triton_server.io_table import OUTPUTS
from trtllm_dflash.triton_server.metrics import Metrics
from trtllm_dflash.triton_server.request import GenerationRequest

_NUMPY_TYPES: dict[str, Any] = {"STRING": np.object_, "INT32": np.int32, "FP32": np.float32}
_OUTPUT_TYPES = {field.name: _NUMPY_TYPES[field.dtype] for field in OUTPUTS}


class Responses:
    """The responses to one request: if it streams, one for each step with text; and the last one.

    The last one carries data and the final flag, so that a client needs no empty response to know
    the end.
    """

    def __init__(self, triton: Any, sender: Any, metrics: Metrics) -> None:
        """Respond through `sender`; `triton` is the Python backend's module of utilities."""
        self._triton = triton
        self._sender = sender
        self._metrics = metrics
        self._request: GenerationRequest | None = None
        self._num_input_tokens = 0
        self._ended = False
        # What has not been sent yet.
        self._text = ""
        self._num_tokens = 0

    def begin(self, request: GenerationRequest, *, num_input_tokens: int) -> None:
        """Set what the request asks of its responses, before the first event."""
        self._request = request
        self._num_input_tokens = num_input_tokens
        if request.echo:
            self._text = request.text

    def is_alive(self) -> bool:
        """Return whether the client is still there."""
        return not self._sender.is_cancelled()

    def __call__(self, event: Event) -> None:
        """Send a response for an event, if there is anything to send."""
        if self._ended:
            return
        if not isinstance(event, RequestOutput):
            self.fail(event)
            return
        self._text += event.text
        self._num_tokens += len(event.token_ids)
        request = self._request
        if event.finish_info is not None:
            self._end(event.finish_info)
        elif self._text and request is not None and request.stream:
            self._send(self._take())

    def fail(self, error: DFlashError) -> None:
        """Send the error and its text as the last response; a second one is nothing new."""
        if self._ended:
            return
        self._ended = True
        self._metrics.add_failure()
        triton_error = self._triton.TritonError
        code = triton_error.INTERNAL
        if isinstance(error, UsageError):
            code = triton_error.INVALID_ARG
        elif isinstance(error, BusyError | ClosedError):
            code = triton_error.UNAVAILABLE
        self._send_error(str(error), code)

    def _end(self, finish: FinishInfo) -> None:
        self._ended = True
        self._metrics.add(finish)
        if finish.finish_reason == "cancelled":
            code = self._triton.TritonError.CANCELLED
            self._send_error("the request was cancelled", code)
            return
        rate = 0.0
        if finish.num_draft_tokens:
            rate = finish.num_accepted_draft_tokens / finish.num_draft_tokens
        outputs = self._take()
        outputs["finish_reason"] = finish.finish_reason
        outputs["acceptance_rate"] = rate
        outputs["total_accepted_draft_tokens"] = finish.num_accepted_draft_tokens
        outputs["total_draft_tokens"] = finish.num_draft_tokens
        self._send(outputs, last=True)

    def _take(self) -> dict[str, Any]:
        """Return the outputs that have not been sent yet."""
        outputs: dict[str, Any] = {"text_output": self._text}
        request = self._request
        if request is not None and request.counts_input:
            outputs["num_input_tokens"] = self._num_input_tokens
        if request is not None and request.counts_output:
            outputs["num_output_tokens"] = self._num_tokens
        self._text = ""
        self._num_tokens = 0
        return outputs

    def _send(self, outputs: dict[str, Any], *, last: bool = False) -> None:
        tensors = []
        for name, value in outputs.items():
            array = np.array([[_bytes(value)]], _OUTPUT_TYPES[name])
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


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
