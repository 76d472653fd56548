"""DFlashArgmax: where the largest logit of each row stands."""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import Kernel
from trtllm_dflash.graph.ops.spec import OpSpec, Tensor


def _body(g: GraphBuilder, logits: ir.Value) -> tuple[ir.Value, ...]:
    return (g.ArgMax(g.cast(logits, ir.DataType.FLOAT), axis=-1, keepdims=0),)


ARGMAX = OpSpec(
    name="DFlashArgmax",
    meaning=(
        "Where the largest logit of each row stands; among equals the first. A row with a NaN may"
        " get any place. Each logit is read once, as the head writes it."
    ),
    inputs=(Tensor("logits", "T", "[N, Vd]", "of the drafted rows"),),
    outputs=(Tensor("places", "int64", "[N]", "0 … Vd-1"),),
    attributes=(),
    reference_body=_body,
    kernel=Kernel("argmax", "bfloat16"),
)
