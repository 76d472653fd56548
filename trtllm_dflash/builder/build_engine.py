"""Builds an engine directory: check everything first, then let a child process do the work."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtllm_dflash.atomic.output_directory import (
    atomic_directory,
    check_space,
    write_error,
)
from trtllm_dflash.atomic.work_folder import keep_only, work_folder
from trtllm_dflash.builder.host_costs import HostCosts
from trtllm_dflash.builder.job import BuildRequest
from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.builder.scratch_limit import scratch_refusal
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.builder.text_settings import decide_text_settings
from trtllm_dflash.builder.worker_process import run_worker
from trtllm_dflash.checkpoint.links import honouring_allow_links
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config_writer import write_engine_files
from trtllm_dflash.engine_dir.files import LOG_FILE, TOKENIZER_FILE
from trtllm_dflash.engine_dir.replacing import check_output, recognize_engine
from trtllm_dflash.errors import BuildError, DFlashError, UsageError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import BACKENDS, require_buildable
from trtllm_dflash.hardware.kernel_compiler import PACKAGES as KERNEL_PACKAGES
from trtllm_dflash.hardware.versions import owners_of, platform_facts, versions_of
from trtllm_dflash.log import (
    Progress,
    Rows,
    finished,
    human_bytes,
    ignore_progress,
    started,
    table,
)
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.resolved_build import ResolvedBuild
from trtllm_dflash.tokenizing.tokenizer_process import end_unused_processes

_LOG = logging.getLogger(__name__)
_TEXT_PACKAGES = ("transformers", "tokenizers", "jinja2")
_GRAPH_PACKAGES = ("numpy", "onnx", "onnx-ir")


@dataclass(frozen=True)
class BuildReport:
    """What a build made and cost.

    `seconds` are wall-clock, `bytes` those of the directory, `peak_memory` the builder process's.
    `takes_text` tells whether prompts can be text.
    """

    directory: Path
    resolved: ResolvedBuild
    seconds: float
    bytes: int
    peak_memory: int
    takes_text: bool = True

    def rows(self) -> Rows:
        """Return the costs as rows of name and text."""
        return [
            ("took", f"{self.seconds:.1f} s"),
            ("wrote", human_bytes(self.bytes)),
            ("peak memory", human_bytes(self.peak_memory)),
        ]


@honouring_allow_links
def plan_build(config: BuildConfig, *, overwrite: bool = False) -> ResolvedModels:
    """Resolve a build and check that it can run, before anything is written.

    Raises:
        DFlashError: for a backend, output directory, model, size or disk that cannot work.
    """
    require_buildable(ARCHS[config.arch], plugins=config.with_plugins)
    config = replace(config, output_dir=config.output_dir.expanduser().resolve())
    check_output(config.output_dir, overwrite=overwrite)
    _check_timing_cache(config.timing_cache)
    models = resolve_models(config)
    plan = MemoryPlan.of(models)
    refusal = scratch_refusal(plan)
    if refusal is not None:
        raise BuildError(f"{refusal}. Nothing was written")
    check_space(config.output_dir, HostCosts(plan).disk_bytes)
    return models


def _check_timing_cache(path: str | None) -> None:
    """Check a file that is written at the end of a long build."""
    if path is None:
        return
    file = Path(path).expanduser().resolve()
    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(
            f"--timing-cache {path}: give a file in a folder that exists; the file itself need not"
            " exist"
        )


@honouring_allow_links
def build_engine(
    config: BuildConfig,
    *,
    overwrite: bool = False,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
    run: Callable[..., dict[str, Any]] = run_worker,
) -> BuildReport:
    """Build the engine directory `config.output_dir`. After an error it is as it was before.

    With `overwrite` an engine directory may be replaced. `argv` (default: the process's) is noted
    in the manifest. `run` does the work: by default in a process of its own.

    Raises:
        DFlashError: if it cannot be built; the builder's log is kept and named.
    """
    models = plan_build(config, overwrite=overwrite)
    text = decide_text_settings(models.config, models.target.directory, models.target.config)
    for warning in text.warnings:
        _LOG.warning("warning: %s", warning)
    for note in text.notes:
        _LOG.info("%s", note)
    if ARCHS[models.resolved.gpu_arch].is_gpu:  # the compiler needs much memory
        end_unused_processes()
    begun = time.monotonic()
    directory = models.config.output_dir
    started(_LOG, "building the engine", [*summary_rows(models), *text.rows()])
    replaces = recognize_engine if overwrite else None
    with _log_file(models) as log, atomic_directory(directory, replaces=replaces) as staging:
        result = run(_request(models, staging), log=log, progress=progress)
        contents = replace(models.engine_contents, text=text.to_json())
        write_engine_files(staging, contents.to_json(), models.target.directory)
        shutil.copyfile(log, staging / LOG_FILE)
        facts = _facts(models, result, sys.argv if argv is None else argv)
        manifest.write(staging, facts, progress=progress)
        size = sum(path.stat().st_size for path in staging.iterdir())
    seconds = time.monotonic() - begun
    report = BuildReport(
        directory,
        models.resolved,
        seconds,
        size,
        result["peak_memory"],
        takes_text=text.has_tokenizer,
    )
    finished(_LOG, "built the engine", report.rows())
    return report


@contextmanager
def _log_file(models: ResolvedModels) -> Iterator[Path]:
    """Yield the builder's log, outside the engine directory.

    It is kept after a build whose error names it.
    """
    try:
        with work_folder("dflash-trt-build-") as folder:
            log = folder / LOG_FILE
            text = f"building the engine with:\n{table(summary_rows(models))}\n"
            log.write_bytes(text.encode(errors="surrogateescape"))  # paths need not be UTF-8
            try:
                yield log
            except DFlashError as error:
                if str(log) in str(error):
                    keep_only(folder, LOG_FILE)
                raise
    except OSError as error:
        raise write_error(Path(tempfile.gettempdir()), error) from error


def _request(models: ResolvedModels, staging: Path) -> BuildRequest:
    """Return the same build with paths in place of hub names, which are fetched by now."""
    config = replace(
        models.config,
        target=str(models.target.directory.resolve()),
        drafter=str(models.drafter.directory.resolve()) if models.drafter else None,
        draft_vocab=_absolute(models.config.draft_vocab),
        timing_cache=_absolute(models.config.timing_cache),
    )
    return BuildRequest(config, staging)


def _absolute(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path else None


def _facts(
    models: ResolvedModels, result: dict[str, Any], argv: Sequence[str]
) -> dict[str, Any]:
    """Return what the manifest says of how and from what the engine was built."""
    backend = BACKENDS[models.resolved.backend]
    packages = [*_GRAPH_PACKAGES, backend.module]
    if models.resolved.plugins:
        packages += KERNEL_PACKAGES
    if (models.target.directory / TOKENIZER_FILE).is_file():
        packages += _TEXT_PACKAGES
    return {
        "arch": models.resolved.gpu_arch,
        "backend": backend.name,
        "argv": list(argv),
        "versions": versions_of(packages) | result["versions"],
        "distributions": owners_of(packages),
        "platform": platform_facts(),
        "graph": result["graph"],
        "kernels": result["kernels"],
        "weights": result["weights"],
        "drafter_licence": models.drafter_licence or None,
    }
