"""Versions of what an engine depends on.

What counts is the module that is imported, whoever installed it: NVIDIA's containers, conda and
vendors' wheels bring the same modules in distributions of other names, or of none.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from trtllm_dflash import __version__
from trtllm_dflash.hardware.module_probe import probe_module

# The module behind a name, and the distributions that mostly bring it.
_MODULES = (
    (r"tensorrt[-_]rtx(-cu\d+)?", "tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx")),
    (r"tensorrt(-cu\d+)?", "tensorrt", ("tensorrt-cu13", "tensorrt")),
    (r"onnxruntime(-\w+)?", "onnxruntime", ("onnxruntime",)),
    (r"cuda-bindings", "cuda.bindings", ("cuda-bindings",)),
)
_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"'\n]+)["']\s*(?:#.*)?$""", re.MULTILINE)
_INSTALLERS = ("pip", "uv")


def module_of(package: str) -> str | None:
    """Return the module that stands for a package's version, None for an ordinary package."""
    for pattern, module, _ in _MODULES:
        if re.fullmatch(pattern, package):
            return module
    return None


def installed_version(package: str) -> str | None:
    """Return the installed version of a package or of one of our modules, None without it."""
    module = module_of(package)
    if module is not None:
        return module_version(module)
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name of a package
        return None


def platform_facts() -> dict[str, str]:
    """Return the processor's architecture, the system and the C library of this machine."""
    library, version = platform.libc_ver()
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "libc": f"{library} {version}".strip(),
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of this package, of Python and of the installed `packages` by name."""
    found = {package: installed_version(package) for package in packages}
    ours = {"dflash-trt": __version__, "python": platform.python_version()}
    return ours | {
        package: version for package, version in found.items() if version is not None
    }


def module_version(module: str) -> str | None:
    """Return a module's `__version__`, None if it is not installed.

    It is read from the module's source or its distribution. Only where neither says it is the
    module imported, in a process of its own.
    """
    loaded = getattr(sys.modules.get(module), "__version__", None)
    if isinstance(loaded, str):
        return loaded
    source = _source(module)
    if source is None:
        return None
    text = ""
    with suppress(OSError):  # it may not be readable, or be inside an archive
        text = source.read_text(encoding="utf-8", errors="replace")
    if written := _VERSION.search(text):
        return written[1]
    owner = owner_of(module)
    told = None if owner is None else metadata.version(owner)
    return told or probe_module(module).version or None


@cache
def owner_of(module: str) -> str | None:
    """Return the name of the distribution that brought a module, None if there is none."""
    source = _source(module)
    if source is None:
        return None
    for _, found, names in _MODULES:
        for name in names if found == module else ():
            if _is_installed(name) and _brings(metadata.distribution(name), source):
                return name
    site = source.parents[module.count(".") + 1]
    for distribution in metadata.distributions(path=[str(site)]):
        if _brings(distribution, source) and _has_name(distribution):
            return distribution.name
    return None


def owners_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the distributions of those names that stand for modules, where there are any."""
    found = {package: module_of(package) for package in packages}
    owners = {name: owner_of(module) for name, module in found.items() if module}
    return {name: owner for name, owner in owners.items() if owner is not None}


def pip_line(module: str, version: str) -> str | None:
    """Return the command that installs another version of a module.

    None where pip did not install it: in a container the command would only break it.
    """
    owner = owner_of(module)
    if owner is None:
        return None
    installer = _text_of(metadata.distribution(owner), "INSTALLER")
    return f"pip install {owner}=={version}" if installer.strip() in _INSTALLERS else None


def version_of_module(versions: Mapping[str, str], module: str) -> str | None:
    """Return a module's version from a manifest, which may have it under a distribution's name."""
    for name, version in versions.items():
        if module_of(name) == module:
            return version
    return None


def _source(module: str) -> Path | None:
    """Return the file of a module that can be found, without importing it."""
    try:
        spec = find_spec(module)
    except (Exception, SystemExit):  # noqa: BLE001 - the import of a parent, which is foreign code
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _brings(distribution: metadata.Distribution, source: Path) -> bool:
    """Tell whether a distribution holds this file."""
    tail = "/".join(source.parts[-2:])
    files = _text_of(distribution, "RECORD") or _text_of(distribution, "installed-files.txt")
    folder = Path(str(distribution.locate_file("")))
    return tail in files and folder.resolve() in source.resolve().parents


def _has_name(distribution: metadata.Distribution) -> bool:
    return "\nName:" in f"\n{_text_of(distribution, 'METADATA')}"


def _text_of(distribution: metadata.Distribution, file: str) -> str:
    """Return a file of a distribution's metadata, "" for none and for what is no text."""
    try:
        return distribution.read_text(file) or ""
    except ValueError:
        return ""
