"""A target and its drafter as work: the steps of plain decoding, of DFlash and of other drafters,
and a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx_ir as ir

from trtllm_dflash.checkpoint.from_config import drafter_headers, target_headers
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.count import ACTIVATION_BYTES, Work, count
from trtllm_dflash.estimate.known import KnownDrafter, KnownTarget
from trtllm_dflash.estimate.precision import Precision
from trtllm_dflash.graph.step import build_step

_CACHE_LEN = 64  # of the graph's rotary tables, which cost memory here and no time there


@dataclass(frozen=True)
class Pair:
    """A target, its drafter and how both are stored. Graphs are built once; counting takes
    milliseconds.
    """

    target: KnownTarget
    drafter: KnownDrafter
    precision: Precision

    def plain(self) -> tuple[Work, ...]:
        """A step of the target alone: one token."""
        return self.forward(1, 1)

    def forward(self, width: int, rows: int) -> tuple[Work, ...]:
        """The target alone on `width` tokens, of which the last `rows` decide something: a prompt,
        or a tree.
        """
        return _works(self, 1, width, rows)

    def dflash(self, block_size: int, draft_len: int) -> tuple[Work, ...]:
        """A step that verifies `draft_len` drafts and drafts a block of `block_size`.

        Raises:
            UsageError: for more drafts than the block has, or a block larger than the drafter's.
        """
        if not 1 <= draft_len < block_size <= self.drafter.config.block_size:
            raise UsageError(
                f"{draft_len} drafts of a block of {block_size} cannot be had from a drafter that"
                f" was trained with blocks of {self.drafter.config.block_size}"
            )
        return _works(self, block_size, draft_len + 1, draft_len + 1)

    def memory_bytes(self, batch: int, context: int) -> float:
        """Weights and caches. The drafter's head and embedding are the target's."""
        config, block = self.target.config, self.drafter.config.block_size
        total = (
            0.0
            if config.tie_word_embeddings
            else config.vocab_size * config.hidden_size * ACTIVATION_BYTES
        )
        for work in self.dflash(block, block - 1):
            if work.kind != "head" or work.part != "drafter":
                total += work.weight_bytes * (work.experts.count if work.experts else 1)
            total += batch * min(context, work.window or context) * work.position_bytes
        return total


@cache
def _works(pair: Pair, block_size: int, width: int, rows: int) -> tuple[Work, ...]:
    """All work of a step; a block of 1 is the target alone."""
    return tuple(
        count(
            _graph(pair.target, pair.drafter if block_size > 1 else None, block_size),
            width=width,
            rows=rows,
            precision=pair.precision,
        )
    )


@cache
def _graph(target: KnownTarget, drafter: KnownDrafter | None, block_size: int) -> ir.Model:
    headers = drafter_headers(drafter.config) if drafter else None
    return build_step(
        target_headers(target.config),
        headers,
        dtype="bfloat16",
        cache_len=_CACHE_LEN,
        block_size=block_size,
    )
