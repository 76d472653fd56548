"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

# Name, size and times of a file: they differ once it has been written or replaced.
FileState = tuple[int, int, int, int]


def file_state(path: Path) -> FileState | None:
    """Return what tells a file from a later one of its name, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, a text as UTF-8, so that a failure leaves what was there.

    A link stays, and the file that it leads to is replaced. Devices, pipes, this process's streams
    and a file in a folder that takes no new ones are written where they are.

    Raises:
        OSError: if it cannot be written.
    """
    # A path that is not UTF-8 gets JSON's own escapes.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    is_in_place = is_written_in_place(path)
    path = Path(os.path.realpath(path))
    if is_in_place:
        path.write_bytes(data)
        return
    descriptor, name = tempfile.mkstemp(prefix=".dflash-trt-", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        new.chmod(mode_for(path))
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def write_beside(path: Path, text: str) -> Path:
    """Write a text file under a free name like that of `path`, and return it."""
    descriptor, name = tempfile.mkstemp(
        prefix=f"{path.stem[:100]}-", suffix=path.suffix[:20], dir=path.parent
    )
    os.close(descriptor)
    write_whole(Path(name), text)
    return Path(name)


def is_written_in_place(path: Path) -> bool:
    """Tell whether a file cannot be replaced: no plain one, or in a folder that takes no new."""
    if path.is_relative_to("/dev") or (path.exists() and not path.is_file()):
        return True
    return not os.access(Path(os.path.realpath(path)).parent, os.W_OK | os.X_OK)


def mode_for(path: Path) -> int:
    """Return the mode of the file, or that of a new one."""
    with suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
