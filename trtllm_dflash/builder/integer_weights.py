"""The bytes of an engine whose weights are integers by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.checkpoint.block_integers import (
    BITS,
    bits_of,
    block_integer_bytes,
    experts_are_rounded,
    is_rounded,
    rows_and_columns,
)
from trtllm_dflash.checkpoint.held_weights import num_weights
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.models.draft_tables import HEAD

_ALGOS = {bits: precision.upper() for precision, bits in BITS.items()}


def integer_weight_bytes(
    checkpoints: Mapping[str, Checkpoint[Any]],
    precision: str,
    *,
    bytes_per_weight: int,
    draft_rows: int = 0,
) -> dict[str, int]:
    """Return the bytes of all weights of the models (by role), by format; "": not integers.

    `draft_rows` of the target's head are stored once more.
    """
    found = Counter[str]()
    for checkpoint in checkpoints.values():
        experts = has_integer_experts(checkpoint)
        for name, info in checkpoint.tensors.items():
            if not is_rounded(name, info, experts=experts):
                found[""] += num_weights(info) * bytes_per_weight
                continue
            bits = bits_of(name, precision)
            found[_ALGOS[bits]] += block_integer_bytes(*rows_and_columns(info), bits)
    bits = bits_of(HEAD, precision)
    columns = checkpoints["target"].config.hidden_size
    found[_ALGOS[bits]] += block_integer_bytes(draft_rows, columns, bits)
    return {name: size for name, size in found.most_common() if size}


def has_integer_experts(checkpoint: Checkpoint[Any]) -> bool:
    """Tell whether a model has experts, and of sizes that can be integers by block."""
    config = checkpoint.config
    moe = getattr(config, "moe", None)
    return moe is not None and experts_are_rounded(config.hidden_size, moe.intermediate_size)
