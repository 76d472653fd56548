"""The plugin of DFlashGatedDelta launches what its C library does, and refuses what does not hold
together.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
from tests.plugins.emulated_plugin import KERNELS, EmulatedModule, enqueue
from tests.plugins.gated_delta_reference import (
    HEAD_DIM,
    Arrays,
    Case,
    Slot,
    inputs,
    run,
)
from tests.plugins.library import Library
from tests.plugins.plugin_graphs import op_model
from trtllm_dflash.errors import EngineError, GraphError
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.trt_plugins import params, plugin

pytestmark = pytest.mark.slow

DELTA = "DFlashGatedDelta"
CASES = [
    Case((Slot(20, 15, 1),), 16),
    Case((Slot(5, 0, 1), Slot(0, 0, 7), Slot(100, 3, 2)), 7, key_heads=2, group=2),
    Case((Slot(0, 0, 70),), 70, group=1, most_open=0),
    Case((Slot(3, 15, 9),), 16, group=1, kind="repeated"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plugin_launches_what_the_library_does(
    case: Case, module: EmulatedModule, emulated: Library
) -> None:
    given = inputs(case)
    got, want = enqueue(DELTA, given, case.fields), run(emulated, case, given)
    for name, ours in {"out": "out", "window": "window_out", "state": "state_out"}.items():
        np.testing.assert_array_equal(got[ours].view(np.uint8), want[name].view(np.uint8))
    parts = ("rows", "rule")
    assert module.launched == [(f"dflash_gated_delta_{part}", 77) for part in parts]


@pytest.mark.parametrize(
    ("shapes", "fields", "words"),
    [
        ({}, {"num_key_heads": 2}, "value heads in groups: got 3 of them for 2 key heads"),
        ({}, {"num_key_heads": 0}, "value heads in groups: got 3 of them for 0 key heads"),
        (
            {},
            {"num_key_heads": 3},
            r"3 key heads and 3 value heads needs 1152 columns in qkv: it is \[1, 16, 640\]",
        ),
        (
            {"gates": (1, 16, 8), "window": (1, 1, 18, 648)},
            {},
            r"1 key heads and 3 value heads needs 6 columns in gates: it is \[1, 16, 8\]",
        ),
        (
            {"window": (1, 1, 18, 650)},
            {},
            r"window is \[1, 1, 18, 650\], expected .*: C\+2Hv is 650, and C is 640 in qkv",
        ),
        ({"window": (1, 1, 2, 646)}, {}, "a window of at least 3 rows, .*: it has 2"),
        (
            {"window": (1, 1, 161, 646)},
            {},
            "a window of 161 rows and 3 value heads needs 49408 bytes of shared memory, and has",
        ),
        (
            {"state": (1, 3, 128, 64)},
            {},
            r"state is \[1, 3, 128, 64\], .*: Dv is 64, and Dv is 128 in the kernel's value_dim",
        ),
    ],
)
def test_shapes_that_do_not_hold_together_are_refused(
    shapes: dict[str, tuple[int, ...]],
    fields: dict[str, int],
    words: str,
    module: EmulatedModule,
) -> None:
    case = CASES[0]
    given = inputs(case)
    for name, shape in shapes.items():
        given[name] = np.zeros(shape, given[name].dtype)
    with pytest.raises(EngineError, match=words):
        enqueue(DELTA, given, case.fields | fields)
    assert module.launched == []


@pytest.mark.parametrize("name", ["window", "state"])
def test_a_state_that_is_not_written_in_place_is_refused(
    name: str, module: EmulatedModule
) -> None:
    case, spec = CASES[0], OPS[DELTA]
    given = inputs(case)
    made = plugin.StepPlugin(spec, case.fields, b"digest", KERNELS).attach_to_context(None)
    inside = [SimpleNamespace(dims=array.shape) for array in given.values()]
    out = SimpleNamespace(dims=(1, case.rows, case.value_heads, HEAD_DIM))
    addresses = dict(zip(given, range(16, 16 * len(given) + 1, 16), strict=True))
    written = {"out": 4096, **{key: addresses[key] for key in ("window", "state")}, name: 8192}
    with pytest.raises(EngineError, match=f"{name}_out is not at the address of {name}, which"):
        made.enqueue(
            inside,
            [out, inside[5], inside[6]],
            [*addresses.values()],
            [*written.values()],
            0,
            0,
        )
    assert module.launched == []


def test_the_workspace_asked_for_is_that_of_the_largest_shapes(module: EmulatedModule) -> None:
    case = replace(CASES[0], rows=40)
    given = inputs(case)
    made = plugin.StepPlugin(OPS[DELTA], case.fields, b"digest", KERNELS)

    def described(arrays: Arrays) -> list[Any]:
        return [SimpleNamespace(max=array.shape) for array in arrays.values()]

    outs = [(1, 40, 3, HEAD_DIM), given["window"].shape, given["state"].shape]
    asked = made.get_workspace_size(described(given), [SimpleNamespace(max=o) for o in outs])
    sizes = {"batch": 1, "rows": 40, "window_rows": 18, "key_heads": 1, "value_heads": 3}
    assert asked == params.gated_delta_plan(**sizes).workspace_bytes
    assert asked == 4 * 56 * (2 * 1 * 128 + 3 * 128 + 2 * 3)  # 55 rows, 56 with eight a stage


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"state": (2, 4, 64, 128)}, "no kernel for key_dim 64, only for 128; .*--no-plugins"),
        (
            {"state": (2, 4, 128, 96)},
            "no kernel for value_dim 96, only for 128; .*--no-plugins",
        ),
        ({"conv_weight": (1024, 1, 2)}, "no kernel for conv_kernel 2, only for 4; .*"),
    ],
)
def test_sizes_without_a_kernel_are_refused_before_tensorrt(
    shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(GraphError, match=words):
        op_model(DELTA, shapes=shapes, num_key_heads=2)
