"""What `make gpu-check` measures, as far as it goes without a GPU: its references and its checks.

Our kernels run in the emulator, on torch tensors of the CPU.
"""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")

from plugins.bench.gpu_check import (
    attention_work,
    delta_work,
    expert_work,
    speed_attention,
    speed_choices,
    speed_delta,
    speed_experts,
    speed_linear,
    torch_operators,
)
from plugins.bench.gpu_check.cubins import variants
from plugins.bench.gpu_check.operators import Operator
from plugins.bench.gpu_check.parts import PARTS, Part
from plugins.bench.gpu_check.torch_operators import WrongResultError, add_best_other, launcher
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.plugin_nodes import kernel_variant

ROOT = Path(__file__).parents[2]
SMALL = attention_work.Shape("small", 8, 2, 64)
WORKS = {
    "equal": attention_work.Work(SMALL, 4, (150, 150)),
    "mixed": attention_work.Work(SMALL, 4, (170, 30, 30)),
    "sinks": attention_work.Work(replace(SMALL, sinks=True), 4, (150, 9)),
    "window": attention_work.Work(replace(SMALL, window=40), 4, (150,)),
    "fp8": attention_work.Work(SMALL, 4, (90, 33), fp8=True),
    "draft": attention_work.Work(SMALL, 4, (60, 33), context_rows=3, causal=False),
    "prompt": attention_work.Work(SMALL, 70, (0,)),
}


def _launch(module: Any, operator: str, fields: Any, tensors: Any) -> None:
    launcher(Operator(operator, fields, lambda *_: module), tensors)(tensors)


@pytest.mark.parametrize("name", WORKS)
def test_both_sides_of_a_measurement_agree(module: Any, name: str) -> None:
    """Our kernel passes the check, and so does every way of PyTorch's that runs here."""
    work = WORKS[name]
    tensors, last = work.tensors("cpu", 1), len(work.contexts) - 1
    with pytest.raises(WrongResultError, match=f"slot {last}: a head row is off by"):
        attention_work.check(work, tensors, last)  # nothing is written yet
    fresh = {key: tensor.clone() for key, tensor in tensors.items()}
    _launch(module, work.operator, work.fields, tensors)
    for slot in range(last + 1):
        attention_work.check(work, tensors, slot)
    ways = 0
    for way in speed_attention.ways(work, "cpu", fresh).values():
        try:
            way(fresh)  # checks itself
        except RuntimeError:  # a backend that this CPU does not have
            continue
        ways += 1
    assert ways >= 1 or work.fp8
    attention_work.write_caches(work, fresh)
    for cache in ("key_cache", "value_cache"):
        assert torch.equal(fresh[cache].float(), tensors[cache].float())


def test_bytes_and_operations_are_those_that_are_seen() -> None:
    work = attention_work.Work(replace(SMALL, window=40), 1, (150, 10))
    row = 2 * 2 * 64 * 2  # keys and values of two heads in bfloat16
    assert work.bytes == row * (40 + 11) + 2 * (2 * row + 2 * 2 * 8 * 64)
    assert work.operations == 4 * (40 + 11) * 8 * 64
    halves = attention_work.Work(SMALL, 1, (150,), fp8=True).bytes
    assert halves < 0.6 * attention_work.Work(SMALL, 1, (150,)).bytes
    assert attention_work.Work(SMALL, 3, (5,)).operations == 4 * (3 * 5 + 6) * 8 * 64


@pytest.mark.parametrize("sampling", speed_choices.SAMPLING)
def test_accept_is_checked(module: Any, sampling: str) -> None:
    settings, greedy = speed_choices.SAMPLING[sampling], sampling == "greedy"
    tensors = speed_choices.accept_tensors(2, 5, 3001, settings, 0, "cpu")
    with pytest.raises(WrongResultError, match="accept of 5 rows"):
        speed_choices.check_accept(tensors, greedy=greedy)
    _launch(module, "DFlashAccept", {}, tensors)
    speed_choices.check_accept(tensors, greedy=greedy)


def test_a_tensor_that_nobody_gives_is_named(module: Any) -> None:
    """A kernel would read it from address 0."""
    tensors = speed_choices.accept_tensors(2, 5, 3001, {}, 0, "cpu")
    del tensors["adjusts"], tensors["num_new"]
    with pytest.raises(ValueError, match="DFlashAccept needs adjusts, num_new"):
        _launch(module, "DFlashAccept", {}, tensors)


def test_select_is_checked(module: Any) -> None:
    tensors = speed_choices.select_tensors(2, 3, 3001, 0, "cpu")
    _launch(module, "DFlashSelect", {"top_k": 16}, tensors)
    assert torch.equal(tensors["places"], speed_choices.select_by_rows(tensors))


@pytest.mark.parametrize("tokens", [1, 5, 19])
def test_experts_are_checked(module: Any, tokens: int) -> None:
    """Our kernels and PyTorch's ways pass the check; another's routing does not."""
    work = expert_work.MoeWork(expert_work.Experts("small", 64, 96, 5, 2), tokens)
    weights = work.weights("cpu")
    tensors = work.tensors(weights, 1)
    assert 1e-2 < float(expert_work.dequantize(tensors, "gate_up", 0, torch.float64).std()) < 2
    with pytest.raises(WrongResultError, match="MoeWork"):
        expert_work.check_experts(work, tensors)
    _launch(module, "DFlashMoE", work.fields, tensors)
    expert_work.check_experts(work, tensors)
    assert work.bytes(tensors) > work.distinct(tensors) * 17 * 3 * 64 * 96 / 32
    ways = 0
    wide = expert_work.in_bfloat16(weights)
    for name, way in speed_experts.other_ways(work, [tensors], wide).items():
        try:
            way(tensors)  # checks itself
        except (RuntimeError, AttributeError):  # grouped products, which not every torch has
            assert name != "PyTorch, expert by expert"
            continue
        ways += 1
    assert ways >= 1
    tensors["router_logits"] = tensors["router_logits"].flip(-1)
    with pytest.raises(WrongResultError, match="MoeWork"):
        expert_work.check_experts(work, tensors)


@pytest.mark.parametrize(("rows", "known", "open_rows"), [(4, 1, 3), (6, 6, 0)])
def test_gated_delta_is_checked(module: Any, rows: int, known: int, open_rows: int) -> None:
    """Our kernels pass the check; nothing written, or another's gates, do not."""
    heads = delta_work.DeltaHeads("small", 1, 2)
    work = delta_work.DeltaWork(heads, rows, known, open_rows, batch=2)
    tensors = work.tensors("cpu", 1)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    wanted = delta_work.delta_by_rows(work, tensors, torch.float64)
    with pytest.raises(WrongResultError, match="out is off by inf"):
        delta_work.check_delta(work, wanted, tensors)
    _launch(module, "DFlashGatedDelta", work.fields, tensors)
    delta_work.check_delta(work, wanted, tensors)
    in_float32 = delta_work.delta_by_rows(work, before, torch.float32)
    tensors |= dict(zip(("out", "state"), in_float32, strict=True))
    delta_work.check_delta(work, wanted, tensors)
    before["gates"] = before["gates"].flip(-1)
    other = delta_work.delta_by_rows(work, before, torch.float64)
    with pytest.raises(WrongResultError):
        delta_work.check_delta(work, other, tensors)
    assert work.bytes > 2 * 2 * 4 * 2 * 128 * 128


def test_block_linear_is_checked(module: Any) -> None:
    work = speed_linear.LinearWork(3, 130, 272)
    tensors = work.tensors("cpu", 0)
    with pytest.raises(WrongResultError, match="LinearWork"):
        speed_linear.check_linear(work, tensors)
    _launch(module, "DFlashBlockLinear", {}, tensors)
    speed_linear.check_linear(work, tensors)


def test_kernels_of_all_measurements_are_compiled_before() -> None:
    compiled = variants(small=False)
    works = []
    for name in ("equal", "mixed", "fp8", "draft", "prompt"):
        works += speed_attention.works(name, small=False)
    for work in works:
        sizes = {key: size for key, size in work.fields.items() if isinstance(size, int)}
        spec = Operator(work.operator, work.fields, lambda *_: None).spec  # type: ignore
        assert kernel_variant(spec, sizes) in compiled
    assert KernelVariant("moe", (("weight_format", 1),)) in compiled
    assert len({str(work) for work in works}) == len(works)
    assert len(list(speed_delta.works(small=False))) == 14


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_function_of_each_part_is_there(part: Part) -> None:
    module, name = part.function.split(":")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    signature.bind("check", *part.arguments)


def test_the_best_other_way_is_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest counts; one that cannot run, or is wrong, is named with its reason."""
    times = {"slow": 3.0, "fast": 2.0, "slowest": 4.0}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def seconds(way: Any, sets: Any, **_: Any) -> float:
        return times[way({})]

    def fails(_: Any) -> Any:
        raise RuntimeError("no such GPU\nat all")

    monkeypatch.setattr(torch_operators, "seconds", seconds)
    ways: Any = {name: (lambda _, name=name: name) for name in times}
    row: dict[str, Any] = {}
    add_best_other(row, {**ways, "absent": fails}, [{}])
    assert row["other"] == "fast"
    assert row["other_microseconds"] == 2e6
    assert row["left out"] == "absent (no such GPU)"


_TRITON = """
from plugins.bench.gpu_check import expert_work, experts_triton
work = expert_work.MoeWork(expert_work.Experts("small", 96, 64, 3, 2), 9)
tensors = work.tensors(work.weights("cpu"), 1)
floats = ("x", "gate_up_bias", "down_bias")
# The interpreter does not multiply bfloat16.
tensors |= {name: tensors[name].float() for name in floats}
tensors["out"] = experts_triton.triton_way(work, tensors)(tensors)
expert_work.check_experts(work, tensors)
print("agrees")
"""


def test_the_triton_kernel_agrees() -> None:
    """In Triton's interpreter, which needs no GPU, and a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _TRITON],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.stdout == "agrees\n", done.stderr
