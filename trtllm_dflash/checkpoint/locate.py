"""Finding a checkpoint's directory by a path, a published name or a hub name; reading its JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trtllm_dflash.catalog.pairs import Role, nearest_names, pair_of
from trtllm_dflash.checkpoint.file_types import check_file_type
from trtllm_dflash.checkpoint.links import file_in
from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models.hf_config import MAX_CONFIG_BYTES, parse_json

# What a checkpoint needs and no more: not the pickles, ONNX files or images that many repositories
# also hold, nor the same weights again in a folder (gpt-oss has them three times).
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
CONFIG_FILES = ("config.json", "generation_config.json", "hf_quant_config.json")
_HUB_FOLDERS = ("*/*",)
_HUB_NAME = re.compile(r"[a-z0-9][\w.-]*(/[a-z0-9][\w.-]*)?", re.ASCII | re.IGNORECASE)


def find_directory(
    path_or_name: str | Path,
    *,
    role: Role = "target",
    fetch: bool = True,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Return the local directory meant by a path, else a published name, else a hub name.

    Names are looked up in the hub's cache and, if `fetch`, fetched into it. Before the weights are
    fetched, `check` is called with a directory that has the configuration files alone.

    Raises: CheckpointError: if there is none; it has the nearest published names. And what `check`
    raises.
    """
    name = str(path_or_name)
    path = Path(name)
    if name and path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, expected the checkpoint's directory: the one with config.json"
            " in it."
        )
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r}: there is no such directory, and it is no hub name (organisation/model)"
            " either."
        )
    pair = pair_of(name, role)
    near = nearest_names(name, role) if pair is None and "/" not in name else []
    if near:
        raise CheckpointError(
            f"{name!r}: there is no such directory, and no known {role} of that name; the nearest"
            f" are {', '.join(near)}. `dflash-trt list` shows all."
        )
    if pair is not None:
        name = (pair.target if role == "target" else pair.drafter).repository
    if fetch and check is not None:
        check(_fetch(name, CONFIG_FILES, fetch=True))
    return _fetch(name, HUB_FILES, fetch=fetch)


def read_json_in(directory: Path, name: str) -> dict[str, Any] | None:
    """Return the parsed JSON object of a file in the directory, None if there is no such file."""
    path = file_in(directory, name)
    if not path.exists():
        return None
    if not path.is_file():
        raise ConfigError(f"{path}: this is not a regular file.")
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path}: the file has {size} bytes, and a configuration at most"
                f" {MAX_CONFIG_BYTES}."
            )
        check_file_type(path)
        data = path.read_bytes()
    except OSError as cause:
        raise ConfigError(f"{path}: cannot be read ({cause.strerror}).") from cause
    return parse_json(data, str(path))


def _fetch(name: str, files: Sequence[str], *, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(files),
                ignore_patterns=list(_HUB_FOLDERS),
                local_files_only=not fetch,
            )
        )
    # The hub's client lets through its own errors and those of two HTTP libraries.
    except Exception as cause:
        reason = str(cause).strip().split("\n")[0].rstrip(".") or type(cause).__name__
        tried = (
            f"fetching it from the Hugging Face hub failed: {reason}"
            if fetch
            else "nothing is fetched for a plan"
        )
        raise CheckpointError(
            f"{name}: it is neither a directory here nor in the hub's cache, and {tried}. Where"
            f" there is a network: {_download(name)}"
        ) from cause


def _download(name: str) -> str:
    """Return the commands that download a model, and a published target's drafter."""
    pair = pair_of(name)
    if pair is None:
        return f"`hf download {name} --local-dir DIR`; then pass the directory."
    drafter = pair.drafter.repository
    return (
        f"`hf download {name} --local-dir T` and `hf download {drafter} --local-dir D`; then"
        " --target T --drafter D."
    )
