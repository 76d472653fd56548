"""Each kernel on the GPU against float64, through the driver alone: no torch, no TensorRT."""

from __future__ import annotations

from typing import Any

import numpy as np

from plugins.bench.gpu_check.cases import Arrays, Checked, cases_of
from plugins.bench.gpu_check.cubins import loader
from plugins.bench.gpu_check.operators import Load, Operator
from plugins.bench.gpu_check.rows import Check
from tests.plugins.library import Placed, poisoned
from tests.plugins.operator_arrays import fetch_outputs, place
from trtllm_dflash.hardware.cuda import Cuda


class DriverMemory:
    """Device memory of the driver's, filled and read through pinned memory in the stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def put(self, data: np.ndarray) -> tuple[int, Any]:
        """Return the address of a copy of `data` (bytes), and what `get` needs."""
        pinned = self._cuda.allocate_pinned(data.size, "a check")
        pinned[:] = data
        address = self._cuda.allocate(data.size, "a check")
        self._cuda.copy(address, pinned.ctypes.data, data.size)
        return address, (address, pinned)

    def get(self, kept: tuple[int, np.ndarray]) -> np.ndarray:
        """Return the bytes of such a copy once the stream is empty."""
        address, pinned = kept
        self._cuda.copy(pinned.ctypes.data, address, pinned.size)
        self._cuda.synchronize()
        return pinned.copy()


def run(case: Checked, arrays: Arrays, load: Load) -> Arrays:
    """Return the outputs of an operator; AssertionError if anything else was written."""
    cuda = Cuda()
    memory = DriverMemory(cuda)
    operator = Operator(case.operator, case.fields, load)
    placed, shapes = place(operator.spec, arrays, memory)
    names = [tensor.name for tensor in operator.spec.plugin_inputs if tensor.name in arrays]
    dims = {name: arrays[name].shape for name in names}
    dims |= dict(zip((tensor.name for tensor in operator.spec.outputs), shapes, strict=True))
    addresses = {name: placed[name].address for name in names}
    for tensor in operator.spec.outputs:
        if not tensor.aliases:
            addresses[tensor.name] = placed[tensor.name].address
    workspace = Placed(memory, poisoned([operator.workspace_bytes(dims)], np.int8))
    operator.launch(dims, addresses, workspace.address, cuda.stream)
    workspace.fetch("workspace", written=True)
    return fetch_outputs(operator.spec, placed)


def check_kernels(check: Check, source: str) -> None:
    """Check the cases of a kernel source, a row for each.

    It runs twice on the same inputs: a second result that differs is a race.
    """
    load = loader(check.folder)
    for case in cases_of(source, small=check.small):
        with check.case(case.name):
            given = case.inputs()
            got = run(case, given, load)
            case.verify(given, got)
            for name, again in run(case, given, load).items():
                bits = (array.view(np.uint8) for array in (got[name], again))
                np.testing.assert_array_equal(*bits, err_msg=f"{name} of a second run")
