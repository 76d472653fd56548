"""What a launch of each of our kernels takes of a multiprocessor: threads and shared memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trtllm_dflash.trt_plugins import attention_plans, params

ATTENTION = re.compile(r"dflash_attention_d(\d+)_r(\d+)(_fp8)?")
_EXPERTS = re.compile(r"dflash_moe_(?:gate_up|down)_t\d+(|_mxfp4|_nvfp4|_fp8)")
_WEIGHT_FORMATS = ("", "_mxfp4", "_nvfp4", "_fp8")
# Kernels without dynamic shared memory, by what their names begin with.
_THREADS = {
    "dflash_attention_merge": params.MERGE_THREADS,
    "dflash_accept_scan": params.SCAN_THREADS,
    "dflash_accept_choose": params.CHOOSE_THREADS,
    "dflash_accept_finish": params.FINISH_THREADS,
    "dflash_moe_route": params.ROUTE_THREADS,
    "dflash_moe_list": params.LIST_THREADS,
    "dflash_moe_sum": params.SUM_THREADS,
    "dflash_gated_delta_rule": params.DELTA_RULE_THREADS,
    "dflash_select_walk": params.WALK_THREADS,
    "dflash_argmax_scan": params.SCAN_THREADS,
    "dflash_argmax_choose": params.CHOOSE_THREADS,
    "dflash_lookup_choose": params.LOOKUP_THREADS,
    "dflash_adjust_count": params.COUNT_THREADS,
    "dflash_adjust_rows": params.ROW_THREADS,
    "dflash_adjust_few": params.FEW_THREADS,
}


@dataclass(frozen=True)
class LaunchSize:
    """Threads of a CTA, and its bytes of dynamic shared memory."""

    threads: int
    shared_bytes: int = 0


def launch_size(kernel: str) -> LaunchSize | None:
    """Return how a kernel is launched, with the largest sizes where they differ.

    None: it is not known here.
    """
    if found := ATTENTION.fullmatch(kernel):
        return LaunchSize(
            params.ATTENTION_THREADS, _attention_bytes(*map(int, found.groups()[:2]))
        )
    if found := _EXPERTS.fullmatch(kernel):
        sizes = {"tokens": 1, "hidden": 64, "inner_size": 64, "experts": 2, "top_k": 1}
        plan = params.moe_plan(**sizes, weight_format=_WEIGHT_FORMATS.index(found[1]))
        return LaunchSize(params.MOE_THREADS, plan.shared_bytes)
    if kernel.startswith("dflash_block_linear"):
        return LaunchSize(params.MOE_THREADS, params.LINEAR_SHARED_BYTES)
    if kernel == "dflash_gated_delta_rows":
        sizes = {"batch": 1, "rows": 16, "key_heads": 16, "value_heads": 64}
        delta = params.gated_delta_plan(**sizes, window_rows=18)
        return LaunchSize(params.DELTA_ROW_THREADS, delta.shared_bytes)
    if kernel in ("dflash_select_scan", "dflash_select_pairs"):
        sizes = {"batch": 1, "rows": 63, "vocab": 248320}
        select = params.select_plan(**sizes, top_k=params.MAX_CANDIDATES)
        return LaunchSize(params.SELECT_THREADS, select.shared_bytes)
    for prefix, threads in _THREADS.items():
        if kernel.startswith(prefix):
            return LaunchSize(threads)
    return None


def _attention_bytes(head_dim: int, rows: int) -> int:
    made = attention_plans.attention_plan(
        batch=1,
        rows=rows,
        q_heads=1,
        kv_heads=1,
        head_dim=head_dim,
        cache_len=64,
        window=0,
        processors=1,
        processor_shared_bytes=228 << 10,
    )
    assert made.tile.rows == rows
    return made.shared_bytes
