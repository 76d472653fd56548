"""dflash_quantize.json: how a quantized checkpoint was made, and from what.

--overwrite replaces only folders that contain it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.atomic import check_output_dir
from trtllm_dflash.engine_dir.manifest import file_entry
from trtllm_dflash.errors import UsageError

RECORD_FILE = "dflash_quantize.json"
SCHEMA = 1


def write_record(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write the record of all files in `directory` and below, with the `facts` of their making."""
    files = {name: file_entry(directory / name) for name in _files(directory)}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"schema": SCHEMA, "created": created, **facts, "files": files}
    (directory / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Check that the output may be written.

    One that exists may be with `overwrite`, if `quantize` wrote it and nothing else is in it.

    Raises:
        UsageError: naming what is in the way.
    """
    if check_output_dir(directory, overwrite=overwrite, what="a checkpoint"):
        return
    try:
        record = json.loads((directory / RECORD_FILE).read_bytes())
        listed = {RECORD_FILE, *record["files"]} if record["schema"] == SCHEMA else set()
    except (OSError, ValueError, KeyError, TypeError):
        listed = set()
    if not listed:
        raise UsageError(
            "--overwrite replaces what `dflash-trt quantize` wrote, and nothing else is ever"
            f" deleted: {directory} has no {RECORD_FILE} of this version"
        )
    others = [name for name in _files(directory) if name not in listed]
    if others:
        raise UsageError(
            f"--overwrite replaces a quantized checkpoint, and {directory} also has files that"
            f" do not belong to it: {', '.join(others[:8])}. Move them away"
        )


def _files(directory: Path) -> list[str]:
    """Return the files and links in the directory and below, as relative names."""
    paths = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(directory)) for path in paths)
