"""The bytes of an engine whose weights are integers by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.checkpoint.block_integers import (
    BITS,
    bits_of,
    block_integer_bytes,
    is_rounded,
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
        for name, info in checkpoint.tensors.items():
            if not is_rounded(name, info):
                found[""] += num_weights(info) * bytes_per_weight
                continue
            rows, columns = info.shape
            bits = bits_of(name, precision)
            found[_ALGOS[bits]] += block_integer_bytes(rows, columns, bits)
    bits = bits_of(HEAD, precision)
    columns = checkpoints["target"].config.hidden_size
    found[_ALGOS[bits]] += block_integer_bytes(draft_rows, columns, bits)
    return {name: size for name, size in found.most_common() if size}
