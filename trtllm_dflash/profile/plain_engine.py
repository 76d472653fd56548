"""The plain engine of the same target, given or built beside; and the checkpoints that an engine
came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MANIFEST_FILE
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.log import Progress
from trtllm_dflash.options.build import FP8_CACHE, BuildConfig

_FACTS = ("created", "arch", "backend", "argv", "versions", "graph", "weights")


def engine_facts(directory: Path, config: EngineConfig) -> dict[str, Any]:
    """Which engine it is, for the record."""
    built = manifest.load(directory)
    sizes = {
        name: getattr(config, name)
        for name in ("dtype", "block_size", "draft_len", "max_batch_size")
    }
    return {"directory": str(directory), **sizes, **{name: built.get(name) for name in _FACTS}}


def checkpoint(directory: Path, model: str, given: Path | None) -> Path:
    """The checkpoint of an engine's "target" or "drafter": `given`, or where the engine was built
    from.

    One that is not there, or whose files are not those that the engine was built from, raises
    UsageError.
    """
    built = _weights(directory, model)
    path = given or Path(built["directory"])
    advice = f"Give the checkpoint that it was built from: --{model} DIR"
    if not path.is_dir():
        raise UsageError(
            f"{directory} was built from the {model} {path}, and there is no such folder. {advice}"
        )
    for name, entry in built["files"].items():
        if not (path / name).is_file() or manifest.file_entry(path / name) != entry:
            raise UsageError(
                f"{path}: {name} is not the file that {directory} was built from. {advice}"
            )
    return path


@contextmanager
def plain_engine(
    directory: Path,
    config: EngineConfig,
    *,
    given: Path | None,
    target: Path | None,
    progress: Progress,
) -> Iterator[Path]:
    """A plain engine of the target of the DFlash engine `directory`: `given`, or one that is built,
    with its sizes and its type of caches, and removed in the end.

    Raises: UsageError: for an engine that is not plain, of another target, or with caches of
    another type.
    """
    if given is not None:
        _check_plain(directory, config, given)
        yield given
        return
    checkpoint_dir = checkpoint(directory, "target", target)
    from trtllm_dflash.builder.build_engine import build_engine

    with TemporaryDirectory(prefix="dflash-plain-") as folder:
        built = Path(folder) / "plain"
        sizes = {
            name: getattr(config, name)
            for name in ("max_batch_size", "max_seq_len", "max_input_len")
        }
        wanted = BuildConfig(
            str(checkpoint_dir),
            built,
            arch=config.gpu_arch,
            dtype=config.dtype,
            kv_cache_dtype=_cache_dtype(config),
            max_num_tokens=config.max_num_tokens,
            plugins=config.plugins,
            **sizes,
        )
        build_engine(wanted, overwrite=False, progress=progress)
        yield built


def _check_plain(directory: Path, config: EngineConfig, given: Path) -> None:
    plain = EngineConfig.load(given)
    if plain.speculates:
        raise UsageError(
            f"--plain {given}: this engine has a drafter. Speedups are stated against an engine"
            " without one: build it with --no-drafter, or leave --plain out and it is built."
        )
    ours, theirs = (_weights(engine, "target")["files"] for engine in (directory, given))
    if ours != theirs:
        raise UsageError(
            f"--plain {given}: it was built from other weights than the target of {directory}."
            " Build it from the same checkpoint, or leave --plain out and it is built."
        )
    kinds = [_cache_dtype(each) for each in (config, plain)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"--plain {given}: the target's caches are {kinds[1]} there and {kinds[0]} in"
            f" {directory}, so they would not say the same. Build it with --kv-cache-dtype"
            f" {kinds[0]}, or leave --plain out and it is built."
        )


def _cache_dtype(config: EngineConfig) -> str:
    """The --kv-cache-dtype that gives an engine such caches of the target as this one has."""
    return FP8_CACHE if config.kv_cache_quant_algo else config.dtype


def _weights(directory: Path, model: str) -> Mapping[str, Any]:
    """The manifest's entry of a model's checkpoint."""
    for entry in manifest.load(directory).get("weights") or []:
        if isinstance(entry, dict) and entry.get("model") == model and _is_complete(entry):
            return entry
    raise EngineError(
        f"{directory}: {MANIFEST_FILE} does not say from which {model} the engine was"
        " built. Build it again."
    )


def _is_complete(entry: Mapping[str, Any]) -> bool:
    """Whether an entry names a folder, and files in it and nowhere else."""
    names = entry.get("files")
    plain = isinstance(names, dict) and all(Path(name).name == name for name in names)
    return plain and isinstance(entry.get("directory"), str)


def digest(value: Any) -> str:
    """sha256 of plain data."""
    return manifest.text_digest(json.dumps(value).encode())
