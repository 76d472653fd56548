"""What is wrong with a .safetensors header, in words and numbers.

Whether a file is valid, the safetensors package decides; its errors name neither tensor nor sizes.
`find_damage` looks for what it refused. `find_oddity` adds what it accepts and we do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS
from trtllm_dflash.models.hf_config import quote

MAX_RANK = 8
MAX_NAME_LENGTH = 512


def find_oddity(name: str, entry: object) -> str | None:
    """Return what is unusual about a tensor's name or entry, None if nothing is."""
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
        characters = f"1 to {MAX_NAME_LENGTH} printable characters"
        return f"a tensor is named {quote(name)}, expected {characters}."
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        keys = "an entry has exactly dtype, shape and data_offsets"
        return f"tensor {name}: {keys}; this one does not."
    dtype = entry["dtype"]
    shape = entry["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return f"tensor {name}: unknown dtype {quote(dtype)}."
    if not _is_size_list(shape) or len(shape) > MAX_RANK:
        sizes = f"a list of at most {MAX_RANK} sizes, each an integer from 0"
        return f"tensor {name}: shape {quote(shape)} is not {sizes}."
    return None


def find_damage(header: Mapping[str, Any], data_start: int, file_size: int) -> str | None:
    """Return the first contradiction within a header or with the file, None if none is found.

    `data_start` is the byte at which the data begins.
    """
    metadata = header.get("__metadata__")
    if metadata is not None and not _is_string_map(metadata):
        return "__metadata__ must map strings to strings."
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in entries.items():
        problem = find_oddity(name, entry) or _wrong_offsets(name, entry, data_start, file_size)
        if problem is not None:
            return problem
    return _wrong_tiling(entries, data_start, file_size)


def _wrong_offsets(
    name: str, entry: dict[str, Any], data_start: int, file_size: int
) -> str | None:
    dtype = entry["dtype"]
    shape = entry["shape"]
    offsets = entry["data_offsets"]
    if not _is_size_list(offsets) or len(offsets) != 2:
        return f"tensor {name}: data_offsets {quote(offsets)} is not a pair of integers from 0."
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if (end - begin) * 8 != bits:
        needed = f"{dtype} {shape} needs {-(-bits // 8)}"
        return f"tensor {name}: data_offsets span {end - begin} bytes, but {needed}."
    if data_start + end > file_size:
        last = f"its data ends at byte {data_start + end}"
        return f"tensor {name}: {last}, but the file has {file_size}."
    return None


def _wrong_tiling(entries: Mapping[str, Any], data_start: int, file_size: int) -> str | None:
    """Describe an overlap, which would alias weights, or a hole, which could hide bytes."""
    end = data_start
    previous = "the header"
    spans = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    for first, last, name in spans:
        begin = data_start + first
        if begin < end:
            before = f"before {previous} ends at {end}"
            return f"tensor {name} begins at byte {begin}, {before}: they overlap."
        if begin > end:
            count = begin - end
            where = f"between {previous} and tensor {name}"
            return f"{count} bytes {where} belong to no tensor."
        end = data_start + last
        previous = f"tensor {name}"
    if end != file_size:
        return f"{file_size - end} bytes after {previous} belong to no tensor."
    return None


def _is_size_list(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _is_string_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())
