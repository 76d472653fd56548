"""A profile back from its JSON."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.result import Profile
from trtllm_dflash.profile.schema import check


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
    """What `Profile.to_json` gave; anything else raises UsageError, which names the file `where` and what differs."""
    problems = check(data)
    if problems:
        raise UsageError(f"{where}: not a profile of this version of dflash-trt: {problems[0]}.")
    read: Profile = _build(data, Profile)
    return read


def _build(data: Any, hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _build(data, get_args(hint)[0])
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        return hint(**{field.name: _build(data[field.name], hints[field.name]) for field in fields(hint)})
    if get_origin(hint) in (list, tuple):
        return get_origin(hint)(_build(entry, get_args(hint)[0]) for entry in data)
    return data
