"""The kernels of a pair's steps, and the memory that it needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from trtllm_dflash.checkpoint.formats import WeightFormat
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.workload import (
    ACCEPT,
    ACTIVATION_BYTES,
    DRAFTER,
    HEAD,
    TARGET,
    KernelCost,
    ModelCosts,
)
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.draft_tables import EMBEDDING
from trtllm_dflash.models.drafter import DrafterConfig

# Linears that no format is asked of.
_PLAIN = (
    *("fc", "router", "in_proj_a", "in_proj_b", "in_proj_ba", "shared_expert_gate"),
    *("kernel_projection", "hidden_projection"),
)
_ROLES = {"linear": "linears", "experts": "experts", "head": "head"}


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A target and its drafter, whose checkpoints say how modules are stored.

    All experts of a layer are one module of `target.formats`. `kv_cache` is the target's: the
    drafter's cache is never quantized.
    """

    target: Checkpoint[TargetConfig]
    drafter: Checkpoint[DrafterConfig]
    kv_cache: WeightFormat | None = None

    @property
    def _has_own_head(self) -> bool:
        return f"{HEAD}.weight" in self.drafter.tensors

    def plain_step(self) -> tuple[KernelCost, ...]:
        """Return the kernels of a step of the target alone: one token."""
        return self.target_pass(1, 1)

    def target_pass(
        self, width: int, rows: int, *, block_size: int = 1
    ) -> tuple[KernelCost, ...]:
        """Return the target's kernels for `width` tokens, of which the last `rows` are decided.

        A prompt decides one row, the tree of an EAGLE-3 drafter all of them. `block_size` is the
        engine's, 1 without a drafter.
        """
        config, formats = self.target.config, self.target.formats
        costs = ModelCosts(TARGET, config, formats)
        kernels = [costs.norm(width)]  # the embedding
        for index, window in enumerate(config.windows):
            layer = ModelCosts(
                TARGET, config.at_layer(index), formats, self.kv_cache, block_size
            )
            kernels += layer.layer(f"model.layers.{index}", width, window)
        # The gather of the rows that are decided, and the last norm.
        kernels += [costs.norm(rows), costs.norm(rows), costs.head(rows, config.vocab_size)]
        return (*kernels, replace(costs.choice(rows, config.vocab_size), part=ACCEPT))

    def dflash_step(self, block_size: int, draft_len: int) -> tuple[KernelCost, ...]:
        """Return the kernels of a step that verifies `draft_len` drafts and drafts a block.

        Raises:
            UsageError: for more drafts than the block has, or a block larger than the drafter's.
        """
        config = self.drafter.config
        vocab_size = config.draft_vocab_size or self.target.config.vocab_size
        if not 1 <= draft_len < block_size <= config.block_size:
            raise UsageError(
                f"{draft_len} drafts of a block of {block_size} cannot be had from a drafter that"
                f" was trained with blocks of {config.block_size}"
            )
        width = draft_len + 1
        formats = dict(self.drafter.formats)
        if not self._has_own_head and HEAD in self.target.formats:
            formats[HEAD] = self.target.formats[HEAD]
        costs = ModelCosts(DRAFTER, config, formats)
        features = config.num_taps * config.hidden_size
        rows = config.rows_of(block_size)
        kernels = [costs.norm(rows)]  # the embedding
        kernels += [costs.linear("fc", width, features, config.hidden_size), costs.norm(width)]
        for index, window in enumerate(config.windows):
            kernels += costs.layer(f"layers.{index}", rows, window, width + rows)
        kernels += [costs.norm(rows), costs.head(block_size - 1, vocab_size)]
        kernels.append(costs.choice(block_size - 1, vocab_size))
        if config.walk is not None:
            kernels += costs.walk(block_size - 1, config.walk)
        return (*self.target_pass(width, width, block_size=block_size), *kernels)

    def prompt_pass(self, width: int, *, drafts: bool) -> tuple[KernelCost, ...]:
        """Return the kernels for `width` tokens of a prompt, whose last row may be decided.

        With drafts their features become keys and values of the drafter.
        """
        if not drafts:
            return self.target_pass(width, 1)
        config = self.drafter.config
        kernels = self.target_pass(width, 1, block_size=config.block_size)
        costs = ModelCosts(DRAFTER, config, self.drafter.formats)
        features = config.num_taps * config.hidden_size
        kv_size = config.num_kv_heads * config.head_dim
        context = [costs.linear("fc", width, features, config.hidden_size), costs.norm(width)]
        for index in range(config.num_layers):
            name = f"layers.{index}.self_attn"
            context.append(costs.linear(f"{name}.k_proj", width, config.hidden_size, kv_size))
            context.append(
                costs.linear(f"{name}.v_proj", width, config.hidden_size, kv_size, fused=True)
            )
            context.append(costs.elementwise(width, 2 * kv_size * ACTIVATION_BYTES))
        return (*kernels, *context)

    def whole_step(self) -> tuple[KernelCost, ...]:
        """Return the kernels of the step with the drafter's whole block."""
        block_size = self.drafter.config.block_size
        return self.dflash_step(block_size, block_size - 1)

    def state_bytes(self) -> float:
        """Return the size of one sequence's recurrent states and windows."""
        return sum(cost.state_bytes for cost in self.whole_step())

    def memory_bytes(self, batch: int, context: int) -> float:
        """Return the size of weights and caches.

        The drafter uses the target's two tables, but for those of its own.
        """
        config, total = self.target.config, 0.0
        if not config.tie_word_embeddings:
            total += config.vocab_size * config.hidden_size * ACTIVATION_BYTES
        if EMBEDDING in self.drafter.tensors:
            total += config.vocab_size * config.hidden_size * ACTIVATION_BYTES
        if (walk := self.drafter.config.walk) is not None:
            total += 2 * config.vocab_size * walk.rank * ACTIVATION_BYTES  # its codebooks
        for cost in self.whole_step():
            if cost.operation != "head" or cost.part != DRAFTER or self._has_own_head:
                total += cost.weight_bytes * cost.num_experts
            positions = min(context, cost.window or context)
            total += batch * (positions * cost.position_bytes + cost.state_bytes)
        return total

    def format_counts(self) -> dict[str, Counter[str]]:
        """Return how many linears, experts, heads and drafter's linears have which format."""
        counts = {role: Counter[str]() for role in (*_ROLES.values(), DRAFTER)}
        for cost in self.whole_step():
            is_drafter = cost.part == DRAFTER
            if cost.module.endswith(_PLAIN) or cost.operation not in _ROLES:
                continue
            if not is_drafter or cost.operation == "linear":
                name = "bf16" if cost.format is None else cost.format.name
                counts[DRAFTER if is_drafter else _ROLES[cost.operation]][name] += 1
        return counts

    def usual_formats(self) -> dict[str, str]:
        """Return the most frequent format of linears, experts, head and drafter."""
        return {
            role: counts.most_common(1)[0][0] if counts else "bf16"
            for role, counts in self.format_counts().items()
        }
