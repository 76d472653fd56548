"""The files of plugins/kernels, and what Python takes from their headers.

The parameter structures and constants of the kernels are written once, in C++ (the headers
`*_params.h`); `structure` and `constants` read them from there.
"""

from __future__ import annotations

import hashlib
import math
import re
from ctypes import Structure, c_float, c_int, c_void_p
from functools import cache
from importlib import resources

from trtllm_dflash.errors import BuildError

_PACKAGE = (
    "trtllm_dflash.kernels"  # the folder plugins/kernels of the repository, as package data
)
_FIELD_TYPES = {"int": c_int, "float": c_float}
_STRUCTURE = r"^struct {name} {{\n(.*?)^}};$"
_FIELD = re.compile(r"^  ((?:const )?(?:long long|\w+)(\*)?) (\w+);\s*(?://.*)?$")
_CONSTANT = re.compile(r"^constexpr int (k\w+) = ([\w* ]+);", re.MULTILINE)


@cache
def kernel_sources() -> dict[str, bytes]:
    """Return all files of plugins/kernels by name."""
    folder = resources.files(_PACKAGE)
    files = (file for file in folder.iterdir() if file.name.endswith((".cu", ".cuh", ".h")))
    return {file.name: file.read_bytes() for file in files}


def source_digest(source: str) -> str:
    """Return the sha256 of a kernel source and of all headers, which it may include."""
    sources = kernel_sources()
    digest = hashlib.sha256()
    names = (name for name in sources if name == f"{source}.cu" or not name.endswith(".cu"))
    for name in sorted(names):
        digest.update(f"{name} {len(sources[name])}\n".encode() + sources[name])
    return digest.hexdigest()


def structure(header: str, name: str) -> type[Structure]:
    """Return a structure of a header as a ctypes type: pointers, ints and floats.

    Raises:
        BuildError: if the header has no such structure, or one with a field of another type.
    """
    found = re.search(_STRUCTURE.format(name=name), _text(header), re.DOTALL | re.MULTILINE)
    if found is None:
        raise BuildError(f"plugins/kernels/{header} has no struct {name}")
    lines = (line for line in found[1].splitlines() if not line.lstrip().startswith("//"))
    types = [_field_type(line, f"plugins/kernels/{header}: {name}") for line in lines]
    return type(name, (Structure,), {"_fields_": types, "__doc__": f"`{name}` of {header}."})


def constants(header: str) -> dict[str, int]:
    """Return the integer constants of a header by name, as kScanThreads."""
    values: dict[str, int] = {}
    for name, expression in _CONSTANT.findall(_text(header)):
        factors = [part.strip() for part in expression.split("*")]
        values[name] = math.prod(
            values[factor] if factor in values else int(factor) for factor in factors
        )
    return values


def _field_type(line: str, where: str) -> tuple[str, type]:
    field = _FIELD.match(line)
    if field is None:
        raise BuildError(f"{where}: expected one field a line, got {line.strip()!r}")
    type_name, pointer, name = field.groups()
    if not pointer and type_name not in _FIELD_TYPES:
        raise BuildError(f"{where}: {name} is {type_name}, expected a pointer, int or float")
    return name, c_void_p if pointer else _FIELD_TYPES[type_name]


def _text(header: str) -> str:
    sources = kernel_sources()
    if header not in sources:
        raise BuildError(
            f"there is no kernel header {header}, only {', '.join(sorted(sources))}"
        )
    return sources[header].decode()
