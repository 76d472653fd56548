"""Finding a checkpoint's files from a directory, a published name or a hub name.

No file outside the directory is opened, unless the user allows links: a checkpoint from elsewhere
could name any file of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from trtllm_dflash.catalog.pairs import Role, nearest_names, pair_of
from trtllm_dflash.checkpoint.file_types import check_file_type
from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models.hf_config import MAX_CONFIG_BYTES, parse_json, quote

# What a checkpoint needs and no more: not the pickles, ONNX files or images that many repositories
# also hold, nor the same weights again in a folder (gpt-oss has them three times).
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
CONFIG_FILES = ("config.json", "generation_config.json", "hf_quant_config.json")
_HUB_FOLDERS = ("*/*",)
_HUB_NAME = re.compile(r"[a-z0-9][\w.-]*(/[a-z0-9][\w.-]*)?", re.ASCII | re.IGNORECASE)
_MAX_HOPS = 8
_LINKS_ALLOWED = ContextVar("links out of a checkpoint's directory are followed", default=False)
_Options = TypeVar("_Options", bound="_WithAllowLinks")
_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[\w.+ -]{1,200}", re.ASCII)


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


@contextmanager
def following_links(*, allowed: bool) -> Iterator[None]:
    """Follow links out of a checkpoint's directory inside of this block, if `allowed`."""
    token = _LINKS_ALLOWED.set(allowed)
    try:
        yield
    finally:
        _LINKS_ALLOWED.reset(token)


class _WithAllowLinks(Protocol):
    @property
    def allow_links(self) -> bool: ...


def honouring_allow_links(
    function: Callable[Concatenate[_Options, _Rest], _Result],
) -> Callable[Concatenate[_Options, _Rest], _Result]:
    """Make a function follow links if the `allow_links` of its first argument says so."""

    @wraps(function)
    def with_links(options: _Options, /, *others: _Rest.args, **named: _Rest.kwargs) -> _Result:
        with following_links(allowed=options.allow_links):
            return function(options, *others, **named)

    return with_links


def file_in(directory: Path, name: str) -> Path:
    """Return the path of a file in the directory, named by untrusted data.

    Raises: CheckpointError: for a path, or a link that leads out of the checkpoint, unless links
    are allowed (`following_links`). Links inside the hub's cache are its own layout.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise CheckpointError(
            f"{directory}: {quote(name)} is no plain file name, and files elsewhere are not read."
        )
    path = directory / name
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path}: this link leads nowhere. Replace it by the file.")
    target = path.resolve()
    home = directory.resolve()
    if target.is_relative_to(home) or _LINKS_ALLOWED.get():
        return path
    cache = _hub_cache_of(home)
    if cache is not None and _links_into(path, cache):
        return path
    raise CheckpointError(
        f"{path} links to {target}, outside the checkpoint's directory. If the link is your own,"
        " give --allow-links (`build` and `quantize` have it); else copy the file into the"
        " directory."
    )


def _hub_cache_of(home: Path) -> Path | None:
    """Return the hub cache's folder of the model whose snapshot `home` is, or lies in."""
    for folder in home.parents:
        if folder.name == "snapshots":
            return folder.parent
    return None


def _links_into(path: Path, cache: Path) -> bool:
    """Tell whether a link leads into the cache's blobs, wherever those are stored."""
    for _ in range(_MAX_HOPS):
        if path.resolve().is_relative_to(cache / "blobs"):
            return True
        if not path.is_symlink():
            return False
        path = path.parent.resolve() / path.readlink()
        if path.parent.resolve() == cache / "blobs":
            return True
    return False


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
