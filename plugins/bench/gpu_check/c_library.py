"""The plain C library on the GPU: built by CMake and nvcc, a case of each function of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from plugins.bench.gpu_check.cases import Arrays, Checked, cases_of
from plugins.bench.gpu_check.correct import DriverMemory
from plugins.bench.gpu_check.parts import KERNEL_SOURCES
from plugins.bench.gpu_check.rows import Check, SkippedError
from tests.plugins import adjust_reference as adjust
from tests.plugins import gated_delta_reference as delta
from tests.plugins import lookup_reference as lookup
from tests.plugins import moe_reference as moe
from tests.plugins import select_reference as select
from tests.plugins.library import PLUGINS, Library, poisoned
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.hardware.cuda_driver import load_driver
from trtllm_dflash.trt_plugins.params import argmax_plan

_TOOLS = ("nvcc", "cmake")


class DefaultStreamMemory(DriverMemory):
    """Device memory beside which launches are on the default stream, as the library's tests are."""

    def put(self, data: np.ndarray) -> tuple[int, Any]:
        """Return the address of a copy that is there when this returns."""
        found = super().put(data)
        self._cuda.synchronize()
        return found

    def get(self, kept: tuple[int, np.ndarray]) -> np.ndarray:
        """Return the bytes once the default stream is empty."""
        load_driver().call("cuStreamSynchronize", 0)
        return super().get(kept)


def check_library(check: Check) -> None:
    """Build the library for this GPU and run a case of each function, a row for each."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise SkippedError(f"the C library needs {' and '.join(missing)}, not found in PATH")
    path: list[Path] = []
    with check.case("build"):
        path.append(build(check.folder / "library"))
    if not path:
        return
    for source in KERNEL_SOURCES:
        for case in cases_of(source, small=True):
            with check.case(f"{case.operator}: {case.name}"):
                library = Library(path[0], DefaultStreamMemory(Cuda()), emulated=False)
                given = case.inputs()
                case.verify(given, call(library, case, given))


def build(folder: Path) -> Path:
    """Build the library for this GPU into `folder`, and return its path."""
    options = ["-S", str(PLUGINS), "-B", str(folder), "-DCMAKE_CUDA_ARCHITECTURES=native"]
    target = ["--build", str(folder), "--target", "dflash_kernels", "--parallel"]
    for arguments in (options, target):
        done = subprocess.run(
            ["cmake", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"cmake {arguments[0]}: {(done.stdout + done.stderr)[-250:]}")
    return folder / "libdflash_kernels.so"


def call(library: Library, case: Checked, given: Arrays) -> Arrays:
    """Return what the library's function for an operator gives, by the operator's names."""
    fields = case.fields
    if case.operator == "DFlashAccept":
        return library.accept(given)
    if case.operator == "DFlashArgmax":
        rows, vocab = given["logits"].shape
        arrays = {**given, "places": poisoned([rows], np.int64)}
        names = (*(tensor.name for tensor in OPS["DFlashArgmax"].inputs), "places")
        space = argmax_plan(rows=rows, vocab=vocab).workspace_bytes
        return library.call("dflash_argmax", arrays, names, ("places",), space)
    if case.operator == "DFlashLookup":
        return lookup.run(library, given)
    if case.operator == "DFlashAdjust":
        return adjust.run(library, given)
    if case.operator == "DFlashBlockLinear":
        return {"out": library.block_linear(given)}
    if case.operator == "DFlashSelect":
        return {"places": select.run(library, given, int(fields["top_k"]))}
    if case.operator == "DFlashMoE":
        names = [name for name, _ in moe.MoeOptions._fields_]
        return {"out": library.moe(given, moe.MoeOptions(*(fields[name] for name in names)))}
    if case.operator == "DFlashGatedDelta":
        heads = int(fields["num_key_heads"])
        slots = (delta.Slot(0, 0, 0),) * len(given["qkv"])
        group = len(given["a_log"]) // heads
        sizes = delta.Case(slots, given["qkv"].shape[1], heads, group)
        found = delta.run(library, sizes, given)
        return {"out": found["out"], **_written(found, "window", "state")}
    found = library.attention(
        "draft" if case.operator == "DFlashDraftAttention" else "verify",
        given,
        scale=float(fields["scale"]),
        window=int(fields["window_size"]),
        causal=bool(fields.get("causal", 1)),
    )
    return {"out": found["out"], **_written(found, "key_cache", "value_cache")}


def _written(found: Arrays, *names: str) -> Arrays:
    return {f"{name}_out": found[name] for name in names}
