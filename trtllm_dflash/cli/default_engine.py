"""The engine that nobody named: where `build` puts one, and which one `run` takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MANIFEST_FILE
from trtllm_dflash.errors import DFlashError, UsageError
from trtllm_dflash.options.checks import shown

ENGINES = Path("engines")
DEMO = Path("demo")
_MAX_NAME = 80  # characters
_MAX_LISTED = 5


@dataclass(frozen=True)
class _Found:
    """An engine directory; `problem` says why it cannot run here, if it cannot."""

    directory: Path
    created: str
    speculates: bool
    problem: str | None


def default_output_dir(target: str, arch: str) -> Path:
    """Return engines/<target>-<arch>, relative to the working directory.

    The target is a listed name, a hub name or a path. Only letters of ASCII, digits, dots, dashes
    and underscores of its last part are kept.
    """
    return ENGINES / f"{_model_name(target)}-{arch}"


def find_engine() -> Path:
    """Return the newest engine under engines/ that this machine can run, else the demo's.

    Raises:
        UsageError: if there is none, with what was found and why it cannot run.
    """
    seen: list[_Found] = []
    for folder in (ENGINES, DEMO):
        found = _engines_in(folder)
        runnable = [engine for engine in found if engine.problem is None]
        if folder == DEMO:  # its plain engine is there to compare with
            runnable = [engine for engine in runnable if engine.speculates] or runnable
        if runnable:
            newest = max(runnable, key=lambda engine: (engine.created, engine.directory))
            return newest.directory
        seen += found
    lines = [f"\n  {engine.directory}: {engine.problem}" for engine in seen[:_MAX_LISTED]]
    there = f" Found, but not to be run here:{''.join(lines)}" if lines else ""
    raise UsageError(
        f"no ENGINE is given, and {ENGINES}/ and {DEMO}/ have none that this machine can run."
        " Build one, as with `dflash-trt build --target DIR|NAME`, or give the directory of one."
        + there
    )


def _engines_in(folder: Path) -> list[_Found]:
    if not folder.is_dir():
        return []
    found = []
    for directory in sorted(folder.iterdir()):
        is_engine = (directory / MANIFEST_FILE).is_file()
        if is_engine and not directory.name.startswith("."):
            found.append(_look_at(directory))
    return found


def _look_at(directory: Path) -> _Found:
    from trtllm_dflash.runtime.sessions.base import unrunnable_here

    try:
        facts: dict[str, Any] = manifest.load(directory)
        config = EngineConfig.load(directory)
        problem = unrunnable_here(config)
    except DFlashError as error:
        return _Found(directory, "", False, shown(str(error)))
    return _Found(directory, str(facts.get("created")), config.speculates, problem)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False


def _model_name(target: str) -> str:
    """Return a model's name as a part of a folder's name."""
    path = Path(target)
    if _is_dir(path):
        path = path.resolve()
        # A snapshot in a hub cache: models--OWNER--NAME/snapshots/HASH.
        if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
            path = Path(path.parent.parent.name.rpartition("--")[2])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name)
    return name.strip(".-_")[:_MAX_NAME] or "model"
