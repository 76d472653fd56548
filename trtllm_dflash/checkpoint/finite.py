"""Checks over all bytes of a checkpoint: weights are finite, scales are above zero."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from trtllm_dflash.checkpoint import scan
from trtllm_dflash.checkpoint.dequantize import scalar
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.mxfp4 import MAX_EXPONENT_BYTE
from trtllm_dflash.checkpoint.quantized_tensors import PACKED_DTYPES, is_e8m0_scale, is_scale
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.log import Progress


def check_finite_with_progress(
    role: str, checkpoint: Checkpoint[Any], progress: Progress
) -> None:
    """Call `check_finite` for the target or the drafter (`role`), with its progress in bytes."""
    phase = f"checking the {role}"
    done = 0

    def read(size: int) -> None:
        nonlocal done
        done += size
        progress(phase, done, checkpoint.nbytes)

    check_finite(checkpoint, progress=read)


def check_finite(
    checkpoint: Checkpoint[Any], *, progress: Callable[[int], None] | None = None
) -> None:
    """Stream all used weights once; refuse a NaN or Inf, and a scale that is not above zero.

    The scale of a block of FP8 may be zero: what its maker computes of such codes is zero.
    `progress` gets the bytes of each chunk read. Memory: one chunk of 8 MiB and its mask.

    Raises: CheckpointError: for the first one found.
    """
    for name, info in checkpoint.tensors.items():
        if info.dtype == "U8":
            _check_exponents(name, info)  # any byte is a valid pair of E2M1 values
            if progress is not None:
                progress(info.nbytes)
            continue
        scales = is_scale(name)
        index = scan.first_nonfinite(info, progress=progress)
        if index is None and scales:
            index = scan.first_nonpositive(info, or_zero=_may_be_zero(name, checkpoint))
        if index is None and info.is_divisor and not isfinite(scalar(info)):
            index = (0,) * len(info.shape)
        if index is None:
            continue
        value = float(info.array()[index])
        problem = f"{info.path}: tensor {info.name} has {value} at index {list(index)}."
        if scales or info.dtype in PACKED_DTYPES:
            raise CheckpointError(
                f"{problem} A scale is a finite number above zero, and ModelOpt writes others for a"
                " weight (or an activation in calibration) that is zero throughout. Exclude that"
                " module, and quantize again."
            )
        raise CheckpointError(
            f"{problem} A weight that is not finite makes every output NaN; get an intact copy of"
            " the checkpoint."
        )


def _may_be_zero(name: str, checkpoint: Checkpoint[Any]) -> bool:
    module, _, last = name.rpartition(".")
    fmt = checkpoint.formats.get(module)
    if fmt is None or last != "weight_scale":
        return False
    return fmt.block_size is not None


def _check_exponents(name: str, info: TensorInfo) -> None:
    index = scan.first_above(info, MAX_EXPONENT_BYTE) if is_e8m0_scale(name) else None
    if index is not None:
        raise CheckpointError(
            f"{info.path}: tensor {name} has {info.array()[index]} at index {list(index)}. It is"
            f" the exponent of a scale, 2^(byte - 127), and at most {MAX_EXPONENT_BYTE}: beyond it"
            " numbers leave float32, and 255 is NaN. Get an intact copy of the checkpoint."
        )
