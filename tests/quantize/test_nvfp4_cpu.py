"""NVFP4 on the CPU, against values worked out by hand and ModelOpt's packed weights."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("modelopt")

import torch

from trtllm_dflash.quantize import nvfp4_cpu

pytestmark = pytest.mark.slow

GRID = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def with_scale_one(values: list[float]) -> torch.Tensor:
    """Rounded as one block whose two scales are 1: its maximum is 6, its tensor's 6 · 448."""
    block = torch.tensor([*values, *[0.0] * (15 - len(values)), 6.0])
    return nvfp4_cpu.fake_quantize(block, torch.tensor(6.0 * 448.0))[: len(values)]


def test_fake_quantize_keeps_grid_values() -> None:
    assert with_scale_one(GRID).tolist() == GRID
    assert with_scale_one([-value for value in GRID]).tolist() == [-value for value in GRID]


def test_fake_quantize_rounds_ties_to_even() -> None:
    assert with_scale_one([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]).tolist() == [
        0.0,
        1.0,
        1.0,
        2.0,
        2.0,
        4.0,
        4.0,
    ]


def test_fake_quantize_rounds_near_ties_to_the_nearer() -> None:
    values = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert with_scale_one((values + 1e-3).tolist()).tolist() == GRID[1:]
    assert with_scale_one((values - 1e-3).tolist()).tolist() == GRID[:-1]


def test_fake_quantize_scales_every_block_in_e4m3() -> None:
    values = torch.zeros(2, 32)
    values[0, 0], values[0, 16], values[1, 31] = 448.0, 0.37, -7.0
    got = nvfp4_cpu.fake_quantize(values, values.abs().max())
    global_scale = 448.0 / (6 * 448)
    for row, column in ((0, 0), (0, 16), (1, 31)):
        largest = values[row, column].abs().item()
        step = (
            torch.tensor(largest / 6 / global_scale).to(torch.float8_e4m3fn).float()
            * global_scale
        )
        assert got[row, column].item() == pytest.approx(
            np.sign(values[row, column].item()) * 6 * step.item(), rel=1e-6
        )
    assert (got != 0).sum() == 3


def test_fake_quantize_of_a_tiny_block_is_zero() -> None:
    values = torch.zeros(32)
    values[0], values[16] = 1.0, 1e-7
    got = nvfp4_cpu.fake_quantize(values, torch.tensor(1.0))
    assert got[16] == 0
    assert torch.isfinite(got).all()


def test_fake_quantize_saturates_beyond_the_maximum() -> None:
    values = torch.full((16,), 10.0)
    assert nvfp4_cpu.fake_quantize(values, torch.tensor(1.0)).max() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fake_quantize_keeps_dtype_and_shape(dtype: torch.dtype) -> None:
    values = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = nvfp4_cpu.fake_quantize(values, values.abs().max())
    assert got.dtype == dtype
    assert got.shape == values.shape


def test_cpu_kernel_refuses_other_formats() -> None:
    nvfp4_cpu.install()
    with pytest.raises(NotImplementedError, match="quantizes to NVFP4"):
        torch.ops.tensorrt.dynamic_block_quantize_op(
            torch.ones(32), 32, torch.ones(1), 4, 2, 8, 8
        )
