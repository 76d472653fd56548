"""Which kernels a plugin launches: shapes and addresses in, grids and parameters out. Nothing here
touches a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod

from trtllm_dflash.engine_dir.ring_cache import rows_needed
from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins import attention_plans, params
from trtllm_dflash.trt_plugins.adjust_launches import (
    ADJUST_KERNELS,
    adjust_launches,
    adjust_workspace,
)
from trtllm_dflash.trt_plugins.call import Call, Dims, Fields
from trtllm_dflash.trt_plugins.product_launches import (
    linear_kernels,
    linear_launches,
    linear_workspace,
    moe_kernels,
    moe_launches,
    moe_workspace,
)
from trtllm_dflash.trt_plugins.select_launches import (
    SELECT_KERNELS,
    select_launches,
    select_workspace,
)


@dataclass(frozen=True)
class Operation:
    """What the host knows of a kernel source: the kernels in it, a call's workspace in bytes, a
    call's launches.

    The workspace is for shapes and attributes; those that no call may have are an EngineError there
    already.
    """

    kernels: Callable[[KernelVariant], list[str]]
    workspace_bytes: Callable[[Dims, Fields], int]
    launches: Callable[[Call], list[Launch]]


def _attention_kernels(key: KernelVariant) -> list[str]:
    sizes = dict(key.sizes)
    head_dim = sizes["head_dim"]
    suffix = _suffix(sizes)
    tiles = [
        f"dflash_attention_d{head_dim}_r{tile.rows}{suffix}"
        for tile in attention_plans.attention_tiles(head_dim)
    ]
    return [*tiles, f"dflash_attention_merge_d{head_dim}{suffix}"]


def _suffix(fields: Fields) -> str:
    return "_fp8" if fields.get("fp8_cache") else ""


def _cache_scales(attributes: Fields) -> dict[str, float]:
    """Return the scales of FP8 caches; 1 for bfloat16 caches."""
    fp8 = bool(attributes.get("fp8_cache"))
    scales = {}
    for name in ("key_scale", "value_scale"):
        scale = float(attributes.get(name, 0))
        if fp8 and not 0 < scale < inf:
            raise EngineError(
                f"attention over FP8 caches needs their scales: {name} is {scale}"
            )
        if not fp8 and scale:
            raise EngineError(
                f"attention over bfloat16 caches has no scales of them: {name} is {scale}"
            )
        scales[name] = scale if fp8 else 1.0
    return scales


def _ring(dims: Dims, attributes: Fields) -> int:
    """Return 1 if the caches are rings, which must be large enough for the step."""
    ring = int(attributes.get("ring", 0))
    window = int(attributes["window_size"])
    rows = dims["key_cache"][2]
    written = dims["k"][1]
    if ring and (window < 1 or rows < rows_needed(window, written)):
        raise EngineError(
            f"attention over a ring cache of {rows} rows, with window_size {window} and {written}"
            f" rows in the step: it needs a window and {rows_needed(window, written)} rows. Build"
            " the engine for steps that wide, or take narrower ones"
        )
    return ring


def _attention_sizes(dims: Dims, attributes: Fields) -> dict[str, int]:
    batch, rows, q_heads, head_dim = dims["q"]
    _, kv_heads, cache_len, _ = dims["key_cache"]
    if q_heads % kv_heads:
        raise EngineError(
            f"attention needs query heads in groups: got {q_heads} of them for {kv_heads} key heads"
        )
    if batch > params.MAX_SLOTS:
        raise EngineError(
            f"attention takes at most {params.MAX_SLOTS} sequences at once: got {batch}"
        )
    sizes = {"batch": batch, "rows": rows, "q_heads": q_heads, "kv_heads": kv_heads}
    sizes |= {"head_dim": head_dim, "cache_len": cache_len}
    return sizes | {"window": int(attributes["window_size"])}


def _attention_workspace(dims: Dims, attributes: Fields) -> int:
    _ring(dims, attributes)
    return attention_plans.attention_workspace(**_attention_sizes(dims, attributes))


def _attention(call: Call) -> list[Launch]:
    """Plan attention's launches.

    The rows of k and v before the last `rows` are context rows: none in DFlashVerifyAttention.
    """
    sizes = _attention_sizes(call.dims, call.attributes)
    head_dim = sizes["head_dim"]
    head_rows = prod(call.dims["q"][:3])
    made = attention_plans.attention_plan(
        **sizes,
        processors=min(call.processors, params.MAX_PROCESSORS),
        processor_shared_bytes=call.processor_shared_bytes,
    )
    partial_out_bytes = 4 * made.split_limit * head_rows * head_dim
    kernel_params = params.AttentionParams(
        **{
            name: call.addresses[name]
            for name in ("q", "k", "v", "key_cache", "value_cache", "positions", "out")
        },
        sinks=call.addresses.get("sinks"),
        partial_out=call.workspace,
        partial_stats=call.workspace + partial_out_bytes,
        **{name: size for name, size in sizes.items() if name != "head_dim"},
        context_rows=call.dims["k"][1] - sizes["rows"],
        tile_rows=made.tile.rows,
        tile_keys=made.tile.keys,
        row_tiles=made.row_tiles,
        group=sizes["q_heads"] // sizes["kv_heads"],
        packed_rows=sizes["rows"] * sizes["q_heads"] // sizes["kv_heads"],
        even_splits=made.even_splits,
        split_limit=made.split_limit,
        causal=int(call.attributes.get("causal", 1)),
        ring=_ring(call.dims, call.attributes),
        scale=call.attributes["scale"],
        **_cache_scales(call.attributes),
    )
    grid = (made.ctas, 1, 1)
    suffix = _suffix(call.attributes)
    name = f"dflash_attention_d{head_dim}_r{made.tile.rows}{suffix}"
    launches = [Launch(name, grid, params.ATTENTION_THREADS, made.shared_bytes, kernel_params)]
    if made.split_limit > 1:
        merge = f"dflash_attention_merge_d{head_dim}{suffix}"
        blocks = params.merge_blocks(head_rows)
        launches.append(Launch(merge, (blocks, 1, 1), params.MERGE_THREADS, 0, kernel_params))
    return launches


_ACCEPT_KERNELS = ["dflash_accept_scan", "dflash_accept_choose", "dflash_accept_finish"]


def _accept_workspace(dims: Dims, _: Fields) -> int:
    batch, rows, vocab = dims["logits"]
    return params.accept_plan(batch=batch, rows=rows, vocab=vocab).workspace_bytes


def _accept(call: Call) -> list[Launch]:
    batch, rows, vocab = call.dims["logits"]
    made = params.accept_plan(batch=batch, rows=rows, vocab=vocab)
    chunk_bytes = 4 * batch * rows * made.chunks
    kernel_params = params.AcceptParams(
        **call.addresses,
        chunk_found=call.workspace,
        chunk_choice=call.workspace + 2 * chunk_bytes,
        choice=call.workspace + 3 * chunk_bytes,
        batch=batch,
        rows=rows,
        width=call.dims["input_ids"][1],
        vocab=vocab,
        chunks=made.chunks,
    )
    grids = (made.chunks, batch * rows, 1), (batch * rows, 1, 1), (batch, 1, 1)
    threads = params.SCAN_THREADS, params.CHOOSE_THREADS, params.FINISH_THREADS
    return [
        Launch(kernel, grid, count, 0, kernel_params)
        for kernel, grid, count in zip(_ACCEPT_KERNELS, grids, threads, strict=True)
    ]


_ARGMAX_KERNELS = ["dflash_argmax_scan", "dflash_argmax_choose"]


def _argmax_workspace(dims: Dims, _: Fields) -> int:
    rows, vocab = dims["logits"]
    return params.argmax_plan(rows=rows, vocab=vocab).workspace_bytes


def _argmax(call: Call) -> list[Launch]:
    rows, vocab = call.dims["logits"]
    made = params.argmax_plan(rows=rows, vocab=vocab)
    slots = call.dims["next_len"][0]
    if rows % slots:
        raise EngineError(f"an argmax of {slots} slots needs as many rows of each: got {rows}")
    kernel_params = params.ArgmaxParams(
        **call.addresses,
        chunk_found=call.workspace,
        chunk_choice=call.workspace + 8 * rows * made.chunks,
        slot_rows=rows // slots,
        vocab=vocab,
        chunks=made.chunks,
    )
    scan, choose = _ARGMAX_KERNELS
    return [
        Launch(scan, (made.chunks, rows, 1), params.SCAN_THREADS, 0, kernel_params),
        Launch(choose, (rows, 1, 1), params.CHOOSE_THREADS, 0, kernel_params),
    ]


_LOOKUP_KERNELS = ["dflash_lookup_choose"]


def _lookup_workspace(dims: Dims, _: Fields) -> int:
    width, rows = dims["input_ids"][1], dims["history"][2]
    if width >= rows:
        raise EngineError(
            f"lookup reads a step's {width} tokens, and one behind them, in a history of {rows}"
            " rows: take narrower steps, or build for longer sequences"
        )
    return 0


def _lookup(call: Call) -> list[Launch]:
    _lookup_workspace(call.dims, call.attributes)
    batch, width = call.dims["input_ids"]
    kernel_params = params.LookupParams(
        **call.addresses,
        batch=batch,
        width=width,
        num_drafts=call.dims["drafts"][1],
        rows=call.dims["history"][2],
    )
    (kernel,) = _LOOKUP_KERNELS
    return [Launch(kernel, (batch, 1, 1), params.LOOKUP_THREADS, 0, kernel_params)]


_DELTA_KERNELS = ["dflash_gated_delta_rows", "dflash_gated_delta_rule"]


def _delta_sizes(dims: Dims, fields: Fields) -> dict[str, int]:
    """Return the sizes of a plan, if the kernels can work on them and they hold together."""
    batch, rows = dims["qkv"][:2]
    value_heads = dims["a_log"][0]
    window_rows = dims["window"][2]
    key_heads = int(fields["num_key_heads"])
    key_dim, value_dim = int(fields["key_dim"]), int(fields["value_dim"])
    if key_heads < 1 or value_heads % key_heads:
        raise EngineError(
            f"gated delta needs value heads in groups: got {value_heads} of them for"
            f" {key_heads} key heads"
        )
    wanted = {
        "qkv": 2 * key_heads * key_dim + value_heads * value_dim,
        "gates": 2 * value_heads,
    }
    wanted["window"] = wanted["qkv"] + wanted["gates"]
    for name, columns in wanted.items():
        if dims[name][-1] != columns:
            raise EngineError(
                f"gated delta of {key_heads} key heads and {value_heads} value heads needs"
                f" {columns} columns in {name}: it is {list(dims[name])}"
            )
    sizes = {"batch": batch, "rows": rows, "window_rows": window_rows}
    sizes |= {"key_heads": key_heads, "value_heads": value_heads}
    if window_rows < params.DELTA_HISTORY:
        raise EngineError(
            f"gated delta needs a window of at least {params.DELTA_HISTORY} rows, those before a"
            f" row that its convolution sees: it has {window_rows}"
        )
    shared_bytes = params.gated_delta_plan(**sizes).shared_bytes
    if shared_bytes > params.DELTA_MAX_SHARED_BYTES:
        raise EngineError(
            f"gated delta with a window of {window_rows} rows and {value_heads} value heads needs"
            f" {shared_bytes} bytes of shared memory, and has {params.DELTA_MAX_SHARED_BYTES}:"
            " build with --no-plugins, or for smaller blocks"
        )
    return sizes


def _delta_workspace(dims: Dims, fields: Fields) -> int:
    return params.gated_delta_plan(**_delta_sizes(dims, fields)).workspace_bytes


def _delta(call: Call) -> list[Launch]:
    sizes = _delta_sizes(call.dims, call.attributes)
    made = params.gated_delta_plan(**sizes)
    kernel_params = params.GatedDeltaParams(
        **call.addresses,
        **{name: call.workspace + begin for name, begin in made.parts.items()},
        **sizes,
        row_limit=made.row_limit,
    )
    rows_kernel, rule_kernel = _DELTA_KERNELS
    rows_grid = (made.row_vectors, made.row_chunks, sizes["batch"])
    rule_grid = (made.rule_blocks, sizes["value_heads"], sizes["batch"])
    threads = params.DELTA_ROW_THREADS, params.DELTA_RULE_THREADS
    return [
        Launch(rows_kernel, rows_grid, threads[0], made.shared_bytes, kernel_params),
        Launch(rule_kernel, rule_grid, threads[1], 0, kernel_params),
    ]


OPERATIONS = {
    "attention": Operation(_attention_kernels, _attention_workspace, _attention),
    "accept": Operation(lambda _: _ACCEPT_KERNELS, _accept_workspace, _accept),
    "moe": Operation(moe_kernels, moe_workspace, moe_launches),
    "gated_delta": Operation(lambda _: _DELTA_KERNELS, _delta_workspace, _delta),
    "block_linear": Operation(linear_kernels, linear_workspace, linear_launches),
    "select": Operation(lambda _: SELECT_KERNELS, select_workspace, select_launches),
    "argmax": Operation(lambda _: _ARGMAX_KERNELS, _argmax_workspace, _argmax),
    "lookup": Operation(lambda _: _LOOKUP_KERNELS, _lookup_workspace, _lookup),
    "adjust": Operation(lambda _: ADJUST_KERNELS, adjust_workspace, adjust_launches),
}
"""By kernel source."""
