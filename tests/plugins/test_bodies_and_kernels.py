"""Bodies and kernels mean the same: the float64 reference that the kernels are held to is also the
bodies'.

(`DFlashAccept`'s kernels are compared with its body directly, in test_accept_kernels.py.)
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.run_op import run_op
from tests.plugins import gated_delta_reference as delta
from tests.plugins.attention_reference import Case, attend, exactly, inputs, written_caches
from tests.plugins.library import Library
from tests.plugins.moe_reference import Case as MoeCase
from tests.plugins.moe_reference import assert_close, gpt_oss
from tests.plugins.moe_reference import inputs as moe_inputs

pytestmark = pytest.mark.slow

CASES = [
    Case((0, 17), 5, kv_heads=2, group=3),
    Case((40, 3, 9), 1, head_dim=96, kv_heads=1, group=2, sinks=True),
    Case((30, 2), 6, window=4, sinks=True),
    Case((0, 17), 5, kv_heads=2, group=3, cache_scales=(0.011, 0.007)),
    Case(
        (40, 3, 9), 1, head_dim=96, kv_heads=1, group=2, sinks=True, cache_scales=(0.004, 0.5)
    ),
    Case((30, 2), 6, window=4, cache_scales=(1.0, 1.0)),
    Case((12, 33), 4, context_rows=3, committed=(1, 3), causal=False, spare=9),
    Case((5, 60), 4, context_rows=6, committed=(6, 1), causal=True, sinks=True, spare=12),
    Case((50, 7), 5, context_rows=2, committed=(2, 1), causal=False, window=8, spare=9),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_body_is_the_reference(case: Case) -> None:
    given = {  # a body multiplies what it does not see by 0, so garbage must be finite
        name: array
        if array.dtype == np.int64
        else np.nan_to_num(array.astype(np.float32), nan=7.0)
        for name, array in inputs(case).items()
    }
    scale = case.head_dim**-0.5
    arrays = {
        name: given[name] for name in ("q", "k", "v", "key_cache", "value_cache", "positions")
    }
    arrays["kv_positions"] = np.arange(int(case.starts.max()) + case.rows)
    if case.draft:
        arrays["block_rows"] = np.arange(case.rows)
    if case.sinks:
        arrays["sinks"] = given["sinks"]
    attributes: dict[str, float] = {"scale": scale, "window_size": case.window}
    attributes |= dict(zip(("key_scale", "value_scale"), case.cache_scales or (), strict=False))
    if case.draft:
        attributes["causal"] = int(case.causal)
    got = run_op(
        "DFlashDraftAttention" if case.draft else "DFlashVerifyAttention", arrays, **attributes
    )

    exact = attend(case, given, scale, exactly)
    # Sums of at most a hundred products of numbers around 1, in float32: 100 · 2^-24 of their size,
    # and room for exp. FP8 caches' codes are not around 1, but their scales bring them back there.
    np.testing.assert_allclose(got["out"], exact, rtol=0, atol=2e-5)
    for cache, expected in written_caches(case, given).items():
        for slot, end in enumerate(case.starts + case.rows):
            np.testing.assert_array_equal(
                got[f"{cache}_out"][slot, :, :end], expected[slot, :, :end]
            )


@pytest.mark.parametrize(
    "case",
    [
        gpt_oss(MoeCase(7, 0, 24, 40, experts=5, top_k=3)),
        MoeCase(4, 0, 40, 24, experts=6, top_k=2, normalize=False, limit=0.75, shift=0.5),
        MoeCase(9, 0, 16, 32, experts=4, top_k=4, logits="ties"),
    ],
    ids=str,
)
def test_body_of_experts_is_the_reference(case: MoeCase) -> None:
    """Within what the kernels' roundings allow, of which a body in float32 makes few."""
    given = {name: array.astype(np.float32) for name, array in moe_inputs(case).items()}
    got = run_op(
        "DFlashMoE", given, **{name: float(number) for name, number in case.fields.items()}
    )
    assert_close(case, moe_inputs(case), got["out"])


DELTA_CASES = [
    delta.Case((delta.Slot(20, 15, 1),), 16),
    delta.Case(
        (delta.Slot(5, 0, 1), delta.Slot(0, 0, 7), delta.Slot(100, 3, 2)),
        7,
        key_heads=2,
        group=2,
    ),
    delta.Case((delta.Slot(0, 0, 70),), 70, group=1, most_open=0),
    delta.Case((delta.Slot(3, 15, 9),), 16, group=1, kind="repeated"),
    delta.Case((delta.Slot(30, 6, 2),), 8, kind="vanishing"),
]


@pytest.mark.parametrize("row_order", [False, True], ids=["chunks", "rows"])
@pytest.mark.parametrize("case", DELTA_CASES, ids=str)
def test_gated_delta_means_the_same_in_kernel_and_body(
    case: delta.Case, row_order: bool, emulated: Library
) -> None:
    """Both within float32's rounding of float64; the body has float32 tensors, with the same
    numbers, and finite garbage where the kernel has NaN.
    """
    given = delta.inputs(case)
    as_float = {
        name: np.nan_to_num(array.astype(np.float32), nan=7.0)
        for name, array in given.items()
        if array.dtype != np.int32
    }
    attributes = {"row_order": 1} if row_order else {}
    body = run_op(
        "DFlashGatedDelta", given | as_float, num_key_heads=case.key_heads, **attributes
    )
    kernel = delta.run(emulated, case, given)
    out, state = delta.expected(case, given)
    np.testing.assert_allclose(body["out"], out, rtol=0, atol=2e-6)
    np.testing.assert_allclose(body["state_out"], state, rtol=0, atol=4e-6)
    np.testing.assert_allclose(kernel["state"], body["state_out"], rtol=0, atol=8e-6)
    rounding = 2.0**-8 * np.abs(out) + 4e-6
    assert (np.abs(kernel["out"].astype(np.float64) - body["out"]) <= rounding).all()
    for index, slot in enumerate(case.slots):
        # Behind the step's last row a kernel leaves the window as it is.
        rows = min(given["window"].shape[2], case.rows - slot.known + delta.HISTORY)
        want = delta.expected_window(case, given)[index, 0, :rows].astype(np.float32)
        np.testing.assert_array_equal(body["window_out"][index, 0, :rows], want)
