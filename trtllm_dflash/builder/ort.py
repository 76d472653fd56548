"""The CPU engine: the step graph as `model.onnx`, its weights in `rank0.safetensors` beside it, for
ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtllm_dflash.builder.external_weights import move_weights, weights_of
from trtllm_dflash.builder.job import BuildResult
from trtllm_dflash.engine_dir.files import MODEL_FILE, WEIGHTS_FILE
from trtllm_dflash.errors import BuildError

if TYPE_CHECKING:
    from trtllm_dflash.builder.job import BuildJob


def build(make_model: Callable[[], ir.Model], job: BuildJob) -> BuildResult:
    """Write the engine into `job.directory` and check that ONNX Runtime takes it.

    Peak memory: the largest tensor (the weights that the check maps are the file's own pages).
    """
    model = make_model()
    weights = weights_of(model)
    total, done = sum(value.const_value.nbytes for value in weights if value.const_value), 0

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
    # Types, shapes and kernels are checked all the same; optimizing and packing would only cost
    # time and memory here.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        onnx.checker.check_model(path)
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (
        Exception
    ) as error:  # both libraries raise a dozen unrelated classes for a graph they do not take
        raise BuildError(
            f"{path.name} was written, but ONNX Runtime does not take it: {error}"
        ) from error
