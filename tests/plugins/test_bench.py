"""The benchmark as far as it goes without a GPU: its references, its checks, its message."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.plugins.library import PLUGINS

torch = pytest.importorskip("torch")
BENCH = PLUGINS / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench.py as a module; the others that it imports lie beside it."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("bench")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_both_sides_of_a_measurement_agree(bench: ModuleType, emulated_path: Path, index: int) -> None:
    """Our kernel (emulated) passes the check; so does every way of PyTorch's, where the shape has no sinks."""
    shape, kernels = bench.SHAPES[index], bench.Kernels(emulated_path)
    work = bench.Work(shape, rows=4, batch=2, context=150)
    tensors = work.tensors("cpu", 1)
    with pytest.raises(SystemExit, match=r"WRONG RESULT: .* slot 1"):  # nothing is written yet
        bench.check(work, tensors, 1)
    kernels.verify_attention(tensors, kernels.attention_workspace(tensors), scale=shape.scale, window=shape.window)
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


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(BENCH / "bench.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("bench.py needs a CUDA GPU")
