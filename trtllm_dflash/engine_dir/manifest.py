"""manifest.json: size and hash of every file in an engine directory, and how it was built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.files import MANIFEST_FILE
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.versions import versions_of
from trtllm_dflash.log import Progress, ignore_progress

SCHEMA = 1
# Files below this size are hashed on every load, in less than 0.1 s. Larger ones are compared by
# size, and hashed by `inspect`.
SHALLOW_BYTES = 64_000_000
_CHUNK_BYTES = 1 << 22


def write(
    directory: Path, facts: Mapping[str, Any], *, progress: Progress = ignore_progress
) -> None:
    """Write the manifest of all files in `directory`; `facts` say how and from what they come."""
    paths = sorted(path for path in directory.iterdir() if path.name != MANIFEST_FILE)
    total = sum(path.stat().st_size for path in paths)
    files = {}
    done = 0
    for path in paths:
        entry = file_entry(path)
        files[path.name] = entry
        done += int(entry["bytes"])
        progress("hashing the engine", done, total)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"schema": SCHEMA, "created": created, **facts, "files": files}
    (directory / MANIFEST_FILE).write_text(
        json.dumps(manifest, indent=2) + "\n", encoding="utf-8"
    )


def load(directory: Path) -> dict[str, Any]:
    """Read a directory's manifest.

    Raises:
        EngineError: if there is none, or it is not one that this version can read.
    """
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(
            f"{directory}: no {MANIFEST_FILE}, so this is not an engine directory; give the"
            " --output-dir of a build"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{path}: not readable as JSON ({error}); build the engine again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = (
            manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        )
        raise EngineError(
            f"{path}: schema {found!r}, expected {SCHEMA}; build the engine again with this version"
        )
    return manifest


def check(directory: Path, *, deep: bool) -> list[str]:
    """Return every difference between a directory and its manifest, as sentences.

    All sizes are compared, and the hashes of files below 64 MB, or of all files if `deep`.

    Raises:
        EngineError: if there is no readable manifest.
    """
    files = load(directory).get("files")
    if not isinstance(files, dict) or not files:
        return [f"{MANIFEST_FILE} lists no files"]
    differences = []
    for name, entry in files.items():
        difference = _difference(directory, name, entry, deep=deep)
        if difference is not None:
            differences.append(difference)
    return differences


def _is_entry(name: str, entry: Any) -> bool:
    """Return whether a row is well-formed and names a file in the directory itself."""
    is_inside = Path(name).name == name
    return is_inside and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()


def _difference(directory: Path, name: str, entry: Any, *, deep: bool) -> str | None:
    if not _is_entry(name, entry):
        return f"{MANIFEST_FILE} has a row that this version cannot read: {name!r}"
    path = directory / name
    size = entry["bytes"]
    if not path.is_file():
        return f"{name} is missing; the build wrote {size} bytes"
    actual = path.stat().st_size
    if actual != size:
        return f"{name} has {actual} bytes; the build wrote {size}"
    if not deep and actual >= SHALLOW_BYTES:
        return None
    digest = file_digest(path)
    expected = entry["sha256"]
    if digest == expected:
        return None
    return f"{name} was changed after the build: its sha256 is {digest}, the build wrote {expected}"


def version_differences(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each package that had another version where the engine was built."""
    built: Mapping[str, str] = manifest.get("versions", {})
    here = versions_of(built)
    differences = []
    for package, version in built.items():
        found = here.get(package)
        if found != version:
            found = found or "not installed"
            differences.append(
                f"{package} is {found} here; the engine was built with {version}"
            )
    return differences


def unlisted_files(directory: Path) -> list[str]:
    """Return the names in an engine directory that its build did not write."""
    listed = {MANIFEST_FILE, *load(directory).get("files", {})}
    return sorted(path.name for path in directory.iterdir() if path.name not in listed)


def file_entry(path: Path) -> dict[str, int | str]:
    """Return size and hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def bytes_digest(data: bytes) -> str:
    """Return the sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()
