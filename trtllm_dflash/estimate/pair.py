"""A target and its drafter: the kernels of their steps, and the memory that they need."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantization_checks import NEVER_QUANTIZED
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.formats import DRAFTER, UNQUANTIZED, PairFormats
from trtllm_dflash.estimate.workload import (
    ACTIVATION_BYTES,
    ROUTER,
    KernelCost,
    drafter_costs,
    target_costs,
)
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A target, its drafter, and the formats in which both are stored."""

    target: Checkpoint[TargetConfig]
    drafter: Checkpoint[DrafterConfig]
    formats: PairFormats

    def plain_step(self) -> tuple[KernelCost, ...]:
        """Return the kernels of a step of the target alone: one token."""
        return self.target_pass(1, 1)

    def target_pass(self, width: int, rows: int) -> tuple[KernelCost, ...]:
        """Return the target's kernels for `width` tokens, of which the last `rows` are decided.

        A prompt decides one row, the tree of an EAGLE-3 drafter all of them.
        """
        return tuple(target_costs(self.target.config, self.formats, width=width, rows=rows))

    def dflash_step(self, block_size: int, draft_len: int) -> tuple[KernelCost, ...]:
        """Return the kernels of a step that verifies `draft_len` drafts and drafts a block.

        Raises:
            UsageError: for more drafts than the block has, or a block larger than the drafter's.
        """
        largest = self.drafter.config.block_size
        if not 1 <= draft_len < block_size <= largest:
            raise UsageError(
                f"{draft_len} drafts of a block of {block_size} cannot be had from a drafter that"
                f" was trained with blocks of {largest}"
            )
        width = draft_len + 1
        drafting = drafter_costs(
            self.drafter.config,
            self.formats,
            width=width,
            block_size=block_size,
            vocab_size=self.target.config.vocab_size,
        )
        return (*self.target_pass(width, width), *drafting)

    def whole_step(self) -> tuple[KernelCost, ...]:
        """Return the kernels of the step with the drafter's whole block."""
        block_size = self.drafter.config.block_size
        return self.dflash_step(block_size, block_size - 1)

    def memory_bytes(self, batch: int, context: int) -> float:
        """Return the size of weights and caches. The drafter uses the target's two tables."""
        config, total = self.target.config, 0.0
        if not config.tie_word_embeddings:
            total += config.vocab_size * config.hidden_size * ACTIVATION_BYTES
        for cost in self.whole_step():
            copies = cost.experts.count if cost.experts else 1
            if cost.operation != "head" or cost.part != DRAFTER:
                total += cost.weight_bytes * copies
            positions = min(context, cost.window or context)
            total += batch * positions * cost.position_bytes
        return total

    def format_counts(self) -> dict[str, Counter[str]]:
        """Return how many linears, experts, heads and drafter's linears have which format."""
        roles = {"linear": "linears", "experts": "experts", "head": "head"}
        counts: dict[str, Counter[str]] = {role: Counter() for role in (*roles.values(), DRAFTER)}
        for cost in self.whole_step():
            leaf = cost.module.rpartition(".")[2]
            if not leaf or leaf in (*NEVER_QUANTIZED, ROUTER):
                continue
            is_drafter = cost.part == DRAFTER
            if not is_drafter or cost.operation == "linear":
                counts[DRAFTER if is_drafter else roles[cost.operation]][cost.format.name] += 1
        return counts

    def usual_formats(self) -> dict[str, str]:
        """Return the most frequent format of linears, experts, head and drafter."""
        return {
            role: counts.most_common(1)[0][0] if counts else UNQUANTIZED
            for role, counts in self.format_counts().items()
        }
