"""Whether a processor has the arithmetic of a checkpoint's quantized weights, asked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.config.build import Arch
from trtllm_dflash.config.quantization import FORMATS
from trtllm_dflash.errors import BuildError


def require_arithmetic(checkpoints: Mapping[str, Checkpoint[Any]], arch: Arch) -> None:
    """Check that every quantized linear of the models (by role) can be computed on `arch`.

    Raises:
        BuildError: naming the format, who has its arithmetic, and what this arch can have instead.
    """
    for role, checkpoint in checkpoints.items():
        for row in checkpoint.formats.values():
            if arch.name in row.archs:
                continue
            others = [other.algo for other in FORMATS.values() if arch.name in other.archs]
            instead = f"Quantize it to {' or '.join(others)}" if others else "Use the unquantized original"
            raise BuildError(
                f"--arch {arch.name} ({arch.hardware}) has no arithmetic for {row.algo} ({row.meaning}), in which the "
                f"{role} {checkpoint.directory} is stored. {row.hardware} has it: --arch {', '.join(row.archs)}. "
                f"{instead} for {arch.name}"
            )
