"""Events to Triton's responses, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trtllm_dflash.errors import BusyError, ClosedError, DFlashError, EngineError, UsageError
from trtllm_dflash.triton_server.responses import Responses


def error_code(error: DFlashError) -> str:
    """Return the code of Triton's error that a client gets with our text."""
    sent: list[Any] = []

    def triton_error(text: str, code: str) -> tuple[str, str]:
        return text, code

    for code in ("INTERNAL", "INVALID_ARG", "UNAVAILABLE"):
        setattr(triton_error, code, code)
    triton = SimpleNamespace(
        TritonError=triton_error,
        InferenceResponse=lambda error: error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
    sender = SimpleNamespace(send=lambda response, flags: sent.append((response, flags)))
    failures: list[int] = []
    metrics = SimpleNamespace(add_failure=lambda: failures.append(1))
    Responses(triton, sender, metrics).fail(error)  # type: ignore[arg-type]
    (((text, code), flags),) = sent
    assert (text, flags, failures) == (str(error), 1, [1])
    return code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("temperature"), "INVALID_ARG"),
        (BusyError("full"), "UNAVAILABLE"),
        (ClosedError("closing"), "UNAVAILABLE"),
        (EngineError("a step failed"), "INTERNAL"),
    ],
)
def test_error_codes_say_whether_to_retry(error: DFlashError, code: str) -> None:
    assert error_code(error) == code
