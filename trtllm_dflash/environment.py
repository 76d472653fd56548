"""Defaults of the environment under which our dependencies work for the user alone.

Some report their use to their makers, or write into the user's home. A variable that is set stays
as it is, so anybody may decide otherwise.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

DEFAULTS = {
    # ONNX Runtime from 1.29 on: a database in HOME, and a look-up of its maker's host.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub, and transformers by it: what is installed here, in each request's header.
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def set_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set each default that the user has not decided; child processes inherit it."""
    for name, value in DEFAULTS.items():
        environment.setdefault(name, value)


@contextmanager
def torch_caches_in(
    folder: Path, environment: MutableMapping[str, str] = os.environ
) -> Iterator[None]:
    """Let torch make its cache of compiled code in `folder` during the block, or where it is set.

    ModelOpt makes torch open it when it is imported.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    if name in environment:
        yield
        return
    environment[name] = str(folder)
    try:
        yield
    finally:
        environment.pop(name, None)


@contextmanager
def matplotlib_without_traces(
    environment: MutableMapping[str, str] = os.environ,
) -> Iterator[None]:
    """Let matplotlib be imported in the block without writing into HOME or a font cache.

    It looks for fonts when it is imported, and keeps their list. Our figures need only the fonts
    that it brings along. A user's own MPLCONFIGDIR is used as it is.
    """
    if "MPLCONFIGDIR" in environment or "matplotlib" in sys.modules:
        yield
        return
    before = environment.get("FONTCONFIG_FILE")
    with tempfile.TemporaryDirectory(prefix="dflash-matplotlib-") as folder:
        no_fonts = Path(folder) / "fonts.conf"
        no_fonts.write_text("<fontconfig></fontconfig>")
        environment.update({"MPLCONFIGDIR": folder, "FONTCONFIG_FILE": str(no_fonts)})
        try:
            yield
        finally:
            del environment["MPLCONFIGDIR"], environment["FONTCONFIG_FILE"]
            if before is not None:
                environment["FONTCONFIG_FILE"] = before
