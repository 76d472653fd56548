"""Which engine was measured, and the checkpoints that it was built from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MANIFEST_FILE
from trtllm_dflash.errors import EngineError, UsageError

_CONFIG_FACTS = ("dtype", "block_size", "draft_len", "auto_draft_len", "max_batch_size")
_MANIFEST_FACTS = ("created", "arch", "backend", "argv", "versions", "graph", "weights")


def engine_facts(directory: Path, config: EngineConfig) -> dict[str, Any]:
    """Return the facts that identify an engine in a profile."""
    built = manifest.load(directory)
    facts: dict[str, Any] = {"directory": str(directory)}
    facts |= {name: getattr(config, name) for name in _CONFIG_FACTS}
    facts |= {name: built.get(name) for name in _MANIFEST_FACTS}
    return facts


def find_checkpoint(directory: Path, model: str, given: Path | None) -> Path:
    """Return the checkpoint of an engine's "target" or "drafter".

    It is `given`, or else the folder that the engine was built from.

    Raises:
        UsageError: if it is not there, or has other files than those the engine was built from.
    """
    built = weights_entry(directory, model)
    path = given or Path(built["directory"])
    advice = f"Give the checkpoint that it was built from: --{model} DIR"
    if not path.is_dir():
        raise UsageError(
            f"{directory} was built from the {model} {path}, and there is no such folder. {advice}"
        )
    for name, entry in built["files"].items():
        if not (path / name).is_file() or manifest.file_entry(path / name) != entry:
            raise UsageError(
                f"{path}: {name} is not the file that {directory} was built from. {advice}"
            )
    return path


def weights_entry(directory: Path, model: str) -> Mapping[str, Any]:
    """Return the manifest's entry of a model's checkpoint.

    Raises:
        EngineError: if the manifest has none.
    """
    for entry in manifest.load(directory).get("weights") or []:
        if isinstance(entry, dict) and entry.get("model") == model and _is_complete(entry):
            return entry
    raise EngineError(
        f"{directory}: {MANIFEST_FILE} does not say from which {model} the engine was built. Build"
        " it again."
    )


def _is_complete(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry names a folder, and files in it and nowhere else."""
    names = entry.get("files")
    if not isinstance(names, dict) or not isinstance(entry.get("directory"), str):
        return False
    return all(Path(name).name == name for name in names)
