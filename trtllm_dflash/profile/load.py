"""A profile back from its JSON."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.formatting import PLAIN
from trtllm_dflash.profile.result import METHODS, SCHEMA, Profile
from trtllm_dflash.profile.schema import check

# section -> the keys of it that are shown, and their types
_READ: dict[str, dict[str, Any]] = {
    "machine": {"processor": str, "threads": int, "gpus": list[str]},
    "engine": {"directory": str, "arch": str, "dtype": str, "draft_len": int},
    "plain": {"directory": str | None},
    "settings": {"max_tokens": int},
    "prompts": {"name": str, "count": int, "categories": dict[str, int]},
}


def load(path: Path) -> Profile:
    """The profile that `profile --json` wrote; a file that is none raises UsageError."""
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
    """What `Profile.to_json` gave; anything else raises UsageError, which names the file `where`
    and what differs.
    """
    problems = _other_version(data) or check(data) or _missing(data)
    if problems:
        raise _refusal(where, problems[0])
    read: Profile = _build(data, Profile)
    problems = _contradictions(read)
    if problems:
        raise _refusal(where, problems[0])
    return read


def _refusal(where: str, problem: str) -> UsageError:
    return UsageError(
        f"{where}: not a profile of this version of dflash-trt: {problem}. Give a file as profile"
        " --json wrote it, or measure again."
    )


def _other_version(data: Any) -> list[str]:
    """What differs most tells most: of a file of another version nothing else needs to be as
    declared.
    """
    version = data.get("schema", SCHEMA) if isinstance(data, dict) else SCHEMA
    return (
        [f"profile.schema is {version}, expected {SCHEMA}"]
        if type(version) is int and version != SCHEMA
        else []
    )


def _missing(data: Any) -> list[str]:
    """What tables and the report take for given, and the declaration does not say."""
    problems = []
    for section, keys in _READ.items():
        found = data[section]
        problems += [f"profile.{section}.{name} is missing" for name in keys if name not in found]
        for name, hint in keys.items():
            problems += (
                check(found[name], hint, f"profile.{section}.{name}") if name in found else []
            )
    lists = {"results": data["results"], "advice.batches": data["advice"]["batches"]}
    return problems + [f"profile.{name} is empty" for name, entries in lists.items() if not entries]


def _contradictions(profile: Profile) -> list[str]:
    """Where one part speaks of another that is not there."""
    first = profile.advice.batches[0]
    plain = {result.batch: result for result in profile.results if result.system == PLAIN}
    systems = {
        (result.implementation, result.batch, result.draft_len) for result in profile.results
    }
    problems = [
        f"profile.results has no system {PLAIN} at batch {batch}"
        for batch in (profile.results[0].batch, first.batch)
        if batch not in plain
    ]
    if ("dflash", first.batch, first.draft_len) not in systems:
        problems.append(
            f"profile.results has no DFlash system with {first.draft_len} drafts at batch"
            f" {first.batch}"
        )
    for index, result in enumerate(profile.results):
        base = plain.get(result.batch, result)
        for name in ("by_category", "by_prompt"):
            own, others = ([row.category for row in getattr(one, name)] for one in (result, base))
            if own != others:
                problems.append(
                    f"profile.results[{index}].{name} has other kinds than that of {PLAIN}"
                )
    methods = [
        breakdown.method for breakdown in profile.step_breakdowns if breakdown.method not in METHODS
    ]
    return problems + [
        f"profile.step_breakdowns has the method {name!r}, expected {' or '.join(METHODS)}"
        for name in methods
    ]


def _build(data: Any, hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _build(data, get_args(hint)[0])
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        return hint(
            **{field.name: _build(data[field.name], hints[field.name]) for field in fields(hint)}
        )
    if get_origin(hint) in (list, tuple):
        return get_origin(hint)(_build(entry, get_args(hint)[0]) for entry in data)
    return data
