"""Checkpoints of which only the headers exist: enough to build a step's graph, and nothing of it can be run."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TypeVar

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.names import DRAFTER_NAMES, TARGET_NAMES, NameTable, expand, sizes_of
from trtllm_dflash.checkpoint.safetensors import DTYPE_BITS, TensorInfo
from trtllm_dflash.config.drafter import DrafterConfig
from trtllm_dflash.config.target import TargetConfig

Config = TypeVar("Config", TargetConfig, DrafterConfig)
_DTYPE = "BF16"


def target_headers(config: TargetConfig) -> Checkpoint[TargetConfig]:
    """The checkpoint that a target of this configuration would have in BF16."""
    return _headers(config, TARGET_NAMES)


def drafter_headers(config: DrafterConfig) -> Checkpoint[DrafterConfig]:
    """The checkpoint that a drafter of this configuration would have in BF16."""
    return _headers(config, DRAFTER_NAMES)


def _headers(config: Config, table: NameTable) -> Checkpoint[Config]:
    nowhere = Path("no-such-file.safetensors")
    tensors = {}
    for name, row in expand(table.used, config).items():
        shape = tuple(sizes_of(row, config))
        tensors[name] = TensorInfo(name, _DTYPE, shape, nowhere, 0, prod(shape) * DTYPE_BITS[_DTYPE] // 8)
    return Checkpoint(nowhere.parent, config, tensors, _DTYPE, {})
