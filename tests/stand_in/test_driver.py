"""The stand-in driver is as strict as CUDA may be: each test shows a fault that it would find."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

from tests.stand_in import driver_calls
from tests.stand_in.driver_build import cuda_header
from tests.stand_in.process import StandIn

CASES = {
    "memory is garbage when it is allocated": driver_calls.fresh_memory,
    "a call without a context": driver_calls.without_context,
    "a copy beyond an allocation": driver_calls.copy_beyond,
    "a copy to memory that is not pinned": driver_calls.copy_to_pageable,
    "a copy between two GPUs": driver_calls.copy_between_gpus,
    "rows that overlap their pitch": driver_calls.rows_beyond_pitch,
    "an allocation in a capture": driver_calls.allocate_in_capture,
    "a wait in a capture": driver_calls.wait_in_capture,
    "a stream of another GPU": driver_calls.stream_of_another_gpu,
    "a kernel that the cubin lacks": driver_calls.unknown_kernel,
    "a cubin of another GPU": driver_calls.cubin_of_another_gpu,
    "a cubin of a newer GPU of its family": driver_calls.cubin_of_newer_gpu,
    "what is no cubin": driver_calls.no_cubin,
    "shared memory beyond 48 KB": driver_calls.shared_memory_unasked,
    "shared memory beyond the GPU's": driver_calls.shared_memory_beyond,
    "more threads than the kernel is for": driver_calls.too_many_threads,
    "a write beside an allocation": driver_calls.write_beside,
    "a write to freed memory": driver_calls.write_after_free,
    "what is not freed": driver_calls.leak,
    "a function that is not there": driver_calls.unsupported,
    "a private table": driver_calls.private_table,
    "late work": driver_calls.late_work,
    "early work": driver_calls.early_work,
    "host functions in order": driver_calls.host_functions,
}


# They compile kernels.
SLOW = ("kernel", "cubin", "shared memory")


def _case(name: str) -> Any:
    marks = [pytest.mark.slow] if any(word in name for word in SLOW) else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("case", map(_case, CASES))
def test_strictness(quick_stand_in: StandIn, case: str) -> None:
    found, expected = quick_stand_in.run(CASES[case])
    assert found == expected


def test_every_public_function_is_there(quick_stand_in: StandIn) -> None:
    header = cuda_header()
    assert header is not None
    names = driver_calls.public_names(header)
    assert len(names) > 400
    assert quick_stand_in.run(driver_calls.missing, names) == []
