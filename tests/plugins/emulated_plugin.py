"""Plugins whose kernels are those of the emulated library: TensorRT's calls without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.plugins.library import HostMemory, Library, Placed, poisoned
from tests.plugins.operator_arrays import fetch_outputs, place
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins import plugin

KERNELS = b"the emulated library"


class EmulatedModule:
    """A `CudaModule` whose kernels are those of the emulated library."""

    def __init__(self, library: Library, starter: Path, processors: int) -> None:
        self._kernels, self._start = library.c, ctypes.CDLL(str(starter)).start_kernel
        self.processors = processors
        self.processor_shared_bytes = library.processors()[1]
        self.launched: list[tuple[str, int]] = []

    def launch(self, launches: Sequence[Launch], stream: int) -> None:
        for one in launches:
            self.launched.append((one.kernel, stream))
            kernel = ctypes.cast(getattr(self._kernels, one.kernel), ctypes.c_void_p)
            grid = (ctypes.c_uint * 3)(*one.grid)
            size = ctypes.sizeof(one.params)
            failed = self._start(
                kernel, grid, one.threads, one.shared_bytes, ctypes.byref(one.params), size
            )
            assert not failed, one.kernel


def enqueue(
    name: str, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Call the plugin as TensorRT would, and return its outputs; guards on all sides hold."""
    spec, memory = OPS[name], HostMemory()
    kept = [tensor for tensor in spec.plugin_inputs if tensor.name in arrays]
    placed, outside = place(spec, arrays, memory)

    def descs(dims: Sequence[tuple[int, ...]]) -> list[Any]:
        return [SimpleNamespace(dims=d, max=d, min=d) for d in dims]

    made = plugin.StepPlugin(spec, numbers, b"digest", KERNELS).attach_to_context(None)
    described = descs([arrays[tensor.name].shape for tensor in kept]), descs(outside)
    workspace = Placed(memory, poisoned([made.get_workspace_size(*described)], np.int8))
    reads, writes = (
        [placed[tensor.name].address for tensor in tensors] for tensors in (kept, spec.outputs)
    )
    made.enqueue(*described, reads, writes, workspace.address, 77)
    workspace.fetch("workspace", written=True)
    return fetch_outputs(spec, placed)
