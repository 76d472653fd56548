"""What the launchers refuse and what they say, in the emulated library and in the real one: a check
needs no GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.sampling import sampling_arrays
from tests.plugins.library import (
    BFLOAT16,
    INVALID_ARGUMENT,
    LAUNCH_FAILED,
    MOE_INPUTS,
    AttentionOptions,
    HostMemory,
    Library,
    LibraryError,
    Placed,
    Tensor,
    poisoned,
)
from tests.plugins.moe_reference import Case as MoeCase
from tests.plugins.moe_reference import inputs as moe_inputs

B, T, C, HQ, HKV, D, CACHE = (
    2,
    5,
    3,
    6,
    3,
    64,
    200,
)  # four tiles of keys: there are splits, and a workspace
R, S, U, V = 4, 5, 40, 1000
BATCHED = ("q", "k", "v", "key_cache", "value_cache", "positions", "out")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(params=["emulated", "real"])
def checked(request: pytest.FixtureRequest) -> Library:
    """Return a library whose checks are wanted.

    Its tensors are the host's: the real one must find faults before a launch.
    """
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    path: Path = request.getfixturevalue("real_path")
    return Library(path, HostMemory(), emulated=False)


def _attention_arrays(context_rows: int) -> dict[str, np.ndarray]:
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


def _accept_arrays() -> dict[str, np.ndarray]:
    ints = np.ones(B, np.int32)
    return {
        "logits": np.zeros((B, R, V), np.float32),
        "input_ids": np.zeros((B, S), np.int64),
        "num_known": ints,
        "past_len": ints,
        **sampling_arrays(B),
        "uniforms": np.zeros((B, U), np.float32),
        "new_ids": poisoned([B, R], np.int64),
        "num_new": poisoned([B], np.int32),
        "next_len": poisoned([B], np.int32),
        "bonus": poisoned([B, 1], np.int64),
    }


MOE_CASES = {"moe": 0, "moe_mxfp4": 1, "moe_nvfp4": 2}  # by operation: the weights' format
FUNCTIONS = {
    "verify": "dflash_verify_attention",
    "draft": "dflash_draft_attention",
    "accept": "dflash_accept",
}
FUNCTIONS |= dict.fromkeys(MOE_CASES, "dflash_moe")


def _moe_case(operation: str) -> MoeCase:
    return MoeCase(5, MOE_CASES[operation], 96, 64, experts=6, top_k=2)


def _arrays(operation: str) -> dict[str, np.ndarray | None]:
    """Return the tensors in the order of the function's arguments; None where one is not given."""
    if operation in MOE_CASES:
        made = moe_inputs(_moe_case(operation))
        return {
            **{name: made.get(name) for name in MOE_INPUTS},
            "out": poisoned(made["x"].shape, BFLOAT16),
        }
    if operation == "accept":
        return {**_accept_arrays()}
    return {**_attention_arrays(C if operation == "draft" else 0)}


def _call(library: Library, operation: str, change: Change) -> None:
    """Call an operation with arguments that are right but for what `change` does to them (by
    name).
    """
    memory = HostMemory()
    placed = {
        name: array if array is None else Placed(memory, array)
        for name, array in _arrays(operation).items()
    }
    space = Placed(memory, np.zeros(1 << 20, np.uint8).view(np.float32))
    given: dict[str, Any] = {name: array and array.tensor() for name, array in placed.items()}
    options = (
        _moe_case(operation).options
        if operation in MOE_CASES
        else AttentionOptions(0.1, causal=1, processors=8)
    )
    given["options"] = options
    given["workspace"], given["workspace_bytes"] = space.address, 1 << 20
    change(given)
    options, workspace, size = (
        given.pop(name) for name in ("options", "workspace", "workspace_bytes")
    )
    extra = [] if operation == "accept" else [options and ctypes.byref(options)]
    function = getattr(library.c, FUNCTIONS[operation])
    tensors = [tensor and ctypes.byref(tensor) for tensor in given.values()]
    status = function(
        *tensors, *extra, ctypes.c_void_p(workspace), ctypes.c_int64(size), ctypes.c_void_p(None)
    )
    if status:
        raise LibraryError(status, library.c.dflash_last_error().decode())


def _with(name: str, **fields: Any) -> Change:
    """Set fields of a tensor or of the options; `shape_1=7` sets one size and leaves the strides
    contiguous.
    """

    def change(given: dict[str, Any]) -> None:
        for field, value in fields.items():
            if field[-1].isdigit():
                array, _, index = field.rpartition("_")
                getattr(given[name], array)[int(index)] = value
                if array == "shape":
                    _make_contiguous(given[name])
            else:
                setattr(given[name], field, value)

    return change


def _make_contiguous(tensor: Tensor) -> None:
    stride = 1
    for i in reversed(range(tensor.ndim)):
        tensor.stride[i] = stride
        stride *= tensor.shape[i]


def _without(name: str) -> Change:
    return lambda given: given.__setitem__(name, None)


def _moved(name: str, by: int) -> Change:
    return lambda given: setattr(given[name], "data", given[name].data + by)


def _both(*changes: Change) -> Change:
    def change(given: dict[str, Any]) -> None:
        for one in changes:
            one(given)

    return change


def _space(workspace_bytes: int, offset: int = 0) -> Change:
    def change(given: dict[str, Any]) -> None:
        given["workspace_bytes"] = workspace_bytes
        given["workspace"] += offset

    return change


REFUSED = [
    ("verify", _with("k", shape_0=3), r"k.shape\[0\] \(B\): got 3, expected 2 as in q.shape\[0\]"),
    ("verify", _with("k", shape_1=7), r"k.shape\[1\] \(T\): got 7, expected 5 as in q.shape\[1\]"),
    (
        "draft",
        _with("v", shape_1=7),
        r"v.shape\[1\] \(C\+T\): got 7, expected 8 as in k.shape\[1\]",
    ),
    (
        "draft",
        _with("positions", shape_1=5),
        r"positions.shape\[1\] \(C\+T\): got 5, expected 8 as in k.shape\[1\]",
    ),
    (
        "verify",
        _with("value_cache", shape_2=41),
        r"value_cache.shape\[2\] \(cache_len\): got 41, expected 200 as in key_",
    ),
    (
        "verify",
        _with("key_cache", shape_1=2),
        r"key_cache.shape\[1\] \(Hkv\): got 2, expected 3 as in k.shape\[2\]",
    ),
    (
        "verify",
        _with("sinks", shape_0=3),
        r"sinks.shape\[0\] \(Hq\): got 3, expected 6 as in q.shape\[2\]",
    ),
    (
        "verify",
        _with("out", shape_1=0),
        r"out.shape\[1\] \(T\): got 0, expected 5 as in q.shape\[1\]",
    ),
    ("verify", _with("q", shape_1=0), r"q.shape\[1\] \(T\): got 0, expected 1 to 2\^31 - 1"),
    (
        "verify",
        _with("q", shape_3=80),
        r"q.shape\[3\] \(head_dim\): got 80, expected 64 or 96 or 128 or 256",
    ),
    ("verify", _with("q", dtype=1), r"q: got float32, expected bfloat16"),
    ("verify", _with("positions", dtype=2), r"positions: got int32, expected int64"),
    ("verify", _with("positions", dtype=9), r"positions: got an unknown dtype, expected int64"),
    ("verify", _with("v", ndim=3), r"v: got 3 dimensions, expected 4"),
    ("verify", _with("v", stride_2=128), r"v.stride\[2\]: got 128, expected 64 \(contiguous\)"),
    (
        "verify",
        _moved("k", 8),
        r"k: got an address 8 bytes behind a multiple of 16, expected a multiple",
    ),
    ("verify", _without("q"), r"q: got null, expected a tensor"),
    ("verify", _with("out", data=None), r"out: got null, expected a tensor"),
    ("verify", _without("options"), r"options: got null"),
    ("verify", _with("options", window=-1), r"window: got -1, expected 0 \(none\) or more"),
    ("draft", _with("options", causal=2), r"causal: got 2, expected 0 or 1"),
    ("draft", _with("options", ring=2), r"ring: got 2, expected 0 or 1"),
    (
        "verify",
        _with("options", ring=1),
        r"ring: got 1 and no window, expected one that the ring holds",
    ),
    (
        "verify",
        _with("options", ring=1, window=CACHE - T + 2),
        (
            r"key_cache.shape\[2\] \(cache_len\): got a ring of 200 rows, expected at least 201:"
            r" window - 1, and the 5"
        ),
    ),
    (
        "draft",
        _with("options", ring=1, window=CACHE - T - C + 2),
        (
            r"key_cache.shape\[2\] \(cache_len\): got a ring of 200 rows, expected at least 201:"
            r" window - 1, and the 8"
        ),
    ),
    ("verify", _space(100), r"workspace: got 100 bytes, expected at least \d+"),
    ("verify", _space(1 << 19, 4), r"workspace: expected a 16-byte aligned address"),
    (
        "verify",
        _both(_with("q", shape_2=7), _with("out", shape_2=7), _with("sinks", shape_0=7)),
        r"q.shape\[2\] \(Hq\): got 7, expected a multiple of Hkv, 3",
    ),
    (
        "verify",
        _with("options", key_scale=0.5),
        r"key_scale: got 0.5, expected 0: the caches are bfloat16",
    ),
    ("verify", _with("key_cache", dtype=4), r"value_cache: got bfloat16, expected float8_e4m3"),
    ("draft", _with("key_cache", dtype=4), r"key_cache: got float8_e4m3, expected bfloat16"),
    (
        "verify",
        _both(
            _with("key_cache", dtype=4),
            _with("value_cache", dtype=4),
            _with("options", key_scale=0.5),
        ),
        r"value_scale: got 0, expected a finite number above 0: the caches are float8_e4m3",
    ),
    (
        "draft",
        _both(*(_with(name, shape_1=T) for name in ("k", "v", "positions"))),
        r"k.shape\[1\] \(C\+T\): got 5 rows, expected some of context before the 5 of the block",
    ),
    ("accept", _with("logits", dtype=0), r"logits: got bfloat16, expected float32"),
    (
        "accept",
        _with("new_ids", shape_1=5),
        r"new_ids.shape\[1\] \(R\): got 5, expected 4 as in logits.shape\[1\]",
    ),
    (
        "accept",
        _with("top_k", shape_0=3),
        r"top_k.shape\[0\] \(B\): got 3, expected 2 as in logits.shape\[0\]",
    ),
    ("accept", _with("bonus", shape_1=2), r"bonus.shape\[1\] \(1\): got 2, expected 1"),
    ("accept", _with("uniforms", ndim=1), r"uniforms: got 1 dimensions, expected 2"),
    ("accept", _space(8), r"workspace: got 8 bytes, expected at least \d+"),
    ("moe", _with("x", dtype=1), r"x: got float32, expected bfloat16"),
    ("moe", _with("gate_up", dtype=2), r"gate_up: got int32, expected bfloat16"),
    ("moe_mxfp4", _with("down", dtype=0), r"down: got bfloat16, expected int32"),
    (
        "moe",
        _with("router_logits", shape_1=7),
        r"gate_up.shape\[0\] \(E\): got 6, expected 7 as in router_logits.shape\[1",
    ),
    (
        "moe",
        _with("gate_up", shape_2=95),
        r"gate_up.shape\[2\]: got 95 of 1 elements, expected H, 96",
    ),
    (
        "moe_nvfp4",
        _with("gate_up", shape_2=13),
        r"gate_up.shape\[2\]: got 13 of 8 elements, expected H, 96",
    ),
    ("moe", _with("down", shape_2=63), r"gate_up.shape\[1\] \(J\): got 128, expected 2I, 126"),
    (
        "moe_mxfp4",
        _both(
            _with("down", shape_2=7),
            _with("gate_up", shape_1=112),
            _with("gate_up_bias", shape_1=112),
        ),
        r"H and I: got 96 and 56, expected multiples of 32",
    ),
    (
        "moe",
        _with("down_bias", shape_0=5),
        r"down_bias.shape\[0\] \(E\): got 5, expected 6 as in router_logits.shape\[1\]",
    ),
    ("moe_mxfp4", _without("gate_up_scale"), r"gate_up_scale: got null, expected a tensor"),
    ("moe_nvfp4", _without("down_scale_2"), r"down_scale_2: got null, expected a tensor"),
    (
        "moe_mxfp4",
        _with("down_scale", shape_1=47),
        r"down_scale.shape\[1\]: got 47, expected 48, four block scales in each",
    ),
    ("moe_mxfp4", _with("options", weight_format=0), r"gate_up: got int32, expected bfloat16"),
    (
        "moe_nvfp4",
        _with("options", weight_format=1),
        r"gate_up_scale_2: got a tensor, expected null: weight_format is not 2",
    ),
    ("moe_nvfp4", _with("options", weight_format=3), r"weight_format: got 3, expected 0, 1 or 2"),
    ("moe", _with("options", top_k=7), r"top_k: got 7, expected 1 to 6"),
    ("moe", _with("options", top_k=0), r"top_k: got 0, expected 1 to 6"),
    ("moe", _without("options"), r"options: got null"),
    ("moe", _space(100), r"workspace: got 100 bytes, expected at least \d+"),
    (
        "moe",
        _moved("down", 8),
        r"down: got an address 8 bytes behind a multiple of 16, expected a multiple",
    ),
]


@pytest.mark.parametrize(
    ("operation", "change", "message"), REFUSED, ids=[message for *_, message in REFUSED]
)
def test_a_wrong_argument_is_refused_by_name(
    checked: Library, operation: str, change: Change, message: str
) -> None:
    """The message names function, tensor, dimension, what came, what was expected, and the
    specification's line.
    """
    words = rf"{FUNCTIONS[operation]}: {message}.* \[(library|moe).cpp:\d+\]$"
    with pytest.raises(LibraryError, match=words) as caught:
        _call(checked, operation, change)
    assert caught.value.status == INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("operation", "change"),
    [
        ("verify", _both()),
        ("draft", _both()),
        ("accept", _both()),
        *((operation, _both()) for operation in MOE_CASES),
        ("verify", _without("sinks")),
        ("verify", _with("options", ring=1, window=CACHE - T + 1)),
        ("draft", _with("options", ring=1, window=CACHE - T - C + 1)),
        # a batch of one may have any stride between slots
        ("verify", _both(*(_with(name, shape_0=1, stride_0=3) for name in BATCHED))),
    ],
)
def test_right_arguments_pass(emulated: Library, operation: str, change: Change) -> None:
    _call(emulated, operation, change)


def test_without_a_gpu_a_launch_is_an_error_with_cudas_words(real_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: launches work")
    library = Library(real_path, HostMemory(), emulated=False)
    for operation in FUNCTIONS:
        with pytest.raises(
            LibraryError, match=r"launch failed: dflash_.*: .*(CUDA|driver)"
        ) as caught:
            _call(library, operation, _both())
        assert caught.value.status == LAUNCH_FAILED
    with pytest.raises(LibraryError, match="asking for the current device"):
        library.processors()


def test_the_order_of_a_gpu_is_its_own(real_path: Path) -> None:
    library = Library(real_path, HostMemory(), emulated=False)
    assert library.c.dflash_emulator_order(1, ctypes.c_int64(0)) == INVALID_ARGUMENT


def test_plans(emulated: Library) -> None:
    """What a plan says of one launch: the workspace follows the splits, and refused sizes are an
    error.
    """
    plan = emulated.attention_plan(1, 8, 32, 8, 128, 32768, 132)
    assert plan.tile_rows * plan.row_tiles >= 8 * 32 // 8
    assert 1 < plan.splits <= -(-32768 // plan.tile_keys)
    assert plan.workspace_bytes == plan.splits * 8 * 32 * (128 + 2) * 4
    one = emulated.attention_plan(1, 8, 32, 8, 128, 32768, 1)
    assert (one.splits, one.workspace_bytes) == (1, 0)
    assert emulated.attention_plan(1, 8, 32, 8, 128, 1, 132).splits == 1  # one tile of keys
    assert emulated.processors() == 132
    with pytest.raises(
        LibraryError, match=r"head_dim \(head_dim\): got 72, expected 64 or 96 or 128 or 256"
    ):
        emulated.attention_plan(1, 8, 32, 8, 72, 100, 132)
    with pytest.raises(LibraryError, match="q_heads must be a multiple of kv_heads"):
        emulated.attention_plan(1, 8, 32, 6, 64, 100, 132)
    with pytest.raises(LibraryError, match="at least 1"):
        emulated.accept_plan(0, 1, 1)
