"""Typed reading of Hugging Face JSON: one call per key states its type, aliases and default.

Three rules hold for every key. A JSON `null` is a missing key. A `bool` is never an int; an int is
a valid float, and a whole number like 32768.0 a valid int. Where several spellings of one key are
present they must agree: engines differ in which one they read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, overload

from trtllm_dflash.errors import ConfigError, DFlashError
from trtllm_dflash.unique_keys import unique_keys

T = TypeVar("T", int, float, bool, str)
D = TypeVar("D")

MAX_CONFIG_BYTES = 16 << 20
# Bound on untrusted sizes: far above any model, low enough that no table of shapes can exhaust
# memory.
MAX_SIZE = 1 << 24
_TYPE_NAMES: Mapping[type, str] = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
}
_MISSING: Any = object()


def parse_json(
    data: bytes, where: str, *, error: type[DFlashError] = ConfigError
) -> dict[str, Any]:
    """Parse an untrusted JSON object; `where` names it in errors.

    Raises: `error`: for bad UTF-8 or syntax, a repeated key, deep nesting, or something else than
    an object.
    """

    def refusal(key: str) -> DFlashError:
        return error(
            f"{where}: the key {quote(key)} appears twice, and readers differ in which one they"
            " keep. Drop one."
        )

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys(refusal))
    except RecursionError:
        raise error(
            f"{where}: the JSON is nested too deeply. Get an intact copy of the file."
        ) from None
    except ValueError as cause:  # bad UTF-8, bad syntax, or an integer of thousands of digits
        raise error(
            f"{where}: this is not valid JSON ({cause}). Get an intact copy of the file."
        ) from None
    if not isinstance(value, dict):
        raise error(
            f"{where}: expected a JSON object, got {type(value).__name__}. Get an intact copy of"
            " the file."
        )
    return value


@dataclass(frozen=True)
class Allowed:
    """A key that may be missing and otherwise has one of the accepted values.

    `why` ends the error.
    """

    path: str
    accepted: tuple[object, ...]
    why: str


@dataclass(frozen=True)
class HfReader:
    """A JSON object, and its name in errors. Paths are dotted: "dflash_config.block_size"."""

    data: Mapping[str, Any]
    where: str
    prefix: str = ""

    @overload
    def read(
        self,
        value_type: type[T],
        *paths: str,
        low: float | None = None,
        high: float | None = None,
    ) -> T: ...
    @overload
    def read(
        self,
        value_type: type[T],
        *paths: str,
        default: D,
        low: float | None = None,
        high: float | None = None,
    ) -> T | D: ...
    def read(
        self,
        value_type: type[Any],
        *paths: str,
        default: Any = _MISSING,
        low: float | None = None,
        high: float | None = None,
    ) -> Any:
        """Return the value under the first path present, of `value_type` and in [low, high]."""
        found = self._find(paths, required=default is _MISSING)
        if found is None:
            return default
        path, value = found
        value = self._typed(value_type, path, value)
        if (low is not None and value < low) or (high is not None and value > high):
            at_least = "" if low is None else f"at least {low}"
            at_most = "" if high is None else f"at most {high}"
            bounds = " and ".join(filter(None, (at_least, at_most)))
            self.fail(path, f"is {quote(value)}, expected {bounds}.")
        return value

    @overload
    def read_list(
        self, value_type: type[T], *paths: str, scalar: bool = False
    ) -> tuple[T, ...]: ...
    @overload
    def read_list(
        self, value_type: type[T], *paths: str, default: D, scalar: bool = False
    ) -> tuple[T, ...] | D: ...
    def read_list(
        self, value_type: type[Any], *paths: str, default: Any = _MISSING, scalar: bool = False
    ) -> Any:
        """Return a list of `value_type` as a tuple.

        With `scalar`, a bare value counts as a list of one.
        """
        found = self._find(paths, required=default is _MISSING)
        if found is None:
            return default
        path, value = found
        if scalar and not isinstance(value, list):
            return (self._typed(value_type, path, value),)
        if not isinstance(value, list):
            self.fail(
                path,
                f"is {quote(value)}, expected a list, each entry {_TYPE_NAMES[value_type]}.",
            )
        return tuple(
            self._typed(value_type, f"{path}[{index}]", entry)
            for index, entry in enumerate(value)
        )

    def section(self, path: str) -> HfReader | None:
        """Return a reader of the object under `path`, None if it is missing.

        Its errors keep the full path.
        """
        value = self.get(path)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(path, f"is {quote(value)}, expected an object.")
        return HfReader(value, self.where, prefix=f"{self.prefix}{path}.")

    def get(self, path: str) -> Any:
        """Return the raw value under a dotted path, None if it is missing."""
        value: Any = self.data
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def check_allowed(self, rows: Iterable[Allowed]) -> None:
        """Refuse keys with values that would silently be computed wrongly."""
        for row in rows:
            value = self.get(row.path)
            if value is not None and not any(
                _same(value, accepted) for accepted in row.accepted
            ):
                only = " or ".join(map(quote, row.accepted))
                self.fail(
                    row.path, f"is {quote(value)}, and only {only} is supported: {row.why}"
                )

    def fail(self, path: str, problem: str) -> NoReturn:
        """Raise ConfigError about one key, named by its full path."""
        raise ConfigError(f"{self.where}: {self.prefix}{path} {problem}")

    def _find(self, paths: tuple[str, ...], *, required: bool) -> tuple[str, Any] | None:
        present = [(path, value) for path in paths if (value := self.get(path)) is not None]
        if not present:
            if required:
                names = " or ".join(f"{self.prefix}{path}" for path in paths)
                raise ConfigError(
                    f"{self.where}: the key {names} is missing. It has no safe default; add it."
                )
            return None
        path, value = present[0]
        for other_path, other in present[1:]:
            if not _same(value, other):
                second = f"{self.prefix}{other_path} is {quote(other)}"
                self.fail(path, f"is {quote(value)} but {second}. Make them agree or drop one.")
        return path, value

    def _typed(self, value_type: type[Any], path: str, value: Any) -> Any:
        if (
            value_type is float
            and isinstance(value, int)
            and not isinstance(value, bool)
            and abs(value) < 1 << 53
        ):
            value = float(value)
        if value_type is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not value_type or (value_type is float and not math.isfinite(value)):
            self.fail(path, f"is {quote(value)}, expected {_TYPE_NAMES[value_type]}.")
        return value


def _same(value: object, other: object) -> bool:
    """Compare two JSON values; true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def quote(value: object) -> str:
    """Return an untrusted JSON value for a message: printable ASCII, at most 80 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
