"""DFlashArgmax: drafts, each where the largest logit of its row stands, or as its slot samples."""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import Kernel
from trtllm_dflash.graph.ops.sampling import choose_tokens
from trtllm_dflash.graph.ops.spec import OpSpec, Tensor
from trtllm_dflash.options.row_sampling import CHOICE_INPUTS


def _body(
    g: GraphBuilder, logits: ir.Value, *settings_and_rest: ir.Value
) -> tuple[ir.Value, ...]:
    *sampling, noise_key, next_len, tokens = settings_and_rest
    settings = {row.name: value for row, value in zip(CHOICE_INPUTS, sampling, strict=True)}
    sizes = g.Concat(g.size(next_len, 0), [-1], g.size(logits, 1), axis=0)
    rows = g.Reshape(g.cast(logits, ir.DataType.FLOAT), sizes)  # [B, N/B, Vd]
    first = g.Add(g.Unsqueeze(g.cast(next_len, ir.DataType.INT64), [1]), 1)
    position = g.Add(first, g.arange(g.size(rows, 1)))
    return (g.Reshape(choose_tokens(g, rows, settings, noise_key, position, tokens), [-1]),)


ARGMAX = OpSpec(
    name="DFlashArgmax",
    meaning=(
        "Where the largest logit of each row stands; among equals the first. In a slot that samples"
        " it is the largest of logit / temperature + noise, as in DFlashAccept. Noise is the"
        " target's, so that drafts agree with its choice. A row with a NaN may get any place. Each"
        " logit is read once where no filter is on."
    ),
    inputs=(
        Tensor("logits", "T", "[N, Vd]", "of the drafted rows, N/B of each slot"),
        *(Tensor(row.name, row.dtype, "[B]", row.help) for row in CHOICE_INPUTS),
        Tensor("noise_key", "int64", "[B, 4]", "that of DFlashAccept"),
        Tensor(
            "next_len", "int32", "[B]", "where the anchor stands; row r of a slot is r+1 behind"
        ),
        Tensor(
            "tokens",
            "int64",
            "[Vd]",
            "those that the places are of; none: 0 … Vd-1",
            optional=True,
        ),
    ),
    outputs=(Tensor("places", "int64", "[N]", "0 … Vd-1"),),
    attributes=(),
    reference_body=_body,
    kernel=Kernel("argmax", "bfloat16"),
)
