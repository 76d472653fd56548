"""Files that options ask for: checked before the work, and written after it."""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.errors import UsageError


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
    except OSError as error:
        raise _refused(option, path, error) from error


def write_file(option: str, path: Path, text: str) -> None:
    """Write a text; raise UsageError if that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refused(option, path, error) from error


def _try(path: Path) -> None:
    """Open a file for writing without changing it; anything else, as a pipe, is not touched."""
    if path.is_file():
        path.open("ab").close()
    elif not path.exists():
        new = path.resolve()  # where a link leads
        new.open("xb").close()
        new.unlink()


def _refused(option: str, path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{option} {path}: cannot be written ({error.strerror}). Give another path."
    )
