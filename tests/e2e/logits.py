"""The target's logits out of our step graph: the input of its accept operator, asked for as one
more output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.fixtures.sampling import new_slots, no_adjustments, sampling_arrays
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.engine_dir.io_tensors import KEY_WORDS
from trtllm_dflash.graph.kv_scales import read_kv_scales
from trtllm_dflash.graph.step import build_step


def session(model: ir.Model, *values: ir.Value) -> tuple[Any, list[str]]:
    """Return an ONNX Runtime session of a step with these further outputs, and all their names."""
    import onnxruntime

    for initializer in model.graph.initializers.values():
        initializer.const_value = ir.Tensor(
            np.ascontiguousarray(initializer.const_value.numpy())
        )
    for value in values:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
        model.graph.outputs.append(value)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # caches are copied here, which it would warn about
    made = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return made, [output.name for output in made.get_outputs()]


def target_logits(target: Path, ids: np.ndarray, drafter: Path | None = None) -> np.ndarray:
    """float32 [B, S, V] of tokens int64 [B, S], by the CPU graph of a checkpoint."""
    checkpoint = load_target(target)
    model = build_step(
        checkpoint,
        load_drafter(drafter) if drafter else None,
        dtype="float32",
        cache_len=64,
        block_size=4 if drafter else 1,
        kv_scales=read_kv_scales(checkpoint),
    )
    accept = next(node for node in model.graph if node.op_type == "DFlashAccept")
    logits = accept.inputs[0]
    assert logits is not None
    made, names = session(model, logits)
    return dict(zip(names, made.run(names, feeds(made, ids)), strict=True))[str(logits.name)]


def feeds(
    made: Any, ids: np.ndarray, num_known: int = 1, block: int = 0
) -> dict[str, np.ndarray]:
    """Inputs from empty caches; every token of `ids` behind the first `num_known` is a draft to
    verify. The drafter has `block` rows.
    """
    batch, width = ids.shape
    rows = width - num_known + 1
    wanted = {port.name: port for port in made.get_inputs()}
    small = {
        "input_ids": ids,
        "num_known": np.full(batch, num_known, np.int32),
        "past_len": np.zeros(batch, np.int32),
        "state_len": np.zeros(batch, np.int32),
        "kv_positions": np.arange(width + 4),
        **sampling_arrays(batch),
        **new_slots(batch),
        **no_adjustments(batch, rows, wanted["token_mask"].shape[2]),
        "noise_key": np.zeros((batch, KEY_WORDS), np.int64),
        "decided": np.arange(rows),
        "block_rows": np.arange(block),
    }
    caches = {
        name: np.zeros([batch, *port.shape[1:]], np.float32)
        for name, port in wanted.items()
        if name not in small
    }
    return {name: array for name, array in small.items() if name in wanted} | caches
