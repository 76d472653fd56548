"""Real TensorRT-RTX engines, built without a GPU.

They are of every target and mask variant, and no input is silently ignored.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.chosen import chosen
from tests.fixtures.tiny_models import BLOCK, DRAFTER_VARIANTS, tiny_drafter, tiny_target
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.builder.worker_process import worker_environment
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.inspection import inspect_engine
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.options.build import BuildConfig

pytest.importorskip("tensorrt_rtx")
from trtllm_dflash.builder.optimization_profiles import profiles
from trtllm_dflash.builder.trt import Compiler, distinct_bytes
from trtllm_dflash.builder.trt_callbacks import BuilderLog, EngineWriter

ARCHS = ("sm80", "sm86", "sm89", "sm120", "sm121")
LOG = BuilderLog()  # one, since TensorRT talks to the first that a process gives it
PLAIN = "plain"
CASES = list(product(("llama", "qwen3"), (PLAIN, *DRAFTER_VARIANTS)))
MAX_BATCH, MAX_SEQ_LEN = 3, 64


def _models(directory: Path, model_type: str, variant: str, **sizes: int) -> dict[str, Any]:
    """Write a pair in BF16. Two layers are enough, and compile time grows with depth."""
    same: dict[str, Any] = {"num_layers": 2, "dtype": "BF16", **sizes}
    target = tiny_target(directory / "target", model_type, tied=model_type == "qwen3", **same)
    if variant == PLAIN:
        return {"target": str(target), "drafter": None}
    drafter = tiny_drafter(directory / "drafter", target, variant=variant, taps=(0,), **same)
    return {"target": str(target), "drafter": str(drafter)}


def _prepare(directory: Path, model_type: str, variant: str) -> ResolvedModels:
    """Resolve a pair without plugins; with them: tests/plugins/test_engine_plugins.py."""
    models = _models(directory, model_type, variant)
    sizes = {"max_batch_size": MAX_BATCH, "max_seq_len": MAX_SEQ_LEN}
    return resolve_models(
        BuildConfig(**models, output_dir=directory, arch="sm120", plugins=False, **sizes)
    )


def _step(prepared: ResolvedModels) -> ir.Model:
    sizes = prepared.resolved
    return build_step(
        prepared.target,
        prepared.drafter,
        dtype=sizes.dtype,
        cache_len=sizes.cache_len,
        block_size=sizes.block_size,
        ring_width=sizes.ring_width,
    )


def _compiler(model: ir.Model) -> Compiler:
    return Compiler(LOG, model)


def _compile(directory: Path, model_type: str, variant: str) -> tuple[bytes, bytes]:
    """Return one engine for all of ARCHS, and the bytes of a weight.

    All archs together cost as much as one.
    """
    prepared = _prepare(directory, model_type, variant)
    file, shapes = io.BytesIO(), profiles(prepared.io, prepared.resolved)
    _compiler(_step(prepared)).compile(ARCHS, shapes, file, lambda *_: None)
    weight = prepared.target.tensors["model.layers.1.mlp.down_proj.weight"].array()
    return file.getvalue(), weight.tobytes()


@pytest.fixture(scope="module")
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Future[tuple[bytes, bytes]]]]:
    """Yield all cases, compiling in two processes: a crash of TensorRT is then a failed test."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield {
            case: pool.submit(_compile, tmp_path_factory.mktemp("case"), *case)
            for case in chosen(request, "model_type", "variant")
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_every_target_and_mask_variant_compiles_for_every_arch(
    model_type: str, variant: str, compiled: dict[tuple[str, str], Future[tuple[bytes, bytes]]]
) -> None:
    engine, weight = compiled[model_type, variant].result(timeout=600)
    assert len(engine) > 100_000
    # The biggest matrix is in the engine, as it is in the checkpoint or transposed.
    transposed = np.frombuffer(weight, np.uint16).reshape(48, 80).T.tobytes()
    assert weight[:64] in engine or transposed[:64] in engine


@pytest.mark.parametrize(
    ("arch", "variant", "plugins"),
    [
        pytest.param("sm89", "mixed", None, marks=pytest.mark.slow),
        ("sm120", "full", None),
        pytest.param("sm120", "full", False, marks=pytest.mark.slow),
        pytest.param("sm121", PLAIN, True, marks=pytest.mark.slow),
    ],
)
def test_an_engine_directory_for_each_arch(
    arch: str, variant: str, plugins: bool | None, tmp_path: Path
) -> None:
    config = BuildConfig(
        **_models(tmp_path, "qwen3", variant, head_dim=64),
        output_dir=tmp_path / "engine",
        arch=arch,
        max_seq_len=MAX_SEQ_LEN,
        plugins=plugins,
    )
    report = build_engine(config)
    assert {"rank0.engine", "config.json", "build.log", "manifest.json"} == {
        path.name for path in report.directory.iterdir()
    }
    assert manifest.check(report.directory, deep=True) == []
    assert manifest.load(report.directory)["backend"] == "tensorrt_rtx"
    assert "tensorrt_rtx" in manifest.load(report.directory)["versions"]
    written = json.loads((report.directory / "config.json").read_text())
    assert written["build_config"]["dtype"] == "bfloat16"
    assert written["build_config"]["plugins"] == (plugins is not False)
    assert ("kv_positions" in {port["name"] for port in written["io"]}) == (plugins is False)
    _check_kernels(
        report.directory, arch, plugins=plugins is not False, has_drafter=variant != PLAIN
    )
    assert "Engine generation completed" in (report.directory / "build.log").read_text()


def _check_kernels(directory: Path, arch: str, *, plugins: bool, has_drafter: bool) -> None:
    """Check that the manifest, `inspect` and the builder's log name the engine's kernels."""
    facts, found = manifest.load(directory), dict(inspect_engine(directory).sections())
    overview = [line.split("  ") for line in next(iter(found.values()))]
    text = "ours, as plugins" if plugins else "the compiler's own"
    assert [line[-1].strip() for line in overview if line[0] == "kernels"] == [text]
    if not plugins:
        assert facts["kernels"] == []
        assert "kernels" not in found
        assert "nvidia-cuda-nvrtc" not in facts["versions"]
        return
    assert [kernel["kernel"] for kernel in facts["kernels"]] == [
        *("accept", "adjust"),
        *(["argmax"] if has_drafter else []),
        "attention, head_dim 64",
        *(["lookup"] if has_drafter else []),
    ]
    assert {kernel["arch"] for kernel in facts["kernels"]} == {arch}
    for line, kernel in zip(found["kernels"], facts["kernels"], strict=True):
        assert line.startswith(kernel["kernel"])
        assert kernel["sha256"][:16] in line
        assert kernel["source_sha256"][:16] in line
    assert "nvidia-cuda-nvrtc" in facts["versions"]
    log = (directory / "build.log").read_text()
    assert f"NVRTC: attention, head_dim 64 for {arch}:" in log
    assert "0 bytes spill stores" in log


@pytest.mark.slow
def test_a_float32_checkpoint_is_converted(
    make_target: Callable[..., Path], tmp_path: Path
) -> None:
    target = make_target("llama", num_layers=2, tied=True)
    sizes = {"max_seq_len": MAX_SEQ_LEN, "max_num_tokens": 8}
    config = BuildConfig(str(target), tmp_path / "engine", arch="sm120", plugins=False, **sizes)
    report = build_engine(config)
    assert "rank0.engine" in {path.name for path in report.directory.iterdir()}
    assert not (report.directory / "scratch").exists()
    infos = read_tensor_infos(target / "model.safetensors").values()
    assert {info.dtype for info in infos} == {"F32"}


def test_profiles_are_for_prefill_and_decode(tmp_path: Path) -> None:
    prepared = _prepare(tmp_path, "llama", "full")
    prefill, decode = profiles(prepared.io, prepared.resolved)
    assert prefill["input_ids"] == ((1, 1), (1, 63), (1, 63))
    assert prefill["decided"] == ((1,), (1,), (4,))
    assert prefill["noise_key"] == ((1, 4), (1, 4), (1, 4))
    assert prefill["kv_positions"] == ((1,), (64,), (128,))
    assert decode["input_ids"] == ((1, 1), (3, 4), (3, 4))
    assert decode["decided"] == ((1,), (4,), (4,))
    assert decode["noise_key"] == ((1, 4), (3, 4), (3, 4))
    assert decode["kv_positions"] == ((4,), (64,), (128,))
    fewer = profiles(prepared.io, replace(prepared.resolved, draft_len=1))[1]
    assert fewer["input_ids"] == ((1, 1), (3, 2), (3, 4))
    assert fewer["decided"] == ((1,), (2,), (4,))
    assert decode["target_key.1"] == ((1, 2, 128, 16), (3, 2, 128, 16), (3, 2, 128, 16))


def test_tensorrt_by_itself_takes_no_rings(tmp_path: Path) -> None:
    """Why an engine without our kernels has whole caches: `ResolvedBuild.ring_width`."""
    prepared = _prepare(tmp_path, "llama", "mixed")
    assert prepared.resolved.ring_width is None
    model = build_step(
        prepared.target,
        prepared.drafter,
        dtype="bfloat16",
        cache_len=128,
        block_size=BLOCK,
        ring_width=8,
    )
    with pytest.raises(BuildError, match="Only linear mode is supported for now, got circular"):
        _compiler(model)


def test_an_input_that_the_graph_does_not_use_is_refused(tmp_path: Path) -> None:
    model = _step(_prepare(tmp_path, "llama", "full"))
    _compiler(model)  # as it is, nothing is unused
    model.graph.inputs.append(
        ir.Value(
            name="forgotten", shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.FLOAT)
        )
    )
    with pytest.raises(
        BuildError, match=r"silently drop parts of the step graph.* wrong:\n  input forgotten$"
    ):
        _compiler(model)


def test_an_input_of_a_node_that_the_parser_drops_is_refused() -> None:
    """The known case: the parser takes ONNX's Attention, and ignores its nonpad_kv_seqlen."""
    _compiler(_attention(with_lengths=False))
    with pytest.raises(
        BuildError, match=r"silently drop parts of the step graph.*:\n  input lengths$"
    ):
        _compiler(_attention(with_lengths=True))


def test_a_computed_input_that_the_parser_drops_is_refused() -> None:
    """TensorRT has no message for it: the lengths come from an input that is used elsewhere."""
    model = _attention(with_lengths=True)
    attention, lengths = next(iter(model.graph)), model.graph.inputs[-1]
    clipped = ir.node("Min", [lengths, lengths])
    shifted = ir.node("Add", [lengths, lengths])
    clipped.outputs[0].name, shifted.outputs[0].name = "clipped", "shifted"
    shifted.outputs[0].type, shifted.outputs[0].shape = lengths.type, lengths.shape
    attention.replace_input_with(6, clipped.outputs[0])
    model.graph.insert_before(attention, [clipped, shifted])
    model.graph.outputs.append(shifted.outputs[0])
    with pytest.raises(
        BuildError,
        match=r"silently drop parts of the step graph.*:\n  result clipped\S* of .*$",
    ):
        _compiler(model)


def _attention(*, with_lengths: bool) -> ir.Model:
    bf16, int64 = ir.TensorType(ir.DataType.BFLOAT16), ir.TensorType(ir.DataType.INT64)
    q, k, v = (ir.Value(name=name, shape=ir.Shape([1, 2, 8, 16]), type=bf16) for name in "qkv")
    lengths = ir.Value(name="lengths", shape=ir.Shape([1]), type=int64)
    inputs = [q, k, v, *([lengths] if with_lengths else [])]
    node = ir.node(
        "Attention", [q, k, v, *([None, None, None, lengths] if with_lengths else [])]
    )
    node.outputs[0].name, node.outputs[0].type = "out", bf16
    return ir.Model(
        ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 24}), ir_version=11
    )


def _unary(op_type: str) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(["batch", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node(op_type, [x])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    return ir.Model(
        ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 24}), ir_version=11
    )


def test_what_the_parser_cannot_read_is_named() -> None:
    with pytest.raises(
        BuildError,
        match=r"(?s)TensorRT-RTX cannot parse the step graph:\n  Fantasy \(node .*Plugin not found",
    ):
        _compiler(_unary("Fantasy"))


def test_what_tensorrt_refuses_is_told_in_its_own_words() -> None:
    impossible = {"x": ((1, 8), (2, 8), (4, 9))}  # the graph says 8
    with pytest.raises(BuildError, match=r"(?s)could not compile the step for sm120:\n  .*x"):
        _compiler(_unary("Relu")).compile(
            ["sm120"], [impossible], io.BytesIO(), lambda *_: None
        )


def test_a_full_disk_is_reported_and_not_thrown_at_tensorrt() -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        _compiler(_unary("Relu")).compile(
            ["sm120"], [{"x": ((1, 8),) * 3}], Full(), lambda *_: None
        )
    writer = EngineWriter(Full())
    assert writer.write(b"x") == 0


class TooShort:
    """A builder that reports success and writes `count` bytes."""

    def __init__(self, builder: Any, count: int) -> None:
        self._builder = builder
        self._count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build_serialized_network_to_stream(self, _: Any, __: Any, writer: EngineWriter) -> bool:
        writer.write(bytes(self._count))
        return True


def _with_weight(values: np.ndarray) -> ir.Model:
    """Return a graph that adds a float32 constant [N, 8]."""
    weight = ir.tensor(values.astype(np.float32), name="w")
    model = _unary("Relu")
    value = ir.Value(name="w", shape=ir.Shape(weight.shape), const_value=weight)
    value.dtype = weight.dtype
    model.graph.initializers["w"] = value
    return model


@pytest.mark.parametrize("count", [0, 63, 64 + 64_000 // 2 - 1])
def test_an_engine_too_small_for_its_weights_is_an_error(count: int) -> None:
    compiler = _compiler(_with_weight(np.arange(16_000).reshape(-1, 8)))
    compiler._builder = TooShort(compiler._builder, count)
    words = (
        rf"reports success for sm120 and has written {count} bytes, where header and weights"
    )
    with pytest.raises(BuildError, match=words):
        compiler.compile(["sm120"], [{"x": ((1, 8),) * 3}], io.BytesIO(), lambda *_: None)


def test_weights_that_look_the_same_count_once() -> None:
    ones, twos = np.ones(1000, np.uint8), np.full(1000, 2, np.uint8)
    assert distinct_bytes([ones, ones.copy(), twos, ones[:500]]) == 2500
    assert distinct_bytes([]) == 0


def test_the_log_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    log = BuilderLog()
    log.log(BuilderLog.WARNING, "Unused Input: x")
    log.log(BuilderLog.VERBOSE, "noise")
    assert log.dropped_inputs() == ["Unused Input: x"]


def test_the_progress_of_compiling_is_shown() -> None:
    seen: list[tuple[str, int, int]] = []
    compiler = _compiler(_unary("Relu"))
    compiler.compile(
        ["sm120"], [{"x": ((1, 8),) * 3}], io.BytesIO(), lambda *event: seen.append(event)
    )
    assert seen
    assert all(
        phase.startswith("compiling: ") and 0 <= done <= total for phase, done, total in seen
    )


@pytest.mark.slow
def test_a_plugin_compiles_in_the_builders_environment_alone() -> None:
    command = [sys.executable, "-m", "tests.builder.plugin_probe"]
    options = {"cwd": Path(__file__).parents[2], "capture_output": True, "text": True}
    with worker_environment() as environment:
        inside = subprocess.run(command, env=environment, check=False, **options)
    assert inside.returncode == 0, inside.stderr
    assert int(inside.stdout) > 1000
    outside = subprocess.run(command, check=False, **options)
    assert outside.returncode == -6
    assert "terminate called" in outside.stderr
