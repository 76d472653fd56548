"""MXFP4 blocks: the best ones there are, and the numbers that transformers reads from them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from trtllm_dflash.quantize.mxfp4 import decode, encode

LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def weights(rows: int = 24, columns: int = 96, seed: int = 0) -> torch.Tensor:
    """Return BF16 numbers of very different sizes by row."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (6 * torch.rand(rows, 1, generator=generator) - 4)
    return (torch.randn(rows, columns, generator=generator) * sizes).bfloat16()


def nearest(groups: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Return the nearest numbers of a block's grid by trying all of them, in float64."""
    signed = torch.cat([-LEVELS.flip(0), LEVELS])
    grid = signed * 2.0 ** exponent[..., None].double()
    distances = (groups.double()[..., None] - grid[..., None, :]).abs()
    return grid.gather(-1, distances.argmin(-1))


def test_no_other_exponent_has_a_smaller_error() -> None:
    values = weights()
    groups = values.double().reshape(24, 3, 32)
    blocks, scales = encode(values)
    ours = (decode(blocks, scales).double().reshape(24, 3, 32) - groups).square().sum(-1)
    chosen = scales.int() - 127
    others = []
    for shift in range(-4, 5):
        found = nearest(groups, chosen + shift)
        others.append((found - groups).square().sum(-1))
    torch.testing.assert_close(ours, torch.stack(others).amin(0), rtol=1e-6, atol=0)
    assert len({int(step) for step in chosen.flatten()}) > 8


def test_the_next_exponent_is_taken_where_cutting_costs_more() -> None:
    """7.9 alone is cut to 6 or becomes 8; beside many small numbers cutting is cheaper."""
    alone = torch.zeros(1, 32)
    alone[0, 0] = 7.9
    crowd = torch.full((1, 32), 0.5)
    crowd[0, 0] = 6.4
    for values, largest in ((alone, 8.0), (crowd, 6.0)):
        found = decode(*encode(values))
        assert found[0, 0] == largest
        assert torch.equal(found[0, 1:], values[0, 1:])


def test_numbers_of_the_format_come_back_exactly() -> None:
    """Whatever a block's largest number is; so a published checkpoint survives a round trip."""
    generator = torch.Generator().manual_seed(1)
    signs = 1 - 2 * torch.randint(0, 2, (64, 64), generator=generator)
    for top in range(1, 8):
        codes = torch.randint(0, top + 1, (64, 64), generator=generator)
        exponents = torch.randint(-126, 126, (64, 2), generator=generator)
        values = LEVELS.float()[codes] * signs * 2.0 ** exponents.repeat_interleave(32, 1)
        assert torch.equal(decode(*encode(values.bfloat16())), values)


def test_ties_are_even_and_zeros_have_no_sign() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0, 4.0])
    values = torch.zeros(1, 32)
    values[0, : len(ties)] = ties
    blocks, scales = encode(values)
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -4.0, 4.0])
    assert torch.equal(decode(blocks, scales)[0, : len(ties)], even)
    assert not bool(((blocks & 15 == 8) | (blocks >> 4 == 8)).any())


def test_extreme_numbers_stay_finite() -> None:
    """A block of zeros has the least exponent: it must not raise a tensor's largest one."""
    values = torch.zeros(3, 32, dtype=torch.bfloat16)
    values[1] = torch.finfo(torch.bfloat16).max
    values[2] = torch.finfo(torch.bfloat16).tiny
    blocks, scales = encode(values)
    assert scales.flatten().tolist() == [0, 252, 0]
    found = decode(blocks, scales)
    assert torch.equal(found[0], torch.zeros(32))
    assert torch.equal(found[1], torch.full((32,), 6 * 2.0**125))
    assert torch.equal(found[2], torch.full((32,), 2.0**-126))


def test_transformers_reads_the_same_numbers() -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = encode(weights())
    theirs = mxfp4.convert_moe_packed_tensors(blocks[None], scales[None], dtype=torch.bfloat16)
    assert torch.equal(theirs[0].T.float(), decode(blocks, scales))


@pytest.mark.slow
def test_errors_are_below_modelopts() -> None:
    pytest.importorskip("modelopt")
    from modelopt.torch.quantization.qtensor import MXFP4QTensor

    values = weights(64, 320)
    ours = (decode(*encode(values)) - values.float()).reshape(64, 10, 32)
    packed, scale = MXFP4QTensor.quantize(values, 32)
    theirs = packed.dequantize(scale=scale, block_sizes={-1: 32}).float() - values.float()
    theirs = theirs.reshape(64, 10, 32)
    assert bool((ours.square().sum(-1) <= theirs.square().sum(-1) * (1 + 1e-6)).all())
    assert float(ours.square().sum()) < float(theirs.square().sum())
