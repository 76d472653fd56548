"""Writing a checkpoint from packed tensors and the original's, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS
from trtllm_dflash.checkpoint.index import INDEX, SINGLE
from trtllm_dflash.checkpoint.safetensors import TensorInfo, read_tensor_infos
from trtllm_dflash.checkpoint.writer import FORMAT, FileLayout, write_file
from trtllm_dflash.log import Progress
from trtllm_dflash.quantize.torch_io import STORED_DTYPES, raw_bytes

PHASE = "writing"
SHARD_BYTES = 5_000_000_000
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class _Entry:
    """A tensor to write: its safetensors dtype, its shape, and the source of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    chunks: Callable[[], Iterable[bytes | memoryview]]


class SpillFolder:
    """Packed tensors on disk until all are there, so that memory holds only one layer."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._count = 0

    def add(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
        """Write tensors to a file of their own, and return their places."""
        path = self._folder / f"{self._count}.safetensors"
        self._count += 1
        _write_file(
            path, {name: _entry_of(tensor) for name, tensor in tensors.items()}, _ignore
        )
        return read_tensor_infos(path)


def write_tensors(
    directory: Path,
    tensors: Mapping[str, TensorInfo],
    progress: Progress,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` (or one tensor) and an index."""
    shards = list(_shards(tensors, shard_bytes))
    num_shards = len(shards)
    total = sum(info.nbytes for info in tensors.values())
    done = 0
    weight_map: dict[str, str] = {}

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(PHASE, done, total)

    for number, shard in enumerate(shards, start=1):
        file = SINGLE
        if num_shards > 1:
            file = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        _write_file(directory / file, shard, advance)
    if num_shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2)
        (directory / INDEX).write_text(f"{text}\n", encoding="utf-8")


def _shards(tensors: Mapping[str, TensorInfo], limit: int) -> Iterator[dict[str, _Entry]]:
    """Yield the tensors of each shard."""
    shard: dict[str, _Entry] = {}
    size = 0
    for name, info in tensors.items():
        if shard and size + info.nbytes > limit:
            yield shard
            shard = {}
            size = 0
        shard[name] = _entry_in(info)
        size += info.nbytes
    yield shard


def _entry_of(tensor: torch.Tensor) -> _Entry:
    """Return the entry of a tensor in memory."""
    return _Entry(
        dtype=STORED_DTYPES[tensor.dtype],
        shape=tuple(tensor.shape),
        nbytes=tensor.nbytes,
        chunks=lambda: [raw_bytes(tensor)],
    )


def _entry_in(info: TensorInfo) -> _Entry:
    """Return the entry of a tensor in a file, read in chunks."""

    def chunks() -> Iterator[bytes]:
        left = info.nbytes
        with info.path.open("rb") as file:
            file.seek(info.offset)
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise OSError(f"{info.path} has become shorter")
                left -= len(chunk)
                yield chunk

    return _Entry(info.dtype, info.shape, info.nbytes, chunks)


def _write_file(
    path: Path, entries: Mapping[str, _Entry], advance: Callable[[int], None]
) -> None:
    """Write one file, and report the bytes of each tensor."""

    def order(name: str) -> tuple[int, str]:
        # Wide elements first, so that every tensor begins at a multiple of its element's size.
        return -DTYPE_BITS[entries[name].dtype], name

    ordered = {name: entries[name] for name in sorted(entries, key=order)}
    described = {name: (entry.dtype, entry.shape) for name, entry in ordered.items()}

    def buffers() -> Iterator[bytes | memoryview]:
        for entry in ordered.values():
            yield from entry.chunks()
            advance(entry.nbytes)

    layout = FileLayout.of(described, metadata=FORMAT)
    write_file(path, layout, buffers())


def _ignore(count: int) -> None:
    pass
