"""Calls of the launchers with arguments that a test changes first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fixtures.noise import noise_keys
from tests.fixtures.sampling import choice_arrays, unadjusted
from tests.plugins import adjust_reference as adjuster
from tests.plugins import gated_delta_reference as gated_delta
from tests.plugins import select_reference as selector
from tests.plugins.block_linear_reference import Case as LinearCase
from tests.plugins.block_linear_reference import inputs as linear_inputs
from tests.plugins.library import (
    BFLOAT16,
    MOE_INPUTS,
    SHARED_BYTES,
    AttentionOptions,
    HostMemory,
    Library,
    LibraryError,
    Placed,
    Tensor,
    poisoned,
)
from tests.plugins.lookup_reference import Case as LookupCase
from tests.plugins.lookup_reference import inputs as lookup_inputs
from tests.plugins.moe_reference import Case as MoeCase
from tests.plugins.moe_reference import fitting
from tests.plugins.moe_reference import inputs as moe_inputs
from trtllm_dflash.engine_dir.io_tensors import KEY_WORDS

# Nine tiles of keys: there are splits, and a workspace.
B, T, C, HQ, HKV, D, CACHE = 2, 5, 3, 6, 3, 64, 520
R, S, V = 4, 5, 1000
BATCHED = ("q", "k", "v", "key_cache", "value_cache", "positions", "out")
Change = Callable[[dict[str, Any]], None]


def attention_arrays(context_rows: int) -> dict[str, np.ndarray]:
    rows, q, cache = context_rows + T, (B, T, HQ, D), (B, HKV, CACHE, D)
    shapes = {
        "q": q,
        "k": (B, rows, HKV, D),
        "v": (B, rows, HKV, D),
        "key_cache": cache,
        "value_cache": cache,
    }
    made = {name: np.zeros(shape, BFLOAT16) for name, shape in shapes.items()}
    made["positions"] = np.tile(np.arange(rows), (B, 1))
    return {**made, "sinks": np.zeros(HQ, BFLOAT16), "out": poisoned(q, BFLOAT16)}


def accept_arrays() -> dict[str, np.ndarray]:
    ints = np.ones(B, np.int32)
    return {
        "logits": np.zeros((B, R, V), np.float32),
        "input_ids": np.zeros((B, S), np.int64),
        "num_known": ints,
        "past_len": ints,
        **choice_arrays(B),
        "noise_key": np.zeros((B, KEY_WORDS), np.int64),
        **unadjusted(np.zeros((B, R, V))),
        "new_ids": poisoned([B, R], np.int64),
        "num_new": poisoned([B], np.int32),
        "next_len": poisoned([B], np.int32),
        "bonus": poisoned([B, 1], np.int64),
    }


def argmax_arrays(
    logits: dict[str, np.ndarray], slots: int = 2, **given: Any
) -> dict[str, np.ndarray]:
    """Return DFlashArgmax's inputs, greedy if not told otherwise."""
    tokens = {name: given.pop(name) for name in ("tokens",) if name in given}
    return {
        **logits,
        **choice_arrays(slots, **given),
        "noise_key": noise_keys(slots),
        "next_len": np.arange(slots, dtype=np.int32) * 7,
        **tokens,
    }


DELTA = gated_delta.Case((gated_delta.Slot(5, 2, 1), gated_delta.Slot(0, 0, 3)), 4, group=2)
LINEAR = LinearCase(5, 130, 272, bias=True)
SELECT = selector.Case(2, 5, 40, 24, 7)
LOOKUP = LookupCase(2, 70, 5, 4, 2)
ADJUST = adjuster.Case(3, 5, 97, 90, 5)
MOE_CASES = {
    "moe": 0,
    "moe_mxfp4": 1,
    "moe_nvfp4": 2,
    "moe_fp8": 3,
}  # by operation: the weights' format
FUNCTIONS = {
    "verify": "dflash_verify_attention",
    "draft": "dflash_draft_attention",
    "accept": "dflash_accept",
    "delta": "dflash_gated_delta",
    "linear": "dflash_block_linear",
    "select": "dflash_select",
    "argmax": "dflash_argmax",
    "lookup": "dflash_lookup",
    "adjust": "dflash_adjust",
}
FUNCTIONS |= dict.fromkeys(MOE_CASES, "dflash_moe")


def moe_case(operation: str) -> MoeCase:
    return fitting(MoeCase(5, MOE_CASES[operation], 96, 64, experts=6, top_k=2))


def operation_arrays(operation: str) -> dict[str, np.ndarray | None]:
    """Return the tensors in the order of the function's arguments; None where one is not given."""
    if operation in MOE_CASES:
        made = moe_inputs(moe_case(operation))
        return {
            **{name: made.get(name) for name in MOE_INPUTS},
            "out": poisoned(made["x"].shape, BFLOAT16),
        }
    if operation == "accept":
        return {**accept_arrays()}
    if operation == "linear":
        made = linear_inputs(LINEAR)
        return {**made, "out": poisoned((LINEAR.tokens, LINEAR.out_size), BFLOAT16)}
    if operation == "delta":
        shape = (len(DELTA.slots), DELTA.rows, DELTA.value_heads, gated_delta.HEAD_DIM)
        return {**gated_delta.inputs(DELTA), "out": poisoned(shape, BFLOAT16)}
    if operation == "select":
        places = poisoned([SELECT.batch, SELECT.rows], np.int64)
        return {**selector.inputs(SELECT), "places": places}
    if operation == "argmax":
        logits = {"logits": np.ones((6, 40), BFLOAT16)}
        return argmax_arrays(logits, tokens=np.arange(40)) | {"places": poisoned([6], np.int64)}
    if operation == "lookup":
        made = lookup_inputs(LOOKUP)
        next_ones = {f"next_{name}": made[name] for name in ("drafts", "tally")}
        return made | {name: poisoned(x.shape, x.dtype) for name, x in next_ones.items()}
    if operation == "adjust":
        made = adjuster.inputs(ADJUST)
        return made | {"adjusted": poisoned(made["logits"].shape, np.float32)}
    return {**attention_arrays(C if operation == "draft" else 0)}


def operation_options(operation: str) -> ctypes.Structure:
    """Return the options of an operation; acceptance and linears have none, and take no notice."""
    if operation in MOE_CASES:
        return moe_case(operation).options
    if operation == "delta":
        return gated_delta.GatedDeltaOptions(DELTA.key_heads)
    if operation == "select":
        return selector.SelectOptions(SELECT.top_k)
    return AttentionOptions(0.1, causal=1, processors=8, processor_shared_bytes=SHARED_BYTES)


def call_operation(library: Library, operation: str, change: Change) -> None:
    """Call an operation with arguments that are right but for what `change` does to them (by
    name).
    """
    memory = HostMemory()
    placed = {
        name: array if array is None else Placed(memory, array)
        for name, array in operation_arrays(operation).items()
    }
    space = Placed(memory, np.zeros(1 << 20, np.uint8).view(np.float32))
    given: dict[str, Any] = {name: array and array.tensor() for name, array in placed.items()}
    given["options"] = operation_options(operation)
    given["workspace"], given["workspace_bytes"] = space.address, 1 << 20
    change(given)
    options, workspace, size = (
        given.pop(name) for name in ("options", "workspace", "workspace_bytes")
    )
    extra = (
        []
        if operation in ("accept", "linear", "argmax", "lookup", "adjust")
        else [options and ctypes.byref(options)]
    )
    function = getattr(library.c, FUNCTIONS[operation])
    tensors = [tensor and ctypes.byref(tensor) for tensor in given.values()]
    status = function(
        *tensors,
        *extra,
        ctypes.c_void_p(workspace),
        ctypes.c_int64(size),
        ctypes.c_void_p(None),
    )
    if status:
        raise LibraryError(status, library.c.dflash_last_error().decode())


def sets(name: str, **fields: Any) -> Change:
    """Set fields of a tensor or of the options; `shape_1=7` sets one size and leaves the strides
    contiguous.
    """

    def change(given: dict[str, Any]) -> None:
        for field, value in fields.items():
            if field[-1].isdigit():
                array, _, index = field.rpartition("_")
                getattr(given[name], array)[int(index)] = value
                if array == "shape":
                    make_contiguous(given[name])
            else:
                setattr(given[name], field, value)

    return change


def make_contiguous(tensor: Tensor) -> None:
    stride = 1
    for i in reversed(range(tensor.ndim)):
        tensor.stride[i] = stride
        stride *= tensor.shape[i]


def without(name: str) -> Change:
    return lambda given: given.__setitem__(name, None)


def moved(name: str, by: int) -> Change:
    return lambda given: setattr(given[name], "data", given[name].data + by)


def both(*changes: Change) -> Change:
    def change(given: dict[str, Any]) -> None:
        for one in changes:
            one(given)

    return change


def space(workspace_bytes: int, offset: int = 0) -> Change:
    def change(given: dict[str, Any]) -> None:
        given["workspace_bytes"] = workspace_bytes
        given["workspace"] += offset

    return change
