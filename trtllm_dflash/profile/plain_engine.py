"""The plain engine of the same target: given, or built for the time of a profile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtllm_dflash.atomic.work_folder import work_folder
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import Progress
from trtllm_dflash.options.build import FP8_CACHE, BuildConfig
from trtllm_dflash.profile.engine_origin import find_checkpoint, weights_entry


@contextmanager
def plain_engine(
    directory: Path,
    config: EngineConfig,
    *,
    given: Path | None,
    target: Path | None,
    progress: Progress,
) -> Iterator[Path]:
    """Yield a plain engine of the target of the DFlash engine `directory`.

    It is `given`, or one that is built with the same sizes and types of caches, and removed in the
    end. `target` is the checkpoint to build it from.

    Raises:
        UsageError: for an engine that is not plain, of another target, or with caches of another
            type.
    """
    if given is not None:
        _check_plain(directory, config, given)
        yield given
        return
    from trtllm_dflash.builder.build_engine import build_engine

    checkpoint = find_checkpoint(directory, "target", target)
    with work_folder("dflash-plain-") as folder:
        output_dir = folder / "plain"
        build_config = BuildConfig(
            str(checkpoint),
            output_dir,
            arch=config.gpu_arch,
            dtype=config.dtype,
            kv_cache_dtype=_cache_dtype(config),
            max_batch_size=config.max_batch_size,
            max_seq_len=config.max_seq_len,
            max_input_len=config.max_input_len,
            max_num_tokens=config.max_num_tokens,
            plugins=config.plugins,
        )
        build_engine(build_config, overwrite=False, progress=progress)
        yield output_dir


def _check_plain(directory: Path, config: EngineConfig, given: Path) -> None:
    """Raise UsageError unless `given` is the plain engine of the same target."""
    plain = EngineConfig.load(given)
    if plain.speculates:
        raise UsageError(
            f"--plain {given}: this engine has a drafter. Speedups are stated against an engine"
            " without one: build it with --no-drafter, or leave --plain out and it is built."
        )
    ours, theirs = (weights_entry(engine, "target")["files"] for engine in (directory, given))
    if ours != theirs:
        raise UsageError(
            f"--plain {given}: it was built from other weights than the target of {directory}."
            " Build it from the same checkpoint, or leave --plain out and it is built."
        )
    expected = _cache_dtype(config)
    found = _cache_dtype(plain)
    if found != expected:
        raise UsageError(
            f"--plain {given}: the target's caches are {found} there and {expected} in"
            f" {directory}, so their answers could differ. Build it with --kv-cache-dtype"
            f" {expected}, or leave --plain out and it is built."
        )


def _cache_dtype(config: EngineConfig) -> str:
    """Return the --kv-cache-dtype that gives an engine the target caches of this one."""
    return FP8_CACHE if config.kv_cache_quant_algo else config.dtype
