"""What a plugin puts on a stream, from TensorRT's call to the kernels' parameters.

The emulator runs it: it gives bit for bit what the C library gives, which other tests check.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
from tests.fixtures.noise import noise_keys
from tests.fixtures.sampling import choice_arrays, unadjusted
from tests.plugins.attention_reference import Case, inputs
from tests.plugins.block_linear_reference import Case as LinearCase
from tests.plugins.block_linear_reference import inputs as linear_inputs
from tests.plugins.emulated_plugin import KERNELS, EmulatedModule, enqueue
from tests.plugins.library import Library
from tests.plugins.moe_reference import Case as MoeCase
from tests.plugins.moe_reference import fitting, gpt_oss
from tests.plugins.moe_reference import inputs as moe_inputs
from tests.plugins.test_ring_kernels import in_rings, smallest
from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.trt_plugins import params, plugin

pytestmark = pytest.mark.slow

VERIFY, DRAFT, ACCEPT, MOE, LINEAR = (
    "DFlashVerifyAttention",
    "DFlashDraftAttention",
    "DFlashAccept",
    "DFlashMoE",
    "DFlashBlockLinear",
)

CASES = [
    Case((0, 15), 4),
    Case((33, 2), 8, head_dim=128, group=7, window=16, sinks=True),
    Case((200,), 40, head_dim=96, kv_heads=3),
    Case((64, 5), 1, head_dim=256, group=1, sinks=True),
    Case((9, 40), 8, context_rows=6, committed=(2, 6), causal=False),
    Case((9, 70), 5, head_dim=128, context_rows=4, committed=(1, 4), window=12),
    Case((33, 2), 8, head_dim=128, group=7, sinks=True, cache_scales=(0.01, 0.03)),
    Case((200,), 40, head_dim=64, kv_heads=3, cache_scales=(1.0, 1.0)),
]


@pytest.mark.parametrize("processors", [1, 132, 1000])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(
    case: Case, processors: int, module: EmulatedModule, emulated: Library
) -> None:
    module.processors = processors
    given, scale = inputs(case), case.head_dim**-0.5
    numbers: dict[str, float] = {
        "scale": scale,
        "window_size": case.window,
        "head_dim": case.head_dim,
    }
    numbers |= (
        {"causal": int(case.causal)}
        if case.draft
        else {"fp8_cache": int(case.cache_scales is not None)}
    )
    numbers |= dict(zip(("key_scale", "value_scale"), case.cache_scales or (), strict=False))
    got = enqueue(DRAFT if case.draft else VERIFY, given, numbers)
    want = emulated.attention(
        "draft" if case.draft else "verify",
        given,
        scale=scale,
        window=case.window,
        causal=case.causal,
        processors=min(processors, params.MAX_PROCESSORS),
        cache_scales=case.cache_scales,
    )
    assert {stream for _, stream in module.launched} == {77}
    names = {"out": "out", "key_cache": "key_cache_out", "value_cache": "value_cache_out"}
    for name, ours in names.items():
        np.testing.assert_array_equal(got[ours].view(np.uint8), want[name].view(np.uint8))


RINGS = [
    replace(CASES[1], past=(433, 2)),
    replace(CASES[5], past=(9, 370)),
    Case((300,), 9, window=70, kv_heads=1),
]


@pytest.mark.parametrize("processors", [1, 132])
@pytest.mark.parametrize("case", RINGS, ids=str)
def test_attention_over_rings(
    case: Case, processors: int, module: EmulatedModule, emulated: Library
) -> None:
    """In the smallest ring; one row less is refused, when the workspace is asked for and when it
    runs.
    """
    module.processors, scale = processors, case.head_dim**-0.5
    given = in_rings(case, inputs(case), smallest(case))
    numbers: dict[str, float] = {
        "scale": scale,
        "window_size": case.window,
        "ring": 1,
        "head_dim": case.head_dim,
    }
    numbers |= {"causal": int(case.causal)} if case.draft else {}
    kind, name = ("draft", DRAFT) if case.draft else ("verify", VERIFY)
    got = enqueue(name, given, numbers)
    want = emulated.attention(
        kind,
        given,
        scale=scale,
        window=case.window,
        causal=case.causal,
        ring=True,
        processors=processors,
    )
    names = {"out": "out", "key_cache_out": "key_cache", "value_cache_out": "value_cache"}
    for ours, theirs in names.items():
        np.testing.assert_array_equal(got[ours].view(np.uint8), want[theirs].view(np.uint8))

    module.launched.clear()
    small = in_rings(case, inputs(case), smallest(case) - 1)
    rows = smallest(case)
    words = f"ring cache of {rows - 1} rows, .*: it needs a window and {rows} rows"
    with pytest.raises(EngineError, match=words):
        enqueue(name, small, numbers)
    assert module.launched == []
    assert len(plugin.pop_errors()) == 1  # twice the same words


def test_more_processors_are_more_kernels(module: EmulatedModule) -> None:
    given = inputs(CASES[0])
    numbers = {"scale": 1.0, "window_size": 0, "head_dim": 64}
    for module.processors in (1, 132):
        enqueue(VERIFY, given, numbers)
    assert [kernel for kernel, _ in module.launched] == [
        "dflash_attention_d64_r16",
        "dflash_attention_d64_r16",
    ]
    enqueue(VERIFY, inputs(CASES[2]), numbers | {"head_dim": 96})
    assert [kernel for kernel, _ in module.launched[2:]] == [
        "dflash_attention_d96_r128",
        "dflash_attention_merge_d96",
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_accept(temperature: float, module: EmulatedModule, emulated: Library) -> None:
    batch, rows, vocab = 3, 4, 20_000
    rng = np.random.default_rng(5)
    given = {
        "logits": (rng.standard_normal((batch, rows, vocab)) * 3).astype(np.float32),
        "input_ids": rng.integers(0, vocab, (batch, rows)),
        "num_known": np.ones(batch, np.int32),
        "past_len": np.array([0, 7, 19], np.int32),
        **choice_arrays(batch, temperature=temperature, top_p=[1, 0.9, 0.5], top_k=[0, 5, 40]),
        "noise_key": noise_keys(batch),
    }
    given |= unadjusted(given["logits"])
    given["input_ids"][:, 1] = given["logits"][:, 0].argmax(
        -1
    )  # accepted where the choice is greedy
    got, want = enqueue(ACCEPT, given, {}), emulated.accept(given)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected)
    assert temperature > 0 or (got["num_new"] >= 2).all()
    assert [kernel for kernel, _ in module.launched] == [
        "dflash_accept_scan",
        "dflash_accept_choose",
        "dflash_accept_finish",
    ]


MOE_CASES = [
    MoeCase(3, 0, 96, 40, experts=7, top_k=3, normalize=False, limit=1.5, shift=0.5),
    gpt_oss(MoeCase(7, 1, 64, 96, experts=5, top_k=4)),
    gpt_oss(MoeCase(40, 2, 160, 32, experts=4, top_k=2)),
    fitting(MoeCase(7, 3, 144, 272, experts=5, top_k=4)),
    fitting(MoeCase(40, 3, 160, 32, experts=4, top_k=2), block_rows=1),
]
LINEAR_CASES = [
    LinearCase(3, 129, 272, bias=True),
    LinearCase(16, 40, 16),
    LinearCase(200, 264, 144),
]


@pytest.mark.parametrize("case", MOE_CASES, ids=str)
def test_experts(case: MoeCase, module: EmulatedModule, emulated: Library) -> None:
    given = moe_inputs(case)
    got, want = enqueue(MOE, given, case.fields)["out"], emulated.moe(given, case.options)
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))
    suffix = ("", "_mxfp4", "_nvfp4", "_fp8")[case.weight_format]
    tile = "_t32" if case.tokens == 40 else "_t8" if case.tokens == 3 else "_t16"
    parts = ("route", "list", f"gate_up{tile}", f"down{tile}", "sum")
    assert module.launched == [(f"dflash_moe_{part}{suffix}", 77) for part in parts]


@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_linears(case: LinearCase, module: EmulatedModule, emulated: Library) -> None:
    given = linear_inputs(case)
    got, want = enqueue(LINEAR, given, {})["out"], emulated.block_linear(given)
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))
    tile = {3: 8, 16: 16, 200: 64}[case.tokens]
    assert module.launched == [(f"dflash_block_linear_t{tile}", 77)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"x": (3, 264), "weight": (129, 66)},
            r"an I that 16 divides, in int32 of four codes: I is 264, and the weight is",
        ),
        ({"weight": (129, 67)}, r"I is 272, and the weight is \[129, 67\]"),
        ({"scales": (1, 3)}, r"scales are \[1, 3\], expected \[2, 3\]: one for each block"),
        ({"scales": (2, 2)}, r"scales are \[2, 2\], expected \[2, 3\]"),
        (
            {"bias": (128,)},
            r"bias is \[128\], expected \[O\]: O is 128, and O is 129 in weight",
        ),
    ],
)
def test_linears_that_do_not_hold_together_are_refused(
    changes: dict[str, tuple[int, ...]], words: str, module: EmulatedModule
) -> None:
    given = linear_inputs(LINEAR_CASES[0])
    given |= {name: np.zeros(shape, given[name].dtype) for name, shape in changes.items()}
    with pytest.raises(EngineError, match=words):
        enqueue(LINEAR, given, {})
    assert module.launched == []


def test_a_linear_at_an_odd_address_is_refused(module: EmulatedModule) -> None:
    given = linear_inputs(LINEAR_CASES[1])
    made = plugin.StepPlugin(OPS[LINEAR], {}, b"digest", KERNELS).attach_to_context(None)
    inside = [SimpleNamespace(dims=array.shape) for array in given.values()]
    out = SimpleNamespace(dims=(16, 40))
    with pytest.raises(EngineError, match="at a time: weight must begin at a multiple of 16"):
        made.enqueue(inside, [out], [16, 24, 16], [32], 0, 0)
    assert module.launched == []


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"block_rows": 64}, "block_rows 1 or 128 .*: block_rows is 64 and weight_format 3"),
        (
            {"block_rows": 1},
            r"gate_up_scale is \[5, 12\], expected \[E, 544\], a scale in each",
        ),
        ({"interleaved": 1}, "experts in FP8 have all gates before all ups: interleaved is 1"),
    ],
)
def test_fp8_experts_that_cannot_be_are_refused(
    numbers: dict[str, float], words: str, module: EmulatedModule
) -> None:
    case = MOE_CASES[3]
    with pytest.raises(EngineError, match=words):
        enqueue(MOE, moe_inputs(case), case.fields | numbers)
    other = MOE_CASES[1]
    with pytest.raises(EngineError, match="else 0: block_rows is 128 and weight_format 1"):
        enqueue(MOE, moe_inputs(other), other.fields | {"block_rows": 128})
    assert module.launched == []


@pytest.mark.parametrize(
    ("changes", "numbers", "words"),
    [
        ({}, {"top_k": 6}, "1 to 32 experts of at most 1024: top_k is 6, and there are 5"),
        ({}, {"top_k": 0}, "top_k is 0"),
        (
            {"down_scale": (5, 47)},
            {},
            r"down_scale is \[5, 47\], expected \[E, 48\], four scales in each",
        ),
        (
            {"gate_up_scale_2": (5,)},
            {},
            "weight_format 1 have gate_up_scale, down_scale; got .*, gate_up_scale_2",
        ),
        (
            {"down_scale": None},
            {},
            "weight_format 1 have gate_up_scale, down_scale; got gate_up_scale",
        ),
        (
            {"gate_up_bias": (5, 200), "gate_up": (5, 200, 8)},
            {},
            "I that 32 divides, and J = 2I rows: .* and J 200",
        ),
        (
            {"down": (5, 64, 8), "down_scale": (5, 32)},
            {},
            "down has I = 64 columns, and gate_up 2I = 192 rows",
        ),
    ],
)
def test_experts_that_do_not_hold_together_are_refused(
    changes: dict[str, Any], numbers: dict[str, float], words: str, module: EmulatedModule
) -> None:
    case, given = MOE_CASES[1], moe_inputs(MOE_CASES[1])
    for name, shape in changes.items():
        dtype = np.float32 if name.endswith("_2") else given[name].dtype
        given |= {} if shape is None else {name: np.zeros(shape, dtype)}
        if shape is None:
            given.pop(name)
    with pytest.raises(EngineError, match=words):
        enqueue(MOE, given, case.fields | numbers)
    assert module.launched == []


def test_experts_at_an_odd_address_are_refused(module: EmulatedModule) -> None:
    spec, case = OPS[MOE], MOE_CASES[0]
    given = moe_inputs(case)
    made = plugin.StepPlugin(spec, case.fields, b"digest", KERNELS).attach_to_context(None)
    inside = [SimpleNamespace(dims=array.shape) for array in given.values()]
    with pytest.raises(
        EngineError, match="16 bytes at a time: down must begin at a multiple of 16"
    ):
        made.enqueue(inside, [inside[0]], [16, 16, 16, 16, 24, 16], [32], 0, 0)
    assert module.launched == []


def test_a_cache_that_is_not_written_in_place_is_refused(module: EmulatedModule) -> None:
    spec, case = OPS[VERIFY], CASES[0]
    given = inputs(case)
    made = plugin.StepPlugin(
        spec, {"scale": 1.0, "window_size": 0, "head_dim": 64}, b"digest", KERNELS
    ).attach_to_context(None)
    inside = [
        SimpleNamespace(dims=given[tensor.name].shape)
        for tensor in spec.plugin_inputs
        if tensor.name in given
    ]
    outside = [inside[0], inside[3], inside[4]]
    words = (
        "DFlashVerifyAttention: value_cache_out is not at the address of value_cache, .* bind both"
        " to the same"
    )
    with pytest.raises(EngineError, match=words):
        made.enqueue(inside, outside, [1, 2, 3, 4, 5, 6], [7, 4, 6], 0, 0)
    assert module.launched == []
    assert len(plugin.pop_errors()) == 1


@pytest.mark.parametrize(
    ("case", "numbers", "words"),
    [
        (
            CASES[0],
            {"key_scale": 0.5},
            "attention over bfloat16 caches has no scales of them: key_scale is 0.5",
        ),
        (
            CASES[6],
            {"fp8_cache": 1},
            "attention over FP8 caches needs their scales: key_scale is 0.0",
        ),
        (
            CASES[6],
            {"fp8_cache": 1, "key_scale": 1.0, "value_scale": float("nan")},
            "attention over FP8 caches needs their scales: value_scale is nan",
        ),
    ],
)
def test_scales_belong_to_fp8_caches(
    case: Case, numbers: dict[str, float], words: str, module: EmulatedModule
) -> None:
    fields = {"scale": 1.0, "window_size": 0, "head_dim": case.head_dim} | numbers
    with pytest.raises(EngineError, match=words):
        enqueue(VERIFY, inputs(case), fields)
    assert module.launched == []


def test_wrong_shapes_are_refused_before_a_launch(module: EmulatedModule) -> None:
    given = inputs(CASES[0])
    with pytest.raises(
        EngineError,
        match=r"DFlashVerifyAttention: q is .*: D is 64, and D is 128 in the kernel's head_dim",
    ):
        enqueue(VERIFY, given, {"scale": 1.0, "window_size": 0, "head_dim": 128})
    assert module.launched == []
