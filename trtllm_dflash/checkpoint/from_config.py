"""Checkpoints made of a configuration alone: every tensor's name, type and shape, and no file.

Enough to plan a build, or to build a step's graph and count what it reads; none of it can run.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS
from trtllm_dflash.checkpoint.formats import Quantization
from trtllm_dflash.checkpoint.loader import Checkpoint, Config
from trtllm_dflash.checkpoint.quantized_tensors import Quantizable, StoredSpec, expected_tensors
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.checkpoint.text_part import text_quantization
from trtllm_dflash.models.tensor_specs import expand_specs

_NO_FILE = "no-such-file.safetensors"
_UNQUANTIZED = Quantization()


def checkpoint_of_config(
    config: Config, quantization: Quantization = _UNQUANTIZED, name: str = "."
) -> Checkpoint[Config]:
    """Return the checkpoint that a model of this configuration would have.

    What is not quantized is BF16.
    """
    directory = Path(name)
    file = directory / _NO_FILE
    quantization = text_quantization(quantization, config.tensors)
    rows = expand_specs(config.tensors.used, config)
    formats = Quantizable.from_rows(rows, config).formats(quantization)
    tensors = {
        name: _info(file, name, stored)
        for name, stored in expected_tensors(rows, config, formats, quantization).items()
    }
    return Checkpoint(directory, config, tensors, "BF16", {}, quantization, formats)


def has_files(checkpoint: Checkpoint[Any]) -> bool:
    """Return whether a checkpoint was read from files, and not made of a configuration alone."""
    return all(info.path.name != _NO_FILE for info in checkpoint.tensors.values())


def _info(path: Path, name: str, stored: StoredSpec) -> TensorInfo:
    dtype = "BF16" if "BF16" in stored.dtypes else stored.dtypes[0]
    return TensorInfo(
        name, dtype, stored.shape, path, 0, prod(stored.shape) * DTYPE_BITS[dtype] // 8
    )
