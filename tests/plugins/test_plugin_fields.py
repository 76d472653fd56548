"""What a plugin says of itself comes from its declaration, and an engine's fields make the same
plugin again.
"""

from __future__ import annotations

import hashlib
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx")
from trtllm_dflash import trt_plugins
from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.ops import OPS, OpSpec
from trtllm_dflash.graph.plugin_nodes import PLUGIN_NAMESPACE, PLUGIN_VERSION, kernel_variant
from trtllm_dflash.trt_plugins import plugin
from trtllm_dflash.trt_plugins.plugin import StepPlugin, StepPluginCreator
from trtllm_dflash.trt_plugins.shapes import check_shapes, present_inputs

BUILD, RUNTIME = trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME
LOG = trt.Logger(trt.Logger.ERROR)
CUBIN = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CUBIN).digest()
FLOAT, INT = (np.float32, trt.PluginFieldType.FLOAT32), (np.int32, trt.PluginFieldType.INT32)
NUMBERS: dict[str, dict[str, float]] = {
    "DFlashVerifyAttention": {
        "scale": 0.25,
        "window_size": 7,
        "ring": 1,
        "key_scale": 0.0,
        "value_scale": 0.0,
        "head_dim": 96,
        "fp8_cache": 0,
    },
    "DFlashDraftAttention": {
        "scale": 0.5,
        "window_size": 0,
        "ring": 0,
        "causal": 1,
        "head_dim": 128,
    },
    "DFlashAccept": {},
    "DFlashMoE": {
        "top_k": 4,
        "normalize": 1,
        "interleaved": 1,
        "limit": 7.0,
        "alpha": 1.5,
        "shift": 1.0,
        "weight_format": 1,
        "block_rows": 0,
    },
    "DFlashBlockLinear": {},
    "DFlashGatedDelta": {
        "num_key_heads": 16,
        "key_dim": 128,
        "value_dim": 128,
        "conv_kernel": 4,
    },
    "DFlashSelect": {"top_k": 16},
    "DFlashArgmax": {},
    "DFlashLookup": {},
    "DFlashAdjust": {},
}
specs = pytest.mark.parametrize("spec", OPS.values(), ids=list(OPS))


_kept: list[Any] = []  # a collection of fields does not keep what it points at


def _fields(numbers: dict[str, float]) -> Any:
    kinds = {
        name: FLOAT if isinstance(value, float) else INT for name, value in numbers.items()
    }
    made = [
        trt.PluginField(name, np.array([numbers[name]], dtype), kind)
        for name, (dtype, kind) in kinds.items()
    ]
    _kept.append(made)
    return trt.PluginFieldCollection(made)


def _creator(spec: OpSpec) -> StepPluginCreator:
    creator = StepPluginCreator(spec)
    creator.cubins = {
        kernel_variant(
            spec, {name: int(value) for name, value in NUMBERS[spec.name].items()}
        ): CUBIN
    }
    return creator


@specs
def test_creator_names_attributes_and_kernel_sizes(spec: OpSpec) -> None:
    creator = StepPluginCreator(spec)
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == (
        spec.name,
        "1",
        "trtllm_dflash",
    )
    declared = dict.fromkeys(
        part.name
        for part in (*spec.attributes, *spec.kernel.sizes, *spec.kernel.types)
        if not getattr(part, "body_only", False)
    )
    assert (
        [field.name for field in creator.field_names]
        == [*declared, "holds_kernels"]
        == [*NUMBERS[spec.name], "holds_kernels"]
    )


@specs
def test_fields_come_back_from_an_engine(spec: OpSpec) -> None:
    creator, numbers = _creator(spec), NUMBERS[spec.name]
    built = creator.create_plugin(spec.name, _fields(numbers), BUILD).clone()
    serialized = built.get_fields_to_serialize()
    assert [field.name for field in serialized] == [*numbers, "cubin_sha256", "cubin"]
    creator.cubins = {}  # an engine brings its kernels
    loaded = creator.create_plugin(spec.name, serialized, RUNTIME)
    assert loaded.fields == numbers
    assert {name: type(value) for name, value in loaded.fields.items()} == {
        n: type(v) for n, v in numbers.items()
    }
    assert loaded.cubin == CUBIN
    assert (loaded.plugin_name, loaded.plugin_version, loaded.plugin_namespace) == (
        spec.name,
        "1",
        "trtllm_dflash",
    )


@pytest.mark.parametrize("holder_is_last", [False, True])
def test_plugins_share_the_kernel_that_one_of_them_holds(
    holder_is_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order of loading, and beside another engine with another kernel of that name."""
    spec = OPS["DFlashAccept"]
    serialized = []
    for cubin in (CUBIN, CUBIN[::-1]):
        creator = StepPluginCreator(spec)
        creator.cubins = {kernel_variant(spec, {}): cubin}
        for holds in (1, 0, 0):
            made = creator.create_plugin("", _fields({"holds_kernels": holds}), BUILD)
            fields = made.clone().get_fields_to_serialize()
            names = [field.name for field in fields]
            assert names == ["cubin_sha256", *(["cubin"] if holds else [])]
            serialized.append((cubin, made, fields))
    if holder_is_last:
        serialized.reverse()
    monkeypatch.setattr(plugin, "_cubins", {})
    creator = StepPluginCreator(spec)
    loaded = [
        (cubin, creator.create_plugin("", fields, RUNTIME)) for cubin, _, fields in serialized
    ]
    used: list[bytes] = []
    monkeypatch.setattr(plugin, "load_module", lambda cubin, _: used.append(cubin))
    for cubin, made in loaded:
        made.clone()._load()
        assert used.pop() == cubin
    plugin._cubins.clear()
    lonely = next(made for _, made in loaded if made.cubin is None)
    with pytest.raises(
        EngineError, match="no plugin of the engine holds the kernel accept; build"
    ):
        lonely._load()


def test_one_plugin_holds_the_kernels_of_other_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its engine has each once; plugins of all operators find theirs, made in any order."""
    names = ("DFlashAccept", "DFlashVerifyAttention", "DFlashArgmax")
    cubins = {}
    for name, cubin in zip(names, (b"first", b"second", b"third"), strict=True):
        cubins |= dict.fromkeys(_creator(OPS[name]).cubins, cubin)
    serialized = {}
    for name in names:
        creator = _creator(OPS[name])
        creator.cubins = cubins
        numbers = NUMBERS[name] | {"holds_kernels": int(name == names[1])}
        made = creator.create_plugin("", _fields(numbers), BUILD)
        serialized[name] = made.clone().get_fields_to_serialize()
    fields = [field for one in serialized.values() for field in one]
    held = [field for field in fields if re.fullmatch(r"(other_)?cubin(_\d+)?", field.name)]
    kernels = {field.name: np.asarray(field.data).tobytes() for field in held}
    assert kernels == {"cubin": b"second", "other_cubin_1": b"first", "other_cubin_2": b"third"}
    monkeypatch.setattr(plugin, "_cubins", {})
    loaded = [
        StepPluginCreator(OPS[name]).create_plugin("", fields, RUNTIME)
        for name, fields in serialized.items()
    ]
    used: list[bytes] = []
    monkeypatch.setattr(plugin, "load_module", lambda cubin, _: used.append(cubin))
    for made in loaded:
        made.clone()._load()
    assert used == [b"first", b"second", b"third"]


@pytest.mark.parametrize(
    ("name", "other_type"),
    [
        *((name, 0) for name in OPS),
        ("DFlashVerifyAttention", 1),
        ("DFlashMoE", 1),
        ("DFlashMoE", 2),
    ],
)
def test_inputs_outputs_and_types_are_the_declarations(name: str, other_type: int) -> None:
    spec = OPS[name]
    made = StepPlugin(
        spec, NUMBERS[name] | {kind.name: other_type for kind in spec.kernel.types}, DIGEST
    )
    assert made.num_outputs == len(spec.outputs)
    names = [tensor.name for tensor in spec.plugin_inputs]
    assert "kv_positions" not in names
    types = {"T": trt.DataType.BF16, "float32": trt.DataType.FLOAT, "int32": trt.DataType.INT32}
    types["int64"] = trt.DataType.INT64
    types["C"] = trt.DataType.FP8 if other_type else trt.DataType.BF16
    types["W"] = trt.DataType.INT32 if other_type else trt.DataType.BF16
    inputs = [types[tensor.dtype] for tensor in spec.plugin_inputs if not tensor.optional]
    outputs = [types[tensor.dtype] for tensor in spec.outputs]
    assert made.get_output_data_types(inputs) == outputs
    assert ("C" in {tensor.dtype for tensor in spec.outputs}) == (
        name == "DFlashVerifyAttention"
    )
    for position, right in enumerate((*inputs, *outputs)):
        for kind, layout in ((right, "LINEAR"), (right, "CHW4"), (trt.DataType.INT8, "LINEAR")):
            desc = SimpleNamespace(type=kind, format=getattr(trt.TensorFormat, layout))
            described = [SimpleNamespace(desc=desc)] * (position + 1)
            found = made.supports_format_combination(position, described, len(inputs))
            assert found == (kind == right and layout == "LINEAR")


@specs
def test_registered_once_and_found_by_name(spec: OpSpec) -> None:
    trt.Builder(LOG)
    trt_plugins.register()
    trt_plugins.register({})
    found = [
        creator
        for creator in trt.get_plugin_registry().all_creators
        if (creator.name, creator.plugin_version, creator.plugin_namespace)
        == (spec.name, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    ]
    assert len(found) == 1
    assert (
        trt.get_plugin_registry().get_creator(spec.name, PLUGIN_VERSION, PLUGIN_NAMESPACE)
        is not None
    )


@pytest.mark.parametrize(
    ("phase", "leave_out", "words"),
    [
        (
            BUILD,
            "head_dim",
            (
                "DFlashVerifyAttention: its field head_dim is missing, got fp8_cache, key_scale,"
                " ring, scale, value_scale, window_size"
            ),
        ),
        (
            RUNTIME,
            "scale",
            (
                "DFlashVerifyAttention: its field scale is missing, got cubin, cubin_sha256,"
                " fp8_cache, head_dim,"
                " key_scale, ring, value_scale, window_size"
            ),
        ),
        (
            RUNTIME,
            "cubin",
            "DFlashVerifyAttention: the engine has no kernel in the field cubin; build it again",
        ),
    ],
)
def test_a_missing_field_is_an_error_in_words_and_kept(
    phase: Any, leave_out: str, words: str
) -> None:
    spec = OPS["DFlashVerifyAttention"]
    creator = _creator(spec)
    fields = _fields(NUMBERS[spec.name])
    if phase == RUNTIME:
        fields = creator.create_plugin(spec.name, fields, BUILD).get_fields_to_serialize()
    left_out = {leave_out, "cubin_sha256"} if leave_out == "cubin" else {leave_out}
    kept = trt.PluginFieldCollection([field for field in fields if field.name not in left_out])
    trt_plugins.pop_errors()
    with pytest.raises(EngineError, match=words):
        creator.create_plugin(spec.name, kept, phase)
    assert trt_plugins.pop_errors() == [words]
    assert trt_plugins.pop_errors() == []


def test_launch_without_gpu_says_why() -> None:
    """TensorRT dies of an exception in attach_to_context, and calls it while it builds."""
    try:
        from cuda.bindings import driver

        if driver.cuInit(0)[0] == driver.CUresult.CUDA_SUCCESS:
            pytest.skip("there is a GPU")
    except RuntimeError:
        pass
    spec = OPS["DFlashAccept"]
    made = StepPlugin(spec, {}, DIGEST, CUBIN).attach_to_context(None)
    assert isinstance(made, StepPlugin)
    descs = [SimpleNamespace(dims=_dims(t.axes)) for t in (*spec.plugin_inputs, *spec.outputs)]
    count = len(spec.plugin_inputs)
    with pytest.raises(EngineError, match="there is no NVIDIA driver"):
        made.enqueue(descs[:count], descs[count:], range(count), range(4), 0, 0)
    assert "there is no NVIDIA driver" in trt_plugins.pop_errors()[-1]


SIZES = {"B": 2, "S": 3, "R": 3, "V": 50, "U": 64}


def _dims(axes: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(axis) if axis.isdigit() else SIZES[axis] for axis in axes)


def test_symbols_bind_sums_and_unknown_sizes_wait() -> None:
    spec = OPS["DFlashDraftAttention"]
    dims = {"q": (2, 4, 6, 64), "k": (2, 7, 2, 64), "v": (2, 7, 2, 64), "positions": (2, 7)}
    check_shapes(spec, dims, {"head_dim": 64})
    check_shapes(spec, dims | {"k": (-1, -1, 2, 64)}, {"head_dim": 64})
    for name, found, words in [
        (
            "v",
            (2, 8, 2, 64),
            r"v is \[2, 8, 2, 64\], expected .*: S\+T is 8, and S is 3 in k, T is 4 in q",
        ),
        ("k", (2, 3, 2, 64), r"k is \[2, 3, 2, 64\], expected .*: S\+T is 3, and T is 4 in q"),
        ("q", (2, 4, 6, 96), r"q is .*: D is 96, and D is 64 in the kernel's head_dim"),
        ("positions", (7,), r"positions is \[7\], expected \[B, S\+T\]$"),
    ]:
        with pytest.raises(EngineError, match=words):
            check_shapes(spec, dims | {name: found}, {"head_dim": 64})
    with pytest.raises(EngineError, match=r"bonus is \[2, 2\], expected \[B, 1\]: got 2"):
        check_shapes(OPS["DFlashAccept"], {"bonus": (2, 2)}, {})


def test_a_packed_size_counts_what_it_holds() -> None:
    spec = OPS["DFlashMoE"]
    dims = {"x": (3, 64), "gate_up": (2, 64, 64), "down": (2, 64, 32)}
    check_shapes(spec, dims, {"weight_format": 0})
    packed = {"x": (-1, 64), "gate_up": (2, 64, 8), "down": (2, 64, 4)}
    of_bytes = {"x": (-1, 64), "gate_up": (2, 64, 16), "down": (2, 64, 8)}
    check_shapes(spec, of_bytes, {"weight_format": 3})
    for weight_format in (1, 2):
        check_shapes(spec, packed, {"weight_format": weight_format})
        with pytest.raises(
            EngineError,
            match=r"gate_up is \[2, 64, 64\], expected .*: H is 512, and H is 64 in x",
        ):
            check_shapes(spec, dims, {"weight_format": weight_format})
    with pytest.raises(
        EngineError, match=r"gate_up is \[2, 64, 8\], expected .*: H is 8, and H is 64 in x"
    ):
        check_shapes(spec, packed, {"weight_format": 0})


def test_the_number_of_inputs_is_the_declarations() -> None:
    spec = OPS["DFlashVerifyAttention"]
    assert [tensor.name for tensor in present_inputs(spec, 7)][-2:] == ["positions", "sinks"]
    for count in (5, 8):
        with pytest.raises(
            EngineError,
            match=f"DFlashVerifyAttention: got {count} inputs, expected 6 to 7: q, k, v",
        ):
            present_inputs(spec, count)


def test_all_plugins_are_one_class() -> None:
    assert {type(creator) for creator in plugin._creators.values()} <= {StepPluginCreator}
