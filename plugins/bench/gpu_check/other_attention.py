"""Attention of other libraries, where they can be imported: FlashAttention 3 and 2, FlashInfer."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from plugins.bench.gpu_check.attention_work import CACHE_SCALES, FP8, Work, write_caches
from plugins.bench.gpu_check.torch_operators import Launch, Tensors

_FLASHINFER_WORKSPACE = 256 << 20
_FLASH_ATTENTION = {
    "FlashAttention 3": "flash_attn_interface",
    "FlashAttention 2": "flash_attn",
}


def other_ways(work: Work, device: str) -> Iterator[tuple[str, Launch]]:
    """Yield ways of other libraries; each returns [B, T, Hq, D] over the caches as they lie here.

    None of them computes sinks here, so that it then does less work.
    """
    for name, module in _FLASH_ATTENTION.items():
        if find_spec(module) is not None and not work.fp8:
            yield name, _flash_attention(work, module, device)
    if find_spec("flashinfer") is not None:
        yield "FlashInfer", _flashinfer(work, device)


def _window(work: Work) -> tuple[int, int]:
    """Return how many keys before and behind a row it sees, -1: all."""
    before = work.shape.window - 1 if work.shape.window else -1
    return before, 0 if work.causal else before


def _flash_attention(work: Work, module: str, device: str) -> Launch:
    """Return its function over caches, which also writes the step's keys and values."""
    past = [context - work.context_rows for context in work.contexts]
    lengths = torch.tensor(past, dtype=torch.int32, device=device)

    def way(t: Tensors) -> torch.Tensor:
        from importlib import import_module

        attend: Any = import_module(module).flash_attn_with_kvcache
        caches = (t[name].transpose(1, 2) for name in ("key_cache", "value_cache"))
        return attend(
            t["q"],
            *caches,
            k=t["k"],
            v=t["v"],
            cache_seqlens=lengths,
            softmax_scale=work.shape.scale,
            causal=work.causal,
            window_size=_window(work),
        )

    return way


def _flashinfer(work: Work, device: str) -> Launch:
    """Return its batched prefill over pages: a slot's whole cache is one page."""
    planned: list[Any] = []

    def plan() -> Any:
        import flashinfer

        workspace = torch.empty(_FLASHINFER_WORKSPACE, dtype=torch.uint8, device=device)
        made = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        count = len(work.contexts)
        index = torch.arange(count + 1, dtype=torch.int32, device=device)
        lengths = torch.tensor(work.contexts, dtype=torch.int32, device=device) + work.rows
        made.plan(
            index * work.rows,
            index,
            index[:count],
            lengths,
            work.shape.q_heads,
            work.shape.kv_heads,
            work.shape.head_dim,
            max(work.contexts) + work.rows,
            causal=work.causal,
            sm_scale=work.shape.scale,
            window_left=_window(work)[0],
            q_data_type=torch.bfloat16,
            kv_data_type=FP8 if work.fp8 else torch.bfloat16,
        )
        return made

    def way(t: Tensors) -> torch.Tensor:
        if not planned:
            planned.append(plan())
        write_caches(work, t)
        scales = dict(zip(("k_scale", "v_scale"), CACHE_SCALES, strict=True))
        out = planned[0].run(
            t["q"].flatten(0, 1),
            (t["key_cache"], t["value_cache"]),
            **(scales if work.fp8 else {}),
        )
        return out.unflatten(0, (len(work.contexts), work.rows))

    return way
