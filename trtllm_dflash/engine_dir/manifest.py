"""manifest.json: size and hash of every file in an engine directory, and how it was built."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from trtllm_dflash.checkpoint.tokenizer_files import TOKENIZER_FILES
from trtllm_dflash.engine_dir.files import ENGINE_FILES, MANIFEST_FILE
from trtllm_dflash.engine_dir.other_directories import describe_other
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.versions import platform_facts, versions_of
from trtllm_dflash.log import Progress, ignore_progress
from trtllm_dflash.models.hf_config import parse_json, quote

SCHEMA = 1
# Files below this size are hashed on every load, in less than 0.1 s. Larger ones are compared by
# size, and hashed by `inspect`.
SHALLOW_BYTES = 64_000_000
_CHUNK_BYTES = 1 << 22
# What a manifest must hold, by type.
_TEXTS = ("created", "arch", "backend", "graph")
_KERNEL = {"kernel": str, "bytes": int, "sha256": str, "source_sha256": str}
_WEIGHTS = {"model": str, "directory": str, "files": dict}
_BUILD_AGAIN = "build the engine again with this version"


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
        if path.exists() and not path.is_file():  # reading a pipe would never end
            raise EngineError(f"{path} is no file; {_BUILD_AGAIN}")
        manifest = parse_json(path.read_bytes(), str(path), error=EngineError)
    except (FileNotFoundError, NotADirectoryError):
        raise EngineError(describe_other(directory, MANIFEST_FILE)) from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}") from error
    schema = manifest.get("schema")
    if schema != SCHEMA or type(schema) is not int:
        newer = type(schema) is int and schema > SCHEMA
        advice = "it was written by a newer dflash-trt: use that one" if newer else _BUILD_AGAIN
        raise EngineError(f"{path}: schema {quote(schema)}, expected {SCHEMA}; {advice}")
    _check_facts(manifest, str(path))
    return manifest


def _check_facts(manifest: Mapping[str, Any], where: str) -> None:
    """Raise EngineError for a fact of a wrong type; rows of files are compared one by one."""
    for name in _TEXTS:
        if not isinstance(manifest.get(name), str | None):
            _fail(where, name, "a text")
    versions = manifest.get("versions", {})
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        _fail(where, "versions", "versions by package")
    built_on = manifest.get("platform", {})
    if not isinstance(built_on, dict) or not all(isinstance(v, str) for v in built_on.values()):
        _fail(where, "platform", "facts of a machine by name")
    argv = manifest.get("argv", [])
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        _fail(where, "argv", "a list of words")
    if not isinstance(manifest.get("files", {}), dict):
        _fail(where, "files", "sizes and hashes by name")
    for name, fields in (("kernels", _KERNEL), ("weights", _WEIGHTS)):
        rows = manifest.get(name, [])
        if not isinstance(rows, list) or not all(_has_fields(row, fields) for row in rows):
            _fail(where, name, f"a list of objects with {', '.join(fields)}")


def _has_fields(row: Any, fields: Mapping[str, type]) -> bool:
    return isinstance(row, dict) and all(
        type(row.get(name)) is expected for name, expected in fields.items()
    )


def _fail(where: str, name: str, expected: str) -> NoReturn:
    raise EngineError(f"{where}: {name} is not {expected}; {_BUILD_AGAIN}")


def check(directory: Path, *, deep: bool, backend: str | None = None) -> list[str]:
    """Return every difference between a directory and its manifest, as sentences.

    All sizes are compared, and the hashes of files below 64 MB, or of all files if `deep`. What an
    engine of `backend` reads must be listed: its own files, and a tokenizer where there is one.

    Raises:
        EngineError: if there is no readable manifest, or a file cannot be read.
    """
    files = load(directory).get("files")
    if not isinstance(files, dict) or not files:
        return [f"{MANIFEST_FILE} lists no files"]
    differences = [
        f"{MANIFEST_FILE} does not list {name}, which an engine of {backend} needs"
        for name in ENGINE_FILES.get(backend or "", ())
        if name not in files
    ]
    differences += [
        f"{name} was added after the build: {MANIFEST_FILE} does not list it"
        for name in TOKENIZER_FILES
        if name not in files and os.path.lexists(directory / name)
    ]
    for name, entry in files.items():
        difference = _difference(directory, name, entry, deep=deep)
        if difference is not None:
            differences.append(difference)
    return differences


def is_entry(name: str, entry: Any) -> bool:
    """Return whether a row is well-formed and names a file in the directory itself."""
    is_inside = Path(name).name == name and "\0" not in name and name.isprintable()
    return is_inside and _has_fields(entry, {"bytes": int, "sha256": str})


def digest_of(manifest: Mapping[str, Any], name: str) -> str:
    """Return the sha256 that a manifest has of a file, "" if it has none."""
    files: Any = manifest.get("files")
    entry: Any = files.get(name) if isinstance(files, dict) else None
    return str(entry["sha256"]) if is_entry(name, entry) else ""


def _difference(directory: Path, name: str, entry: Any, *, deep: bool) -> str | None:
    if not is_entry(name, entry):
        return f"{MANIFEST_FILE} has a row that this version cannot read: {name!r}"
    path = directory / name
    size = entry["bytes"]
    try:
        if not path.is_file():
            return f"{name} is missing; the build wrote {size} bytes"
        actual = path.stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes; the build wrote {size}"
        if not deep and actual >= SHALLOW_BYTES:
            return None
        digest = file_digest(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}") from error
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


def platform_difference(manifest: Mapping[str, Any]) -> str | None:
    """Return a sentence if the engine was built on another processor or system than this one.

    Another C library makes no difference to an engine, and is not compared. An engine of an earlier
    version does not say where it was built.
    """
    built: Mapping[str, str] = manifest.get("platform", {})
    here = platform_facts()
    compared = [name for name in ("system", "machine") if built.get(name)]
    if all(built[name] == here[name] for name in compared):
        return None
    there = " ".join(built[name] for name in compared)
    return (
        f"the engine was built on {there}, and this is {here['system']} {here['machine']}: whether"
        " such an engine runs here is not known; if it does not load, build it here"
    )


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
