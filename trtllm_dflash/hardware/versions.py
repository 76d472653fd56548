"""Versions of what an engine depends on, without importing any of it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

from trtllm_dflash import __version__


def installed_version(package: str) -> str | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of this package, of Python and of the installed `packages` by name."""
    found = {package: installed_version(package) for package in packages}
    ours = {"dflash-trt": __version__, "python": platform.python_version()}
    return ours | {
        package: version for package, version in found.items() if version is not None
    }
