"""Files that options ask for: refused before the work if they cannot be, and written after it, in one place."""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.errors import UsageError


def check_folder(option: str, path: Path | None) -> None:
    """Raise UsageError if the folder of a file that is to be written is not there."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")


def write_file(option: str, path: Path, text: str) -> None:
    """Write `text`; UsageError where the system refuses."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror}). Give another path.") from error
