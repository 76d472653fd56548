"""What a directory is that was taken for an engine's, and what to give instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.files import CONFIG_FILE, MANIFEST_FILE
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.hf_config import parse_json

_MAX_LISTED = 5
_ADVICE = "Give the --output-dir of a dflash-trt build."


def describe_other(directory: Path, missing: str) -> str:
    """Return the text of the error that `directory` is no engine, since it lacks `missing`."""
    if not directory.exists():
        return f"{directory}: there is no such directory. {_ADVICE}"
    if _has_checkpoint(directory):
        return (
            f"{directory} is a model's checkpoint, and no engine. Build one:"
            f" dflash-trt build --target {directory}"
        )
    text = f"{directory}: no {missing}, so this is not an engine directory."
    engines = _engines_in(directory)
    if engines:
        return f"{text} The engines in it are {', '.join(engines)}. Give one of them."
    return f"{text} {_ADVICE}"


def is_checkpoint(config: Mapping[str, Any]) -> bool:
    """Tell whether a parsed config.json is a model's, as Hugging Face writes it."""
    return "build_config" not in config and (
        "hidden_size" in config or "architectures" in config
    )


def _has_checkpoint(directory: Path) -> bool:
    path = directory / CONFIG_FILE
    try:
        return path.is_file() and is_checkpoint(parse_json(path.read_bytes(), str(path)))
    except (OSError, ConfigError):
        return False


def _engines_in(directory: Path) -> list[str]:
    """Return the engines one level below, the first few by name."""
    try:
        found = sorted(path.parent for path in directory.glob(f"*/{MANIFEST_FILE}"))
    except OSError:
        return []
    return [str(engine) for engine in found[:_MAX_LISTED]]
