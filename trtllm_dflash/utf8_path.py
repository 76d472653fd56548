"""Paths for libraries that take only UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtllm_dflash.errors import UsageError


@contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """Yield a name for a file, in UTF-8, that opens it during the block.

    Folders may have names that are no UTF-8, as from an old archive. The file's own name must be.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{path.name}"
        finally:
            os.close(folder)
        return
    yield str(path)


def require_utf8(option: str, path: Path | str) -> None:
    """Check that a path can be written into a text file, as UTF-8.

    Raises:
        UsageError: naming the option.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise UsageError(
            f"{option} {shown}: this name is not UTF-8, and what is exported has to state it."
            " Rename the folder"
        ) from None
