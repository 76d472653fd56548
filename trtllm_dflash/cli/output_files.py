"""Files that options ask for: checked before the work, and written after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trtllm_dflash.atomic.whole_file import (
    FileState,
    file_state,
    write_beside,
    write_whole,
)
from trtllm_dflash.errors import OutputError, UsageError

Files = Mapping[str, Path | None]  # by option
_checked: dict[Path, FileState | None] = {}  # what `check_file` found


def check_outputs(outputs: Files, *, inputs: Files, engine: Path | None = None) -> None:
    """Check the files that a command writes, before it works; trying leaves nothing behind.

    Raises:
        UsageError: for one that cannot be written, that the command reads, that is part of the
            engine, or that is given for two options.
    """
    read = {name: path for name, path in inputs.items() if path is not None}
    if engine is not None and engine.is_dir():
        read |= {f"the engine's {path.name}": path for path in engine.iterdir()}
    written: dict[str, Path] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        check_file(option, path)
        for other, known in [*read.items(), *written.items()]:
            if _is_same(path, known):
                raise UsageError(
                    f"{option} {path}: this is also {other}, which would be overwritten. Give"
                    " another path."
                )
        written[option] = path


def check_file(option: str, path: Path | None) -> None:
    """Raise UsageError if a file cannot be written; trying leaves nothing behind."""
    if path is None:
        return
    try:
        if not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}")
        if path.is_dir():
            raise UsageError(
                f"{option} {path}: this is a folder. Give a file, in this folder or elsewhere."
            )
        _try(path)
        _checked[path] = file_state(path)
    except OSError as error:
        raise UsageError(_unwritable(option, path, error.strerror)) from error


def write_file(option: str, path: Path, text: str) -> None:
    """Write a text in one step.

    A file that somebody else has written since `check_file` stays, and the text goes beside it.

    Raises:
        OutputError: saying where the text is, or why it is nowhere.
    """
    try:
        if not path.is_file() or file_state(path) == _checked.get(path, file_state(path)):
            write_whole(path, text)
            return
        beside = write_beside(path, text)
    except OSError as error:
        raise OutputError(_unwritable(option, path, error.strerror)) from error
    raise OutputError(
        f"{option} {path}: somebody else has written it meanwhile, and it stays. What this command"
        f" found is in {beside}"
    )


def _is_same(path: Path, other: Path) -> bool:
    """Tell whether two paths are one regular file; devices and pipes may be shared."""
    try:
        if path.exists() and other.exists():
            return path.is_file() and path.samefile(other)
        return path.resolve() == other.resolve()
    except OSError:  # what cannot be looked at cannot be overwritten
        return False


def _try(path: Path) -> None:
    """Open a file for writing without changing it; anything else, as a pipe, is not touched."""
    if path.is_file():
        path.open("ab").close()
    elif not path.exists():
        new = path.resolve()  # where a link leads
        new.open("xb").close()
        new.unlink()


def _unwritable(option: str, path: Path, reason: str | None) -> str:
    return f"{option} {path}: cannot be written ({reason}). Give another path."
