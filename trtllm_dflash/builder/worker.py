"""The builder process: a request on stdin, events on stdout, its log on stderr.

`builder.worker_process` runs it as `python -m trtllm_dflash.builder.worker`, and turns a crash in
here into an error message.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trtllm_dflash import log
from trtllm_dflash.atomic.output_directory import write_error
from trtllm_dflash.atomic.work_folder import abandon
from trtllm_dflash.builder.job import BuildJob, BuildRequest, BuildResult
from trtllm_dflash.builder.progress_protocol import EventStream
from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.checkpoint.finite import check_finite_with_progress
from trtllm_dflash.checkpoint.links import following_links
from trtllm_dflash.engine_dir.manifest import bytes_digest, file_entry
from trtllm_dflash.errors import BuildError, DFlashError
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.hardware.memory import peak_memory
from trtllm_dflash.log import Progress
from trtllm_dflash.trt.loader import select_flavor


def main() -> None:
    """Serve one request."""
    log.configure(verbose=False)
    events = EventStream.over_stdout()
    request = BuildRequest.from_json(sys.stdin.readline())
    _exit_with_parent(request.directory)
    try:
        events.result(work(request, events.progress))
    except DFlashError as error:
        events.error(error, type(error))
        sys.exit(1)
    except OSError as error:
        events.error(write_error(request.config.output_dir, error), BuildError)
        sys.exit(1)


def work(request: BuildRequest, progress: Progress) -> dict[str, Any]:
    """Build the engine's own files.

    Returns what the manifest says of their origin, and the peak memory in bytes.
    """
    with following_links(allowed=request.config.allow_links):
        models = resolve_models(request.config)
    sizes = models.resolved
    backend = BACKENDS[sizes.backend]
    if sizes.gpu_arch != "cpu":
        select_flavor(backend.module)
    builder = import_module(backend.builder)  # before the weights: it may be what fails
    sources = _check_weights(models, progress)
    num_files = sum(len(source["files"]) for source in sources)
    _log(f"building the graph, {num_files} weight files checked")
    timings = Path(request.config.timing_cache) if request.config.timing_cache else None
    job = BuildJob(sizes, models.io, request.directory, progress, timings)
    built: BuildResult = builder.build(partial(_make_model, models), job)
    shutil.rmtree(job.scratch, ignore_errors=True)
    _log("done")
    return {
        "graph": bytes_digest(built.graph),
        "kernels": list(built.kernels),
        "versions": dict(built.versions),
        "weights": sources,
        "peak_memory": peak_memory(),
    }


def _make_model(models: ResolvedModels) -> ir.Model:
    sizes = models.resolved
    model = build_step(
        models.target,
        models.drafter,
        dtype=sizes.dtype,
        cache_len=sizes.cache_len,
        block_size=sizes.block_size,
        draft_vocab=models.draft_vocab,
        plugins=sizes.plugins,
        kv_scales=models.kv_scales,
        ring_width=sizes.ring_width,
        gather_logits=sizes.gather_generation_logits,
        fp4=ARCHS[sizes.gpu_arch].has_fp4,
        weight_only=sizes.weight_only_precision,
    )
    _log(f"handing {len(list(model.graph))} nodes to {sizes.backend}")
    return model


def _check_weights(models: ResolvedModels, progress: Progress) -> list[dict[str, Any]]:
    """Check that every weight is finite.

    Returns the weight files of each model with their hashes.
    """
    sources = []
    for role, checkpoint in models.checkpoints.items():
        check_finite_with_progress(role, checkpoint, progress)
        paths = sorted({info.path for info in checkpoint.tensors.values()})
        entries = {path.name: file_entry(path) for path in paths}
        sources.append(
            {"model": role, "directory": str(checkpoint.directory), "files": entries}
        )
    return sources


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _exit_with_parent(directory: Path) -> None:
    """Delete the work folder of `directory` and stop as soon as the parent is gone.

    The parent keeps our stdin open as long as it lives.
    """

    def watch() -> None:
        # os.read, since a thread inside sys.stdin would block the interpreter's own exit.
        while os.read(0, 1):
            pass
        abandon(directory)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
