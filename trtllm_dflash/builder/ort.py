"""The CPU engine, for ONNX Runtime: the step graph, and its weights in a file beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtllm_dflash.builder.external_weights import move_weights, weights_of
from trtllm_dflash.builder.job import BuildResult
from trtllm_dflash.builder.runtime_fusion import fuse_for_runtime
from trtllm_dflash.engine_dir.files import MODEL_FILE, WEIGHTS_FILE
from trtllm_dflash.errors import BuildError
from trtllm_dflash.utf8_path import utf8_path

if TYPE_CHECKING:
    from trtllm_dflash.builder.job import BuildJob


def build(make_model: Callable[[], ir.Model], job: BuildJob) -> BuildResult:
    """Write the engine into `job.directory` and check that ONNX Runtime takes it.

    This takes the memory of the largest tensor: the check maps the weights from their file.
    """
    model = make_model()
    fuse_for_runtime(model)
    weights = weights_of(model)
    total = sum(value.const_value.nbytes for value in weights if value.const_value)
    done = 0

    def wrote(size: int) -> None:
        nonlocal done
        done += size
        job.progress("writing weights", done, total)

    move_weights(weights, job.directory / WEIGHTS_FILE, wrote=wrote)
    graph: bytes = ir.to_proto(model).SerializeToString()
    path = job.directory / MODEL_FILE
    path.write_bytes(graph)
    _check(path)
    return BuildResult(graph)


def _check(path: Path) -> None:
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    # Types, shapes and kernels are checked without them. They would only cost time and memory.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        with utf8_path(path) as name:
            onnx.checker.check_model(name)
            ort.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # both libraries raise many unrelated classes
        raise BuildError(
            f"{path.name} was written, but ONNX Runtime does not take it: {error}"
        ) from error
