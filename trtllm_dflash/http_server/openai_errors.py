"""Errors in OpenAI's form: a status, a sentence of ours, what it is about, and a code."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from trtllm_dflash.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    DFlashError,
    UsageError,
)
from trtllm_dflash.options.checks import shown
from trtllm_dflash.runtime.text.tokenizer import ChatError

_LOG = logging.getLogger(__name__)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
RETRY_AFTER_SECONDS = 1  # where nothing is known yet of how long requests take


class ApiError(Exception):
    """An error as a client is told of it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the response, or the data of a stream's last event."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def as_api_error(failure: BaseException) -> ApiError:
    """Return what a client is told of an error.

    What is wrong with the engine or the server is in its log alone: it may name files.
    """
    if isinstance(failure, ApiError):
        return failure
    if isinstance(failure, ChatError):
        return ApiError(400, f"messages: {failure.problem}.", param="messages")
    if isinstance(failure, UsageError):
        text = str(failure)
        return ApiError(400, text, param=_param_of(text))
    if isinstance(failure, BusyError):
        seconds = failure.retry_after or RETRY_AFTER_SECONDS
        headers = {"Retry-After": str(seconds)}
        return ApiError(429, str(failure), code="queue_full", headers=headers)
    if isinstance(failure, ClosedError):
        return ApiError(503, str(failure), code="closing")
    if isinstance(failure, DeadlineError):
        return ApiError(504, str(failure), code="timeout")
    problem = getattr(failure.__cause__, "problem", None)
    if isinstance(failure, DFlashError) and problem:
        _LOG.error("a request failed: %s", failure)
        return ApiError(500, f"the model's tokenizer cannot do this: {problem}")
    _LOG.error("a request failed", exc_info=failure)
    return ApiError(500, "the server failed with this request; its log says how.")


def _param_of(text: str) -> str | None:
    """Return the field that a sentence of ours begins with."""
    first = text.partition(" ")[0].rstrip(":,")
    is_field = first.islower() and first.replace("_", "").isalnum() and "_" in first
    return first if is_field or first in ("n", "seed", "temperature") else None


# What was expected, by pydantic's type of an error.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "none_required": "null",
    "string_type": "a text",
    "string_unicode": "a text without half a surrogate pair",
}
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
}
_UNION_MEMBERS = {"str", "int", "float", "bool", "list", "dict"}


def of_validation(errors: Sequence[Mapping[str, Any]], known: Sequence[str]) -> ApiError:
    """Return pydantic's first error in our words; `known` are the fields that there are."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    # Of the errors that the types of a field give, the one deepest inside the value.
    same = [error for error in errors if error["loc"][:2] == first["loc"][:2]]
    first = max(same, key=lambda error: _name_of(error["loc"]).count("["))
    name = _name_of(first["loc"])
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not JSON: {first['ctx']['error']}.", code="invalid_json"
        )
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        return ApiError(
            400, f"unknown field {shown(name)}{meant}", param=name, code="unknown_field"
        )
    if first["type"] == "missing":
        what = f"{name} is missing." if name else "the body is missing."
        return ApiError(400, what, param=name or None, code="missing_field")
    expected = [_expected(error) for error in errors if _name_of(error["loc"]) == name]
    wanted = " or ".join(dict.fromkeys(expected))
    given = first.get("input")
    return ApiError(
        400,
        f"{name or 'the body'} is {shown(given)}, expected {wanted}.",
        param=name or None,
        code="invalid_value",
    )


def _expected(error: Mapping[str, Any]) -> str:
    if error["type"] in _BOUNDS:
        return _BOUNDS[error["type"]].format(**error["ctx"])
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return _EXPECTED.get(error["type"], "another value")


def _name_of(location: Sequence[Any]) -> str:
    """Return a place in the body as it is written: messages[0].role.

    pydantic names the members of a union there, too, as str, constrained-str and list[str].
    """
    name = ""
    for part in location[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in _UNION_MEMBERS and not any(mark in part for mark in "[(-"):
            name += f".{part}" if name else part
    return name
