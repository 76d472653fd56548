"""A call of a shape that was planned before gets the launches that it would get by itself."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from tests.fixtures.sampling import choice_arrays
from tests.plugins.adjust_reference import Case as AdjustCase
from tests.plugins.adjust_reference import inputs as adjust_inputs
from tests.plugins.attention_reference import Case, inputs
from tests.plugins.block_linear_reference import Case as LinearCase
from tests.plugins.block_linear_reference import inputs as linear_inputs
from tests.plugins.gated_delta_reference import Case as DeltaCase
from tests.plugins.gated_delta_reference import Slot
from tests.plugins.gated_delta_reference import inputs as delta_inputs
from tests.plugins.launcher_calls import argmax_arrays
from tests.plugins.lookup_reference import Case as LookupCase
from tests.plugins.lookup_reference import inputs as lookup_inputs
from tests.plugins.moe_reference import Case as MoeCase
from tests.plugins.moe_reference import gpt_oss
from tests.plugins.moe_reference import inputs as moe_inputs
from tests.plugins.select_reference import Case as SelectCase
from tests.plugins.select_reference import inputs as select_inputs
from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins import plugin
from trtllm_dflash.trt_plugins.call import Call
from trtllm_dflash.trt_plugins.launch_config import OPERATIONS
from trtllm_dflash.trt_plugins.planned_call import planned_call

PROCESSORS = 132, 228 << 10
WORKSPACE = 1 << 40


class Recorder:
    """A `CudaModule` that launches nothing."""

    processors, processor_shared_bytes = PROCESSORS

    def __init__(self) -> None:
        self.launched: list[Launch] = []

    def launch(self, launches: Sequence[Launch], _: int) -> None:
        self.launched = list(launches)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(plugin, "load_module", lambda *_: recorder)
    return recorder


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _attention(**options: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    case = Case((33, 200), 8, head_dim=128, group=7, **options)
    fields = {"scale": 0.125, "window_size": case.window, "head_dim": 128}
    return _shapes(inputs(case)), fields


def _accept() -> dict[str, tuple[int, ...]]:
    shapes = {"logits": (2, 4, 99), "input_ids": (2, 4), "num_known": (2,), "past_len": (2,)}
    shapes |= dict.fromkeys(choice_arrays(2), (2,)) | {"noise_key": (2, 4)}
    return shapes | {"adjusted": (2, 4, 99), "adjusts": (2,)}


DELTA = DeltaCase((Slot(5, 0, 1), Slot(0, 0, 7)), 7, key_heads=2, group=2)
CANDIDATES = SelectCase(3, 7, 211, 12, 16)
EXPERTS = gpt_oss(MoeCase(5, 1))
CASES = {
    "verify": ("DFlashVerifyAttention", *_attention()),
    "sinks": ("DFlashVerifyAttention", *_attention(sinks=True, window=16)),
    "draft": ("DFlashDraftAttention", *_attention(context_rows=6, committed=(2, 6))),
    "accept": ("DFlashAccept", _accept(), {}),
    "experts": ("DFlashMoE", _shapes(moe_inputs(EXPERTS)), EXPERTS.fields),
    "linear": ("DFlashBlockLinear", _shapes(linear_inputs(LinearCase(16, 40, 256))), {}),
    "delta": ("DFlashGatedDelta", _shapes(delta_inputs(DELTA)), DELTA.fields),
    "select": ("DFlashSelect", _shapes(select_inputs(CANDIDATES)), {"top_k": CANDIDATES.top_k}),
    "argmax": ("DFlashArgmax", _shapes(argmax_arrays({"logits": np.zeros((4, 40_003))})), {}),
    "lookup": ("DFlashLookup", _shapes(lookup_inputs(LookupCase(3, 64, 8, 7, 3))), {}),
    "adjust": ("DFlashAdjust", _shapes(adjust_inputs(AdjustCase(3, 5, 97, 90, 5))), {}),
}


def test_every_operator_has_a_case() -> None:
    assert {name for name, *_ in CASES.values()} == {*OPS}


def _sizes(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    axes: dict[str, int] = {"1": 1}
    for tensor in reversed(OPS[name].plugin_inputs):
        axes |= dict(zip(tensor.axes, shapes.get(tensor.name, ()), strict=False))
    return axes


def _call(name: str, given: dict[str, tuple[int, ...]], first: int) -> tuple[Any, ...]:
    """Return what TensorRT passes, and shapes and addresses by name; addresses begin at `first`."""
    spec = OPS[name]
    kept = [tensor for tensor in spec.plugin_inputs if tensor.name in given]
    axes = _sizes(name, given)
    shapes = {tensor.name: given[tensor.name] for tensor in kept}
    shapes |= {tensor.name: tuple(axes[a] for a in tensor.axes) for tensor in spec.outputs}
    addresses = {key: first + (place << 20) for place, key in enumerate(shapes)}
    for tensor in spec.outputs:
        if tensor.aliases:
            addresses[tensor.name] = addresses[tensor.aliases]
    described = [SimpleNamespace(dims=shape) for shape in shapes.values()]
    count, places = len(kept), list(addresses.values())
    arguments = described[:count], described[count:], places[:count], places[count:]
    return arguments, shapes, addresses


@pytest.mark.parametrize("case", CASES)
def test_launches_are_those_of_the_call_by_itself(case: str, module: Recorder) -> None:
    name, given, fields = CASES[case]
    spec, aliased = OPS[name], {t.name for t in OPS[name].outputs if t.aliases}
    planned_call.cache_clear()
    operation = OPERATIONS[spec.kernel.source]
    for first, workspace in ((1 << 30, WORKSPACE), (1 << 33, WORKSPACE + 4096), (16, 32)):
        # Layers of one kind are plugins of their own, and share a plan.
        made = plugin.StepPlugin(spec, fields, b"digest", b"cubin").attach_to_context(None)
        arguments, shapes, addresses = _call(name, given, first)
        made.enqueue(*arguments, workspace, 7)
        own = {key: place for key, place in addresses.items() if key not in aliased}
        alone = operation.launches(Call(shapes, own, fields, workspace, *PROCESSORS))
        assert [_plain(launch) for launch in module.launched] == [_plain(one) for one in alone]
        assert len(alone) >= 1
    assert planned_call.cache_info().misses == 1


def _plain(launch: Launch) -> tuple[Any, ...]:
    shape = launch.kernel, launch.grid, launch.threads, launch.shared_bytes
    return *shape, type(launch.params).__name__, bytes(launch.params)


def test_shapes_and_fields_have_their_own_plans(module: Recorder) -> None:
    name, given, fields = CASES["verify"]
    planned_call.cache_clear()
    wider = _shapes(inputs(Case((33, 200), 9, head_dim=128, group=7)))
    for shapes, more in ((given, {}), (wider, {}), (given, {"scale": 0.5})):
        made = plugin.StepPlugin(OPS[name], fields | more, b"digest", b"cubin")
        arguments, *_ = _call(name, shapes, 1 << 30)
        made.enqueue(*arguments, WORKSPACE, 7)
        assert module.launched[0].params.scale == np.float32((fields | more)["scale"])
        assert module.launched[0].params.rows == shapes["q"][1]
    assert planned_call.cache_info().misses == 3


def test_refused_shapes_are_not_planned(module: Recorder) -> None:
    name, given, _ = CASES["linear"]
    made = plugin.StepPlugin(OPS[name], {}, b"digest", b"cubin")
    arguments, *_ = _call(name, given | {"scales": (9, 9)}, 1 << 30)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"scales are \[9, 9\], expected"):
            made.enqueue(*arguments, WORKSPACE, 7)
    assert module.launched == []
