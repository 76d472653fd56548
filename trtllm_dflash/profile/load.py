"""Reading a profile back from its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.formatting import recommended
from trtllm_dflash.profile.result import METHODS, PLAIN, SCHEMA, Profile
from trtllm_dflash.profile.schema import check

# The keys of free-form sections that tables and the report show, and their types.
_SHOWN_KEYS: dict[str, dict[str, Any]] = {
    "machine": {"processor": str, "threads": int, "gpus": list[str]},
    "engine": {"directory": str, "arch": str, "dtype": str, "draft_len": int},
    "plain": {"directory": str | None},
    "settings": {"max_tokens": int},
    "prompts": {"name": str, "count": int, "categories": dict[str, int]},
}


def load(path: Path) -> Profile:
    """Return the profile that `profile --json` wrote.

    Raises:
        UsageError: for a file that is not one, with the first difference.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}). Give a file that profile --json wrote."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: not JSON ({error}). Give an engine directory, or a file of profile --json."
        ) from error
    return from_json(data, str(path))


def from_json(data: Any, where: str = "profile") -> Profile:
    """Return the profile that `Profile.to_json` gave.

    Raises:
        UsageError: for other data, with the name `where` and the first difference.
    """
    # Check the schema version first; other versions need not match the schema.
    problems = _other_version(data) or check(data) or list(_missing(data))
    if problems:
        raise _not_a_profile(where, problems[0])
    profile: Profile = _build(data, Profile)
    for problem in _contradictions(profile):
        raise _not_a_profile(where, problem)
    return profile


def _not_a_profile(where: str, problem: str) -> UsageError:
    """Return the error for a file that is not a profile."""
    return UsageError(
        f"{where}: not a profile of this version of dflash-trt: {problem}. Give a file as profile"
        " --json wrote it, or measure again."
    )


def _other_version(data: Any) -> list[str]:
    """Return what differs where the file has another schema version."""
    version = data.get("schema") if isinstance(data, dict) else None
    if type(version) is not int or version == SCHEMA:
        return []
    return [f"profile.schema is {version}, expected {SCHEMA}"]


def _missing(data: Any) -> Iterator[str]:
    """Yield what tables and the report need and the declaration does not demand."""
    for section, keys in _SHOWN_KEYS.items():
        found = data[section]
        for name, hint in keys.items():
            if name in found:
                yield from check(found[name], hint, f"profile.{section}.{name}")
            else:
                yield f"profile.{section}.{name} is missing"
    if not data["results"]:
        yield "profile.results is empty"
    if not data["advice"]["batches"]:
        yield "profile.advice.batches is empty"


def _contradictions(profile: Profile) -> Iterator[str]:
    """Yield where one part refers to another that is not there."""
    first = profile.advice.batches[0]
    plain = {result.batch: result for result in profile.results if result.system == PLAIN}
    for batch in (profile.results[0].batch, first.batch):
        if batch not in plain:
            yield f"profile.results has no system {PLAIN} at batch {batch}"
    if recommended(profile) is None:
        yield (
            f"profile.results has no DFlash system with {first.draft_len} drafts at batch"
            f" {first.batch}"
        )
    for index, result in enumerate(profile.results):
        expected = plain.get(result.batch, result)
        for name in ("by_category", "by_prompt"):
            if _categories(result, name) != _categories(expected, name):
                yield f"profile.results[{index}].{name} has other categories than that of {PLAIN}"
    for breakdown in profile.step_breakdowns:
        if breakdown.method not in METHODS:
            yield (
                f"profile.step_breakdowns has the method {breakdown.method!r}, expected"
                f" {' or '.join(METHODS)}"
            )


def _categories(result: Any, name: str) -> list[str]:
    return [row.category for row in getattr(result, name)]


def _build(data: Any, hint: Any) -> Any:
    """Make dataclasses of parsed JSON that `check` accepts."""
    if get_origin(hint) is Annotated:
        return _build(data, get_args(hint)[0])
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        values = {}
        for field in fields(hint):
            values[field.name] = _build(data[field.name], hints[field.name])
        return hint(**values)
    origin = get_origin(hint)
    if origin in (list, tuple):
        entry_hint = get_args(hint)[0]
        return origin(_build(entry, entry_hint) for entry in data)
    return data
