"""Which files belong to a checkpoint's directory, and which links may lead out of it.

No file outside the directory is opened, unless the user allows links: a checkpoint from elsewhere
could name any file of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.hf_config import quote

_MAX_HOPS = 8
_LINKS_ALLOWED = ContextVar("links out of a checkpoint's directory are followed", default=False)
_Options = TypeVar("_Options", bound="_WithAllowLinks")
_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[\w.+ -]{1,200}", re.ASCII)


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
