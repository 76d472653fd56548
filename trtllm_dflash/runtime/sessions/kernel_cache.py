"""Kernels that TensorRT-RTX has finished for one engine on one GPU, kept for the next start.

An engine of TensorRT-RTX holds its kernels as source and finishes them where it runs, which takes a
start a long time. What is finished is written to a file beside the engine. If that folder takes
none, it goes to the user's folder of caches.

The file's name is made of all that the kernels depend on. Two GPUs may so share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from trtllm_dflash.atomic.whole_file import write_whole
from trtllm_dflash.engine_dir.files import kernel_cache_name

_LOG = logging.getLogger(__name__)
_MAGIC = b"dflash-trt kernels 1\n"
_DIGEST_BYTES = 32
_KEY_LENGTH = 16  # hexadecimal digits


class KernelCache:
    """The file of one engine's kernels; failures are warnings, since a start works without it."""

    def __init__(self, directory: Path, facts: Mapping[str, str]) -> None:
        """`directory` is the engine's; `facts` are what its kernels depend on, by name."""
        text = "\n".join(f"{name}: {value}" for name, value in sorted(facts.items()))
        name = kernel_cache_name(hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH])
        self._paths = [folder / name for folder in (directory, *user_folders())]
        self._written: bytes | None = None

    def read(self) -> bytes | None:
        """Return what was kept, None if there is nothing that can be used."""
        for path in self._paths:
            data = _read(path)
            if data is not None:
                self._written = data
                return data
        return None

    def write(self, data: bytes) -> None:
        """Keep kernels, if they are others than those that were read or written last."""
        if not data or data == self._written:
            return
        content = _MAGIC + hashlib.sha256(data).digest() + data
        failures = []
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, content)
            except OSError as error:
                failures.append(f"{path}: {error.strerror or error}")
                continue
            self._written = data
            _LOG.debug("kept %d bytes of finished kernels in %s", len(data), path)
            return
        _LOG.warning(
            "finished kernels cannot be kept, so the next start takes as long: %s",
            "; ".join(failures),
        )


def user_folders() -> list[Path]:
    """Return the folder of this user's caches of ours; a user without a home has none."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # by the standard for it, another path is ignored
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return []
    return [base / "dflash-trt"]


def _read(path: Path) -> bytes | None:
    try:
        if not path.is_file():  # reading a pipe would never end
            return None
        content = path.read_bytes()
    except OSError as error:
        _LOG.warning("finished kernels in %s cannot be read: %s", path, error.strerror or error)
        return None
    begin = len(_MAGIC) + _DIGEST_BYTES
    data = content[begin:]
    digest = content[len(_MAGIC) : begin]
    if content.startswith(_MAGIC) and hashlib.sha256(data).digest() == digest and data:
        return data
    _LOG.warning(
        "%s is damaged and not used: kernels are finished again, and it is written anew", path
    )
    return None
