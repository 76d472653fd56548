"""DFlashVerifyAttention: the target's causal attention over its cache, the step's own keys and
values included.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import ATTENTION
from trtllm_dflash.graph.ops import attention
from trtllm_dflash.graph.ops.attention import (
    KEY_SCALE,
    VALUE_SCALE,
    attend,
    quantized,
    visible_rows,
    within_window,
    write,
)
from trtllm_dflash.graph.ops.spec import OpSpec, Tensor


def _body(
    g: GraphBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    key_cache: ir.Value,
    value_cache: ir.Value,
    positions: ir.Value,
    kv_positions: ir.Value,
    sinks: ir.Value | None,
) -> tuple[ir.Value, ...]:
    first = g.Slice(positions, [0], [1], [1])  # [B, 1]
    start = g.Squeeze(first, [1])
    keys = write(g, key_cache, quantized(g, k, key_cache, KEY_SCALE), start)
    values = write(g, value_cache, quantized(g, v, value_cache, VALUE_SCALE), start)
    count = g.size(positions, 1)
    rows, held = visible_rows(g, kv_positions, key_cache, first, count)
    distance = g.Sub(g.Unsqueeze(positions, [1, 2, 4]), held)  # [B, 1, 1, S, L]
    visible = g.And(g.GreaterOrEqual(distance, 0), within_window(g, distance))
    return attend(g, q, keys, values, visible, rows, count, sinks, key_cache), keys, values


VERIFY_ATTENTION = OpSpec(
    name="DFlashVerifyAttention",
    meaning=(
        "Write the step's keys and values at their positions, then causal attention of its S rows"
        " over the cache."
    ),
    inputs=(
        Tensor("q", "T", "[B, S, Hq, D]", "queries, rotated"),
        Tensor("k", "T", "[B, S, Hkv, D]", "keys of the S rows, rotated"),
        Tensor("v", "T", "[B, S, Hkv, D]", "values of the S rows"),
        *attention.caches("C"),
        Tensor("positions", "int64", "[B, S]", "of the rows; consecutive"),
        attention.kv_positions("every position of the step"),
        attention.SINKS,
    ),
    outputs=(
        Tensor("out", "T", "[B, S, Hq, D]", "attention output"),
        *attention.cache_outputs("C"),
    ),
    attributes=(attention.SCALE, attention.WINDOW, attention.RING, KEY_SCALE, VALUE_SCALE),
    reference_body=_body,
    kernel=replace(ATTENTION, types=(attention.FP8_CACHE,)),
)
