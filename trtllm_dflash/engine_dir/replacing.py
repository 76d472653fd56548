"""Which engine directories a build may replace: those that hold only what a build wrote."""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.atomic.output_directory import check_output_dir, check_replaceable
from trtllm_dflash.atomic.swap import Written
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.files import MANIFEST_FILE, is_kernel_cache


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Check that an engine can be written to `directory`.

    With `overwrite` it may hold an engine, and no file that a build has not written.

    Raises:
        UsageError: saying what is in the way.
    """
    if not check_output_dir(directory, overwrite=overwrite, what="an engine"):
        check_replaceable(directory, recognize_engine, what="an engine")


def recognize_engine(directory: Path) -> Written:
    """Return what a build wrote into an engine directory, and the kernels kept beside it.

    Raises:
        EngineError: if it has no manifest that this version can read.
    """
    listed = manifest.load(directory).get("files")
    names = listed.keys() if isinstance(listed, dict) else ()
    identity = manifest.file_digest(directory / MANIFEST_FILE)
    kept = [path.name for path in directory.iterdir() if is_kernel_cache(path.name)]
    return Written(identity, frozenset({MANIFEST_FILE, *names, *kept}))
