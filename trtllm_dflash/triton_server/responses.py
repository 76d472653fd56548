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
        self._triton, self._sender, self._metrics = triton, sender, metrics
        self._wanted: GenerationRequest | None = None
        self._num_input_tokens = 0
        self._text, self._num_tokens = "", 0  # not sent yet

    def begin(self, wanted: GenerationRequest, *, num_input_tokens: int) -> None:
        """Set what the request asks of its responses, before the first event."""
        self._wanted, self._num_input_tokens = wanted, num_input_tokens
        self._text = wanted.text if wanted.echo else ""

    def is_alive(self) -> bool:
        """Return whether the client is still there."""
        return not self._sender.is_cancelled()

    def __call__(self, event: Event) -> None:
        """Send a response for an event, if there is anything to send."""
        if not isinstance(event, RequestOutput):
            self.fail(event)
            return
        self._text += event.text
        self._num_tokens += len(event.token_ids)
        if event.finish_info is not None:
            self._end(event.finish_info)
        elif self._wanted is not None and self._wanted.stream and self._text:
            self._send(self._take())

    def fail(self, error: DFlashError) -> None:
        """Send the error and its text as the last response."""
        self._metrics.add_failure()
        triton_error = self._triton.TritonError
        code = triton_error.INTERNAL
        if isinstance(error, UsageError):
            code = triton_error.INVALID_ARG
        elif isinstance(error, BusyError | ClosedError):
            code = triton_error.UNAVAILABLE
        self._send_error(str(error), code)

    def _end(self, ended: FinishInfo) -> None:
        self._metrics.add(ended)
        if ended.finish_reason == "cancelled":
            self._send_error("the request was cancelled", self._triton.TritonError.CANCELLED)
            return
        accepted, proposed = ended.num_accepted_draft_tokens, ended.num_draft_tokens
        summary = {
            "finish_reason": ended.finish_reason,
            "acceptance_rate": accepted / proposed if proposed else 0.0,
            "total_accepted_draft_tokens": accepted,
            "total_draft_tokens": proposed,
        }
        self._send(self._take() | summary, last=True)

    def _take(self) -> dict[str, Any]:
        """Return the outputs that have not been sent yet."""
        outputs: dict[str, Any] = {"text_output": self._text}
        if self._wanted is not None and self._wanted.counts_input:
            outputs["num_input_tokens"] = self._num_input_tokens
        if self._wanted is not None and self._wanted.counts_output:
            outputs["num_output_tokens"] = self._num_tokens
        self._text, self._num_tokens = "", 0
        return outputs

    def _send(self, outputs: dict[str, Any], *, last: bool = False) -> None:
        tensors = [
            self._triton.Tensor(name, np.array([[_bytes(value)]], _OUTPUT_TYPES[name]))
            for name, value in outputs.items()
        ]
        self._send_response(self._triton.InferenceResponse(output_tensors=tensors), last=last)

    def _send_error(self, text: str, code: int) -> None:
        error = self._triton.TritonError(text, code)
        self._send_response(self._triton.InferenceResponse(error=error), last=True)

    def _send_response(self, response: Any, *, last: bool) -> None:
        flags = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        self._sender.send(response, flags=flags)


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
