"""The table of GPUs."""

from __future__ import annotations

import pytest

from trtllm_dflash.catalog.gpus import GPUS, GpuSpec, gpus_of
from trtllm_dflash.hardware.archs import ARCHS


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_the_table_of_gpus(gpu: GpuSpec) -> None:
    assert ARCHS[gpu.arch].is_gpu
    assert gpu.source
    assert (gpu.fp8_tflops is not None) == ARCHS[gpu.arch].has_fp8
    assert (gpu.fp4_tflops is not None) == (gpu.arch in ("sm100", "sm103", "sm120", "sm121"))
    if gpu.fp8_tflops:
        # One datapath; some figures are rounded.
        assert gpu.fp8_tflops == pytest.approx(2 * gpu.bf16_tflops, rel=0.02)
    assert gpus_of(gpu.arch)


def test_every_gpu_arch_has_a_gpu() -> None:
    assert all(gpus_of(name) for name, arch in ARCHS.items() if arch.is_gpu)
