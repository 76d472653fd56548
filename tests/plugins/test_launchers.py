"""What the launchers refuse and what they say, in the emulated library and in the real one: a check
needs no GPU.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tests.fixtures.sampling import CHOICE_NAMES
from tests.plugins.launcher_calls import (
    BATCHED,
    CACHE,
    FUNCTIONS,
    MOE_CASES,
    C,
    Change,
    T,
    both,
    call_operation,
    moved,
    sets,
    space,
    without,
)
from tests.plugins.launcher_refusals import REFUSED_PRODUCTS
from tests.plugins.library import (
    INVALID_ARGUMENT,
    LAUNCH_FAILED,
    SHARED_BYTES,
    HostMemory,
    Library,
    LibraryError,
)

pytestmark = pytest.mark.slow


@pytest.fixture(params=["emulated", "real"])
def checked(request: pytest.FixtureRequest) -> Library:
    """Return a library whose checks are wanted.

    Its tensors are the host's: the real one must find faults before a launch.
    """
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    path: Path = request.getfixturevalue("real_path")
    return Library(path, HostMemory(), emulated=False)


OF_SLOTS = (*CHOICE_NAMES, "noise_key", "next_len")
REFUSED = [
    (
        "verify",
        sets("k", shape_0=3),
        r"k.shape\[0\] \(B\): got 3, expected 2 as in q.shape\[0\]",
    ),
    (
        "verify",
        sets("k", shape_1=7),
        r"k.shape\[1\] \(T\): got 7, expected 5 as in q.shape\[1\]",
    ),
    (
        "draft",
        sets("v", shape_1=7),
        r"v.shape\[1\] \(C\+T\): got 7, expected 8 as in k.shape\[1\]",
    ),
    (
        "draft",
        sets("positions", shape_1=5),
        r"positions.shape\[1\] \(C\+T\): got 5, expected 8 as in k.shape\[1\]",
    ),
    (
        "verify",
        sets("value_cache", shape_2=41),
        r"value_cache.shape\[2\] \(cache_len\): got 41, expected 520 as in key_",
    ),
    (
        "verify",
        sets("key_cache", shape_1=2),
        r"key_cache.shape\[1\] \(Hkv\): got 2, expected 3 as in k.shape\[2\]",
    ),
    (
        "verify",
        sets("sinks", shape_0=3),
        r"sinks.shape\[0\] \(Hq\): got 3, expected 6 as in q.shape\[2\]",
    ),
    (
        "verify",
        sets("out", shape_1=0),
        r"out.shape\[1\] \(T\): got 0, expected 5 as in q.shape\[1\]",
    ),
    ("verify", sets("q", shape_1=0), r"q.shape\[1\] \(T\): got 0, expected 1 to 2\^31 - 1"),
    (
        "verify",
        sets("q", shape_3=80),
        r"q.shape\[3\] \(head_dim\): got 80, expected 64 or 96 or 128 or 256",
    ),
    ("verify", sets("q", dtype=1), r"q: got float32, expected bfloat16"),
    ("verify", sets("positions", dtype=2), r"positions: got int32, expected int64"),
    (
        "verify",
        sets("positions", dtype=9),
        r"positions: got an unknown dtype, expected int64",
    ),
    ("verify", sets("v", ndim=3), r"v: got 3 dimensions, expected 4"),
    (
        "verify",
        sets("v", stride_2=128),
        r"v.stride\[2\]: got 128, expected 64 \(contiguous\)",
    ),
    (
        "verify",
        moved("k", 8),
        r"k: got an address 8 bytes behind a multiple of 16, expected a multiple",
    ),
    ("verify", without("q"), r"q: got null, expected a tensor"),
    ("verify", sets("out", data=None), r"out: got null, expected a tensor"),
    ("verify", without("options"), r"options: got null"),
    ("verify", sets("options", window=-1), r"window: got -1, expected 0 \(none\) or more"),
    ("draft", sets("options", causal=2), r"causal: got 2, expected 0 or 1"),
    ("draft", sets("options", ring=2), r"ring: got 2, expected 0 or 1"),
    (
        "verify",
        sets("options", ring=1),
        r"ring: got 1 and no window, expected one that the ring holds",
    ),
    (
        "verify",
        sets("options", ring=1, window=CACHE - T + 2),
        (
            r"key_cache.shape\[2\] \(cache_len\): got a ring of 520 rows, expected at least 521:"
            r" window - 1, and the 5"
        ),
    ),
    (
        "draft",
        sets("options", ring=1, window=CACHE - T - C + 2),
        (
            r"key_cache.shape\[2\] \(cache_len\): got a ring of 520 rows, expected at least 521:"
            r" window - 1, and the 8"
        ),
    ),
    ("verify", space(100), r"workspace: got 100 bytes, expected at least \d+"),
    ("verify", space(1 << 19, 4), r"workspace: expected a 16-byte aligned address"),
    (
        "verify",
        both(
            sets("q", shape_2=7),
            sets("out", shape_2=7),
            sets("sinks", shape_0=7),
        ),
        r"q.shape\[2\] \(Hq\): got 7, expected a multiple of Hkv, 3",
    ),
    (
        "verify",
        sets("options", key_scale=0.5),
        r"key_scale: got 0.5, expected 0: the caches are bfloat16",
    ),
    (
        "verify",
        sets("key_cache", dtype=4),
        r"value_cache: got bfloat16, expected float8_e4m3",
    ),
    ("draft", sets("key_cache", dtype=4), r"key_cache: got float8_e4m3, expected bfloat16"),
    (
        "verify",
        both(
            sets("key_cache", dtype=4),
            sets("value_cache", dtype=4),
            sets("options", key_scale=0.5),
        ),
        r"value_scale: got 0, expected a finite number above 0: the caches are float8_e4m3",
    ),
    (
        "draft",
        both(*(sets(name, shape_1=T) for name in ("k", "v", "positions"))),
        r"k.shape\[1\] \(C\+T\): got 5 rows, expected some of context before the 5 of the block",
    ),
    ("accept", sets("logits", dtype=0), r"logits: got bfloat16, expected float32"),
    (
        "accept",
        sets("new_ids", shape_1=5),
        r"new_ids.shape\[1\] \(R\): got 5, expected 4 as in logits.shape\[1\]",
    ),
    (
        "accept",
        sets("top_k", shape_0=3),
        r"top_k.shape\[0\] \(B\): got 3, expected 2 as in logits.shape\[0\]",
    ),
    ("accept", sets("bonus", shape_1=2), r"bonus.shape\[1\] \(1\): got 2, expected 1"),
    ("accept", sets("noise_key", shape_1=3), r"noise_key.shape\[1\] \(4\): got 3, expected 4"),
    ("accept", space(8), r"workspace: got 8 bytes, expected at least \d+"),
    (
        "delta",
        sets("conv_weight", shape_2=3),
        r"conv_weight.shape\[2\] \(Kc\): got 3, expected 4",
    ),
    (
        "delta",
        sets("state", shape_2=64),
        r"state.shape\[2\] \(head_dim\): got 64, expected 128",
    ),
    ("delta", sets("state", dtype=0), r"state: got bfloat16, expected float32"),
    ("delta", sets("state_len", dtype=3), r"state_len: got int64, expected int32"),
    (
        "delta",
        sets("gates", shape_2=6),
        r"gates.shape\[2\] \(2Hv\): got 6 columns, expected 4",
    ),
    (
        "delta",
        sets("window", shape_3=500),
        r"window.shape\[3\] \(C\+2Hv\): got 500 columns, expected 516",
    ),
    (
        "delta",
        sets("window", shape_2=2),
        r"window.shape\[2\] \(R\): got 2, expected at least 3",
    ),
    (
        "delta",
        sets("window", shape_2=161),
        r"window.shape\[2\] \(R\): got 161 rows, .* 49408 bytes of shared memory, .* most 49152",
    ),
    ("delta", sets("options", key_heads=3), r"key_heads: got 3, expected a divisor of Hv, 2"),
    (
        "delta",
        sets("options", key_heads=2),
        r"qkv.shape\[2\] \(C\): got 512 columns, expected 768",
    ),
    ("delta", without("options"), r"options: got null"),
    ("select", without("hidden"), r"hidden: got null"),
    ("select", sets("hidden", shape_2=23), r"anchor_row.shape\[1\] \(R\): got 24, .*23"),
    ("select", sets("predecessor", shape_0=39), r"predecessor.shape\[0\] \(V\): got 39, .*40"),
    ("select", sets("places", dtype=2), r"places: got int32, expected int64"),
    ("select", sets("options", top_k=0), r"top_k: got 0, expected 1 to 40"),
    ("select", sets("options", top_k=41), r"top_k: got 41, expected 1 to 40"),
    ("select", without("options"), r"options: got null"),
    ("select", space(100), r"workspace: got 100 bytes, expected at least \d+"),
    ("select", moved("logits", 4), r"logits: got an address 4 bytes behind a multiple of 16"),
    ("argmax", sets("logits", dtype=1), r"logits: got float32, expected bfloat16"),
    ("argmax", sets("places", shape_0=5), r"places.shape\[0\] \(N\): got 5, expected 6"),
    ("argmax", space(8), r"workspace: got 8 bytes, expected at least 72"),
    ("argmax", sets("top_k", shape_0=3), r"top_k.shape\[0\] \(B\): got 3, expected 2"),
    ("argmax", both(*(sets(name, shape_0=4) for name in OF_SLOTS)), r"N: got 6 rows, .* of 4"),
    ("argmax", sets("tokens", shape_0=39), r"tokens.shape\[0\] \(V\): got 39, expected 40"),
    ("lookup", sets("history", dtype=0), r"history: got bfloat16, expected float32"),
    ("lookup", sets("tally", shape_1=5), r"tally.shape\[1\] \(classes\): got 5, expected 6"),
    ("lookup", sets("history", shape_2=5), r"input_ids.shape\[1\] \(S\): got 5, expected less"),
    ("lookup", without("drafts"), r"drafts: got null, expected a tensor"),
    (
        "adjust",
        sets("token_mask", shape_2=3),
        r"token_mask.shape\[2\] \(M\): got 3, expected a",
    ),
    ("adjust", sets("bias_ids", dtype=3), r"bias_ids: got int64, expected int32"),
    ("adjust", space(8), r"workspace: got 8 bytes, expected at least \d+"),
    ("delta", space(100), r"workspace: got 100 bytes, expected at least \d+"),
    ("delta", moved("window", 4), r"window: got an address 4 bytes behind a multiple of 16"),
    *REFUSED_PRODUCTS,
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
    files = "library|moe|gated_delta|block_linear|select|argmax|lookup|adjust"
    words = rf"{FUNCTIONS[operation]}: {message}.* \[({files}).cpp:\d+\]$"
    with pytest.raises(LibraryError, match=words) as caught:
        call_operation(checked, operation, change)
    assert caught.value.status == INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("operation", "change"),
    [
        ("verify", both()),
        ("draft", both()),
        ("accept", both()),
        ("delta", both()),
        ("linear", both()),
        ("linear", without("bias")),
        ("select", both()),
        ("argmax", both()),
        ("argmax", without("tokens")),
        ("lookup", both()),
        ("adjust", both()),
        *((operation, both()) for operation in MOE_CASES),
        ("verify", without("sinks")),
        ("verify", sets("options", ring=1, window=CACHE - T + 1)),
        ("draft", sets("options", ring=1, window=CACHE - T - C + 1)),
        # a batch of one may have any stride between slots
        ("verify", both(*(sets(name, shape_0=1, stride_0=3) for name in BATCHED))),
    ],
)
def test_right_arguments_pass(emulated: Library, operation: str, change: Change) -> None:
    call_operation(emulated, operation, change)


def test_without_a_gpu_a_launch_is_an_error_with_cudas_words(real_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: launches work")
    library = Library(real_path, HostMemory(), emulated=False)
    for operation in FUNCTIONS:
        with pytest.raises(
            LibraryError, match=r"launch failed: dflash_.*: .*(CUDA|driver)"
        ) as caught:
            call_operation(library, operation, both())
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
    plan = emulated.attention_plan(1, 8, 32, 8, 128, 32768, 0, 132)
    assert plan.tile_rows * plan.row_tiles >= 8 * 32 // 8
    assert 1 < plan.split_limit <= 32768 // plan.tile_keys // 4
    assert plan.workspace_bytes == plan.split_limit * 8 * 32 * (128 + 2) * 4
    one = emulated.attention_plan(1, 8, 32, 8, 128, 32768, 0, 1)
    assert (one.split_limit, one.workspace_bytes) == (1, 0)
    assert emulated.attention_plan(1, 8, 32, 8, 128, 1, 0, 132).split_limit == 1  # one tile
    assert emulated.attention_plan(1, 8, 32, 8, 128, 32768, 128, 132).split_limit == 1
    assert emulated.processors() == (132, SHARED_BYTES)
    with pytest.raises(
        LibraryError, match=r"head_dim \(head_dim\): got 72, expected 64 or 96 or 128 or 256"
    ):
        emulated.attention_plan(1, 8, 32, 8, 72, 100, 0, 132)
    with pytest.raises(LibraryError, match="q_heads must be a multiple of kv_heads"):
        emulated.attention_plan(1, 8, 32, 6, 64, 100, 0, 132)
    with pytest.raises(LibraryError, match="at least 1"):
        emulated.accept_plan(0, 1, 1)
