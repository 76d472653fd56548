"""The launches of DFlashSelect."""

from __future__ import annotations

from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins import params
from trtllm_dflash.trt_plugins.call import Call, Dims, Fields

SELECT_KERNELS = ["dflash_select_scan", "dflash_select_pairs", "dflash_select_walk"]
_VECTORS = ("logits", "hidden", "anchor_row", "predecessor", "successor")


def _sizes(dims: Dims, fields: Fields) -> dict[str, int]:
    """Return the sizes of a plan, if there are as many candidates."""
    batch, rows, vocab = dims["logits"]
    top_k = int(fields["top_k"])
    limit = min(vocab, params.MAX_CANDIDATES)
    if not 1 <= top_k <= limit:
        raise EngineError(
            f"a row of {vocab} places may have 1 to {limit} candidates: top_k is {top_k}"
        )
    return {"batch": batch, "rows": rows, "vocab": vocab, "top_k": top_k}


def select_workspace(dims: Dims, fields: Fields) -> int:
    """Return the bytes of a call's workspace."""
    return params.select_plan(**_sizes(dims, fields)).workspace_bytes


def select_launches(call: Call) -> list[Launch]:
    """Return a call's launches."""
    sizes = _sizes(call.dims, call.attributes)
    made = params.select_plan(**sizes)
    misplaced = [name for name in _VECTORS if call.addresses[name] % 16]
    if misplaced:
        raise EngineError(
            f"a selector reads 16 bytes at a time: {', '.join(misplaced)} must begin at a multiple"
            " of 16"
        )
    kernel_params = params.SelectParams(
        **call.addresses,
        **{name: call.workspace + begin for name, begin in made.parts.items()},
        **sizes,
        rank=call.dims["hidden"][2],
        chunks=made.chunks,
        chunk_elements=made.chunk_elements,
    )
    batch, rows = sizes["batch"], sizes["rows"]
    scan, pairs, walk = SELECT_KERNELS
    threads, shared = params.SELECT_THREADS, made.shared_bytes
    return [
        Launch(scan, (made.chunks, batch * rows, 1), threads, shared, kernel_params),
        Launch(pairs, (rows, batch, 1), threads, shared, kernel_params),
        Launch(walk, (batch, 1, 1), params.WALK_THREADS, 0, kernel_params),
    ]
