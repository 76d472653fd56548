"""A text file that is written while the work goes on."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from trtllm_dflash.atomic.whole_file import is_written_in_place, mode_for


class GrowingFile:
    """A text file that grows line by line; what was there stays until the first line is whole.

    From then on it has the path's name, so a process that ends leaves the lines it wrote. What
    `write_whole` writes where it is, this does too.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or one beside it that replaces it.

        Raises:
            OSError: if it cannot be written.
        """
        is_in_place = is_written_in_place(path)
        self._path = Path(os.path.realpath(path))
        self._new: Path | None = None  # until it has the path's name
        if is_in_place:
            self._file = path.open("wb")
        else:
            descriptor, name = tempfile.mkstemp(prefix=".dflash-trt-", dir=self._path.parent)
            self._new = Path(name)
            self._file = os.fdopen(descriptor, "wb")

    def write_line(self, line: str) -> None:
        """Write a line as UTF-8, and flush it.

        Half a surrogate pair becomes \\udXXX, which is how JSON writes it.

        Raises:
            OSError: if it cannot be written.
        """
        self._file.write(line.encode(errors="backslashreplace") + b"\n")
        self._file.flush()
        if self._new is not None:
            self._new.chmod(mode_for(self._path))
            self._new.replace(self._path)
            self._new = None

    def close(self) -> None:
        """Close it; without a line nothing is left of it."""
        with suppress(OSError):  # each line was flushed, and a failure then was told
            self._file.close()
        if self._new is not None:
            with suppress(OSError):
                self._new.unlink()
