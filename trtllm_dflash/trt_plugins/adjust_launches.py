"""The launches of DFlashAdjust."""

from __future__ import annotations

from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins import params
from trtllm_dflash.trt_plugins.call import Call, Dims, Fields

ADJUST_KERNELS = ["dflash_adjust_count", "dflash_adjust_rows", "dflash_adjust_few"]


def adjust_workspace(dims: Dims, _fields: Fields) -> int:
    """Return the bytes of a call's workspace.

    Raises:
        EngineError: for a step that is longer than its history.
    """
    width, length = dims["input_ids"][1], dims["history"][2]
    if width > length:
        raise EngineError(
            f"adjust writes a step's {width} tokens into a history of {length} rows: take narrower"
            " steps, or build for longer sequences"
        )
    batch, _, vocab = dims["logits"]
    return params.adjust_plan(batch=batch, vocab=vocab).workspace_bytes


def adjust_launches(call: Call) -> list[Launch]:
    """Return the launches of a call."""
    adjust_workspace(call.dims, call.attributes)
    batch, rows, vocab = call.dims["logits"]
    chunks = params.adjust_plan(batch=batch, vocab=vocab).chunks
    kernel_params = params.AdjustParams(
        **{name: at for name, at in call.addresses.items() if name != "history_out"},
        counts=call.workspace,
        rows=rows,
        width=call.dims["input_ids"][1],
        vocab=vocab,
        length=call.dims["history"][2],
        biases=call.dims["bias_ids"][1],
        words=call.dims["bad_words"][1],
        word_tokens=call.dims["bad_words"][2],
        mask_words=call.dims["token_mask"][2],
    )
    grids = (batch, 1, 1), (chunks, batch * rows, 1), (batch * rows, 1, 1)
    threads = params.COUNT_THREADS, params.ROW_THREADS, params.FEW_THREADS
    return [
        Launch(kernel, grid, count, 0, kernel_params)
        for kernel, grid, count in zip(ADJUST_KERNELS, grids, threads, strict=True)
    ]
