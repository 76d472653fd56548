"""The benchmark as far as it goes without a GPU: its references, its checks, its message."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.plugins.library import PLUGINS

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
BENCH = PLUGINS / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench.py as a module; the others that it imports lie beside it."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("bench")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_both_sides_of_a_measurement_agree(
    bench: ModuleType, emulated_path: Path, index: int
) -> None:
    """Our kernel (emulated) passes the check; so does every way of PyTorch's, where the shape has
    no sinks.
    """
    shape, kernels = bench.SHAPES[index], bench.Kernels(emulated_path)
    work = bench.Work(shape, rows=4, batch=2, context=150)
    tensors = work.tensors("cpu", 1)
    with pytest.raises(SystemExit, match=r"WRONG RESULT: .* slot 1"):  # nothing is written yet
        bench.check(work, tensors, 1)
    kernels.verify_attention(
        tensors,
        kernels.attention_workspace(tensors, shape.window),
        scale=shape.scale,
        window=shape.window,
    )
    ours = tensors["out"].clone()
    for slot in range(2):
        bench.check(work, tensors, slot)
    if shape.sinks:
        tensors.pop("sinks")
    ways = 0
    for name, attend in bench.torch_candidates(work, "cpu"):
        try:
            out = attend(tensors)
        except RuntimeError:  # a backend that this CPU does not have
            continue
        tensors["out"] = out.transpose(1, 2)
        bench.write_caches(work, tensors)
        bench.check(work, tensors, 1)
        ways += 1
        assert name
    assert ways >= 3
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("sampling", ["greedy", "temperature 1", "top_k 50, top_p 0.9"])
def test_accept_is_checked(
    bench: ModuleType, emulated_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    monkeypatch.setattr(bench, "VOCAB", 3001)
    kernels, greedy = bench.Kernels(emulated_path), sampling == "greedy"
    tensors = bench.accept_tensors(5, bench.SAMPLING[sampling], 0, "cpu")
    with pytest.raises(SystemExit, match="WRONG RESULT: accept"):
        bench.check_accept(tensors, greedy=greedy)
    kernels.accept(tensors, kernels.accept_workspace(tensors["logits"]))
    bench.check_accept(tensors, greedy=greedy)


@pytest.mark.parametrize("tokens", [1, 5, 19])
def test_experts_are_checked(bench: ModuleType, emulated_path: Path, tokens: int) -> None:
    """Our kernels (emulated) and PyTorch's ways pass the check; nothing written, or another's
    shares, do not.
    """
    experts, measure = (
        importlib.import_module("experts"),
        importlib.import_module("measure_experts"),
    )
    kernels = bench.Kernels(emulated_path)
    work = experts.MoeWork(experts.Experts("small", 64, 96, 5, 2), tokens)
    weights = work.weights("cpu")
    tensors = work.tensors(weights, 1)
    assert 1e-2 < float(experts.dequantize(tensors, "gate_up", 0, torch.float64).std()) < 2
    with pytest.raises(SystemExit, match="WRONG RESULT: MoeWork"):
        experts.check_experts(work, tensors)
    measure.launcher(kernels, work, tensors)(tensors)
    experts.check_experts(work, tensors)
    assert work.bytes(tensors) > work.distinct(tensors) * 17 * 3 * 64 * 96 / 32
    ways = 0
    for name, way in experts.torch_ways(work, tensors, experts.in_bfloat16(weights)):
        try:
            tensors["out"] = way(tensors)
        except (
            RuntimeError,
            AttributeError,
        ):  # grouped products, which not every torch has on a CPU
            assert name != "expert by expert"
            continue
        experts.check_experts(work, tensors)
        ways += 1
    assert ways >= 1
    tensors["router_logits"] = tensors["router_logits"].flip(-1)
    with pytest.raises(SystemExit, match="WRONG RESULT: MoeWork"):
        experts.check_experts(work, tensors)


@pytest.mark.parametrize(("rows", "known", "open_rows"), [(4, 1, 3), (6, 6, 0)])
def test_gated_delta_is_checked(
    bench: ModuleType, emulated_path: Path, rows: int, known: int, open_rows: int
) -> None:
    """Our kernels (emulated) pass the check; nothing written, or another's gates, do not."""
    delta, measure = (
        importlib.import_module(name) for name in ("gated_delta", "measure_gated_delta")
    )
    work = delta.DeltaWork(delta.DeltaHeads("small", 1, 2), rows, known, open_rows, batch=2)
    tensors = work.tensors("cpu", 1)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    wanted = delta.delta_by_rows(work, tensors, torch.float64)
    with pytest.raises(SystemExit, match=r"WRONG RESULT: DeltaWork.*: out is off by inf"):
        delta.check_delta(work, wanted, tensors)
    measure.delta_launcher(bench.Kernels(emulated_path), work, tensors)(tensors)
    delta.check_delta(work, wanted, tensors)
    in_float32 = delta.delta_by_rows(work, before, torch.float32)
    tensors |= dict(zip(("out", "state"), in_float32, strict=True))
    delta.check_delta(work, wanted, tensors)
    before["gates"] = before["gates"].flip(-1)
    with pytest.raises(SystemExit, match="WRONG RESULT"):
        delta.check_delta(work, delta.delta_by_rows(work, before, torch.float64), tensors)
    assert work.bytes > 2 * 2 * 4 * 2 * 128 * 128


def test_a_row_of_the_table_of_gated_delta(bench: ModuleType) -> None:
    measure = importlib.import_module("measure_gated_delta")
    row = {"heads": "h", "rows": 16, "open_rows": 15, "batch": 8, "megabytes": 60.04}
    row |= {"microseconds": 20.04, "share_of_copy_bandwidth": 0.7}
    slow = row | {"torch_microseconds": 900.0, "ratio_to_torch": 45.0}
    row |= {"torch_microseconds": None, "ratio_to_torch": None}
    assert measure.delta_line(slow) == "| h | 16 | 15 | 8 | 60.0 | 20.0 | 70 | 900.0 | 45.00 |"
    assert measure.delta_line(row).endswith("| 70 | - | - |")
    assert measure.HEAD.count("|") == measure.delta_line(row).count("|")
    assert len(list(measure.works())) == 14


def test_a_row_of_the_table_of_experts(bench: ModuleType) -> None:
    measure = importlib.import_module("measure_experts")
    row = {
        "experts": "e",
        "tokens": 8,
        "distinct_experts": 28.5,
        "megabytes": 377.2,
        "microseconds": 100.04,
    }
    row |= {
        "share_of_copy_bandwidth": 0.9,
        "torch_microseconds": 320.0,
        "ratio_to_torch": 3.2,
        "torch_way": "w",
    }
    assert (
        measure.line(row | {"triton_microseconds": None})
        == "| e | 8 | 28.5 | 377 | 100.0 | 90 | 320.0 | 3.20 | w | - |"
    )
    assert measure.line(row | {"triton_microseconds": 150.0}).endswith("| w | 150.0 |")
    assert measure.HEAD.count("|") == measure.line(row | {"triton_microseconds": None}).count(
        "|"
    )


def test_a_way_is_left_out_only_where_it_does_not_run_at_all(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = importlib.import_module("measure_experts")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def fails(_: object) -> object:
        raise RuntimeError("no such GPU")

    assert measure.unusable_reason("grouped products", fails, {}) == "RuntimeError: no such GPU"
    assert measure.unusable_reason("grouped products", lambda _: None, {}) is None
    assert measure.unusable_reason(measure.EVERYWHERE, fails, {}) is None, (
        "its error is the measurement's"
    )


_TRITON = """
import experts, experts_triton
work = experts.MoeWork(experts.Experts("small", 96, 64, 3, 2), 9)
tensors = work.tensors(work.weights("cpu"), 1)
floats = ("x", "gate_up_bias", "down_bias")
# The interpreter does not multiply bfloat16.
tensors |= {name: tensors[name].float() for name in floats}
tensors["out"] = experts_triton.triton_way(work, tensors)(tensors)
experts.check_experts(work, tensors)
print("agrees")
"""


def test_the_triton_kernel_agrees() -> None:
    """In Triton's interpreter, which needs no GPU, and a process of its own."""
    pytest.importorskip("triton")
    paths = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", _TRITON],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout == "agrees\n", done.stderr


def test_without_a_gpu_it_says_so() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCH / "bench.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)
    assert done.returncode == 1
    assert done.stderr.startswith("bench.py needs a CUDA GPU")
