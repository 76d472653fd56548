"""Checks of single values with one wording for all: `NAME is VALUE, expected WHAT.`

Written by hand and not with pydantic: importing pydantic takes 0.12 s of CPU time, and all of
`dflash-trt --help` takes 0.13 s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import IOBase
from itertools import islice
from numbers import Integral, Real
from typing import Any

from trtllm_dflash.errors import UsageError

_MAX_DIGITS = 9
_MAX_PARSED_DIGITS = 19  # beyond 64 bits no option has a meaning
_MAX_SHOWN = 120  # characters of a value in an error

# Containers that would be taken apart into something else than was meant.
NOT_SEQUENCES = (str, bytes, bytearray, memoryview, set, frozenset, Mapping, IOBase)


def shown(value: Any) -> str:
    """Return a value for an error: its `repr` in a short line, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - it is a stranger's method, or an int of 4,300 digits
        text = f"a value of type {type(value).__name__} that cannot be printed"
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def plain(value: Any) -> Any:
    """Return an array or tensor of any library as Python numbers and lists; others as they are.

    Raises:
        TypeError: for NumPy's records, whose fields may mean anything.
    """
    if isinstance(value, memoryview) or not hasattr(value, "tolist"):
        return value
    if getattr(getattr(value, "dtype", None), "names", None):
        raise TypeError("its entries are records")
    return value.tolist()


def as_list(name: str, value: Any, *, expected: str, limit: int | None = None) -> list[Any]:
    """Return the entries of a list, tuple, range, generator, or array or tensor of any library.

    No more than `limit` + 1 entries are read, so that the caller sees a sequence that is too long.

    Raises:
        UsageError: for anything else, also for text, bytes, sets, mappings and files.
    """
    try:
        value = plain(value)
        if isinstance(value, Iterable) and not isinstance(value, NOT_SEQUENCES):
            return list(islice(value, None if limit is None else limit + 1))
    except Exception as error:  # a stranger's code
        raise UsageError(
            f"{name} cannot be read ({type(error).__name__}: {error}), expected {expected}."
        ) from error
    raise UsageError(f"{name} is {shown(value)}, expected {expected}.")


def check_count(name: str, count: int, limit: int) -> None:
    """Raise UsageError where a list has more entries than a request may have."""
    if count > limit:
        raise UsageError(
            f"{name} holds more than {limit} entries, and a request may have at most {limit}."
        )


def checked_texts(name: str, texts: Any, *, limit: int, max_length: int) -> tuple[str, ...]:
    """Return texts as a tuple; a string alone is one text, None is none.

    At most `limit` texts, each of at most `max_length` characters.

    Raises:
        UsageError: for what is no text, is empty, is too long, or is too much.
    """
    if texts is None:
        return ()
    if isinstance(texts, str):
        texts = (texts,)
    texts = as_list(name, texts, expected="a text or a list of texts", limit=limit)
    check_count(name, len(texts), limit)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UsageError(f"{name} holds {shown(text)}, expected texts that are not empty.")
        if len(text) > max_length:
            raise UsageError(
                f"{name} holds a text of {len(text)} characters ({text[:40]!r}…), and one may have"
                f" at most {max_length}."
            )
    return tuple(texts)


def check_callable(name: str, value: Any) -> None:
    """Raise UsageError unless `value` can be called."""
    if not callable(value):
        raise UsageError(f"{name} is {shown(value)}, expected a function.")


def check_flag(name: str, value: Any) -> None:
    """Raise UsageError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {shown(value)}, expected True or False.")


def check_integer(
    name: str,
    value: Any,
    *,
    low: int,
    high: int | None = None,
    advice: str = "",
) -> None:
    """Raise UsageError unless `value` is an integer from `low` to `high`; True is not one."""
    bounds = f"of at least {low}"
    if high is not None:
        bounds = f"from {low} to {high}"
    if not _is_integer(value) or not _is_within(value, low, high):
        raise UsageError(f"{name} is {shown(value)}, expected an integer {bounds}.{advice}")


def parse_integer(
    name: str, text: str, *, low: int, high: int | None = None, advice: str = ""
) -> int:
    """Read an integer of at least `low` from a text.

    Raises:
        UsageError: for anything else.
    """
    value: int | str = text
    if _is_decimal(text) and len(text) <= _MAX_PARSED_DIGITS:
        value = int(text)
    check_integer(name, value, low=low, high=high, advice=advice)
    return int(value)


def check_real(
    name: str,
    value: Any,
    accepts: Callable[[float], bool],
    expected: str,
) -> None:
    """Raise UsageError unless `value` is a number that `accepts` takes; `expected` describes it."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not accepts(value):
        raise UsageError(f"{name} is {shown(value)}, expected {expected}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise UsageError unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(choices)
        raise UsageError(f"{name} {shown(value)} is not known; choose one of {known}")


def typed_text(text: str) -> str:
    """Return a text of the command line as it was typed, whatever the locale is.

    Where the locale is not UTF-8, Python leaves the bytes of other characters as they are.

    Raises:
        UsageError: if it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode()
        except (UnicodeError, ValueError):
            raise UsageError(
                f"the text {shown(text)} is not UTF-8. Write it in UTF-8, or give a file of it."
            ) from None
    return text


def parse_json_object(name: str, text: str) -> dict[str, Any]:
    """Read a JSON object from a text.

    Raises:
        UsageError: for anything else.
    """
    advice = """Give an object such as '{"enable_thinking": false}'."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} {shown(text)} is not JSON ({error}). {advice}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {shown(value)}, expected a JSON object. {advice}")
    return value


def parse_integers(name: str, text: str) -> tuple[int, ...]:
    """Read integers of at least 0 with commas between them, such as 0,1.

    Raises:
        UsageError: for anything else.
    """
    values = []
    for part in text.split(","):
        digits = part.strip()
        if not _is_decimal(digits) or len(digits) > _MAX_DIGITS:
            raise UsageError(
                f"{name} is {text!r}, expected integers with commas between, as 0,1."
            )
        values.append(int(digits))
    return tuple(values)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_within(value: int, low: int, high: int | None) -> bool:
    if value < low:
        return False
    return high is None or value <= high


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdecimal()
