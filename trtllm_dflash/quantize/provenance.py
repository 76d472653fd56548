"""dflash_quantize.json: how a quantized checkpoint was made, and from what.

--overwrite replaces only folders that contain it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trtllm_dflash.atomic.output_directory import check_output_dir, check_replaceable
from trtllm_dflash.atomic.swap import Written, files_below
from trtllm_dflash.engine_dir.manifest import file_digest, file_entry
from trtllm_dflash.errors import QuantizeError

RECORD_FILE = "dflash_quantize.json"
SCHEMA = 1


def write_record(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write the record of all files in `directory` and below, with the `facts` of their making."""
    files = {name: file_entry(directory / name) for name in sorted(files_below(directory))}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"schema": SCHEMA, "created": created, **facts, "files": files}
    (directory / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Check that the output may be written.

    One that exists may be with `overwrite`, if `quantize` wrote it and nothing else is in it.

    Raises:
        UsageError: naming what is in the way.
    """
    if not check_output_dir(directory, overwrite=overwrite, what="a checkpoint"):
        check_replaceable(directory, recognize_checkpoint, what="a quantized checkpoint")


def recognize_checkpoint(directory: Path) -> Written:
    """Return what `quantize` wrote into a directory.

    Raises:
        QuantizeError: if it has no record that this version can read.
    """
    path = directory / RECORD_FILE
    try:
        record = json.loads(path.read_bytes())
        listed = record["files"].keys() if record["schema"] == SCHEMA else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        listed = ()
    if not listed:
        raise QuantizeError(f"{directory} has no {RECORD_FILE} of this version")
    return Written(file_digest(path), frozenset({RECORD_FILE, *listed}))
