"""What the kernels of a step read and compute, and the memory that a pair of models needs.

Elementwise operations count as fused into their neighbours. Projections of one input count as one
kernel. Every cost is that of one sequence; `roofline` multiplies what grows with the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trtllm_dflash.checkpoint.formats import WeightFormat
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.errors import UsageError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.moe import MoEConfig

ACTIVATION_BYTES, LOGIT_BYTES = 2, 4  # BF16 between kernels; logits in float32
TARGET, ACCEPT, DRAFTER = "target", "accept", "drafter"  # the parts of a step
HEAD = "lm_head"
# Tensor parallel: the outputs of all GPUs add up.
_SUMMED = ("o_proj", "down_proj", "fc", "fusion")
_ROLES = {"linear": "linears", "experts": "experts", "head": "head"}


@dataclass(frozen=True)
class KernelCost:
    """The cost of one operation for one sequence; experts' weights and operations are of one."""

    part: str
    operation: str  # "linear", "experts", "head", "attention" or "elementwise"
    rows: int
    format: WeightFormat | None = None  # of weights or cached keys; None: BF16
    module: str = ""
    weight_bytes: float = 0.0  # read once for the whole batch
    row_bytes: float = 0.0  # activations that a row reads and writes
    row_flops: float = 0.0
    position_bytes: float = 0.0  # keys and values of one position
    position_flops: float = 0.0  # of all rows on one position
    window: int = 0  # positions that an attention sees at most; 0: all
    num_experts: int = 1
    top_k: int = 1  # experts that a row uses
    reduced_bytes: float = 0.0  # of a row, summed up over all GPUs
    kernels: int = 1  # launches


def bytes_of(count: int, fmt: WeightFormat | None) -> float:
    """Return the bytes of `count` stored values, their share of block scales included."""
    return count * (16 if fmt is None else fmt.weight_bits()) / 8


@dataclass(frozen=True)
class ModelCosts:
    """The costs of one model's operations; `part` is its part of the step.

    `formats` are those of quantized modules, and `kv_cache` is that of keys and values.
    """

    part: str
    config: TargetConfig | DrafterConfig
    formats: Mapping[str, WeightFormat]
    kv_cache: WeightFormat | None = None

    def elementwise(self, rows: int, row_bytes: float, kernels: int = 1) -> KernelCost:
        """Return a kernel that moves `row_bytes` for each row."""
        return KernelCost(self.part, "elementwise", rows, row_bytes=row_bytes, kernels=kernels)

    def norm(self, rows: int) -> KernelCost:
        """Return a kernel that reads and writes hidden states: a norm, a gather, an embedding."""
        return self.elementwise(rows, 2 * self.config.hidden_size * ACTIVATION_BYTES)

    def choice(self, rows: int, vocab_size: int, kernels: int = 1) -> KernelCost:
        """Return a kernel that reads logits: it samples, or takes the largest."""
        return self.elementwise(rows, vocab_size * LOGIT_BYTES, kernels)

    def linear(
        self, module: str, rows: int, inputs: int, outputs: int, *, fused: bool = False
    ) -> KernelCost:
        """Return a linear.

        A `fused` one is in the kernel of the linear before it, which has read the same input.
        """
        fmt = self.formats.get(module)
        is_summed = module.endswith(_SUMMED)
        return KernelCost(
            self.part,
            "linear",
            rows,
            fmt,
            module,
            weight_bytes=bytes_of(inputs * outputs, fmt),
            row_bytes=(inputs * (not fused) + outputs) * ACTIVATION_BYTES,
            row_flops=2 * inputs * outputs,
            reduced_bytes=outputs * ACTIVATION_BYTES * is_summed,
            kernels=int(not fused),
        )

    def head(self, rows: int, vocab_size: int) -> KernelCost:
        """Return the head's product, which writes logits."""
        linear = self.linear(HEAD, rows, self.config.hidden_size, vocab_size)
        moved = self.config.hidden_size * ACTIVATION_BYTES + vocab_size * LOGIT_BYTES
        return replace(linear, operation="head", row_bytes=moved)

    def attention(self, rows: int, window: int) -> KernelCost:
        """Return three kernels: rotate and write; attend; add up the parts of the context."""
        config = self.config
        q_size = config.num_q_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        return KernelCost(
            self.part,
            "attention",
            rows,
            self.kv_cache,
            row_bytes=2 * (q_size + kv_size) * ACTIVATION_BYTES,
            position_bytes=bytes_of(2 * kv_size, self.kv_cache),
            position_flops=4 * rows * q_size,
            window=window,
            kernels=3,
        )

    def layer(
        self, name: str, rows: int, window: int, kv_rows: int | None = None
    ) -> Iterator[KernelCost]:
        """Yield a layer's attention, and its gated MLP or experts.

        `kv_rows`: rows of keys and values where they are not those of the queries.
        """
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        q_size = config.num_q_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        own, attn = kv_rows is None, f"{name}.self_attn"
        yield self.norm(rows)
        yield self.linear(f"{attn}.q_proj", rows, hidden, q_size)
        yield self.linear(f"{attn}.k_proj", kv_rows or rows, hidden, kv_size, fused=own)
        yield self.linear(f"{attn}.v_proj", kv_rows or rows, hidden, kv_size, fused=True)
        yield self.attention(rows, window)
        yield self.linear(f"{attn}.o_proj", rows, q_size, hidden)
        yield self.norm(rows)
        if isinstance(config, TargetConfig) and config.moe is not None:
            yield self.linear(f"{name}.mlp.router", rows, hidden, config.moe.num_experts)
            yield self.experts(f"{name}.mlp.experts", rows, config.moe)
            return
        yield self.linear(f"{name}.mlp.gate_proj", rows, hidden, inner)
        yield self.linear(f"{name}.mlp.up_proj", rows, hidden, inner, fused=True)
        yield self.elementwise(rows, 2 * inner * ACTIVATION_BYTES)
        yield self.linear(f"{name}.mlp.down_proj", rows, inner, hidden)

    def experts(self, module: str, rows: int, moe: MoEConfig) -> KernelCost:
        """Return the experts of a layer: gate, up and down projection of each."""
        hidden = self.config.hidden_size
        linear = self.linear(module, rows, hidden, 3 * moe.intermediate_size)
        return replace(
            linear,
            operation="experts",
            row_bytes=2 * hidden * ACTIVATION_BYTES,
            num_experts=moe.num_experts,
            top_k=moe.top_k,
            reduced_bytes=hidden * ACTIVATION_BYTES,
            kernels=5,
        )


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A target and its drafter, whose checkpoints say how modules are stored.

    All experts of a layer are one module of `target.formats`. `kv_cache` is the target's: the
    drafter's cache is never quantized.
    """

    target: Checkpoint[TargetConfig]
    drafter: Checkpoint[DrafterConfig]
    kv_cache: WeightFormat | None = None

    def plain_step(self) -> tuple[KernelCost, ...]:
        """Return the kernels of a step of the target alone: one token."""
        return self.target_pass(1, 1)

    def target_pass(self, width: int, rows: int) -> tuple[KernelCost, ...]:
        """Return the target's kernels for `width` tokens, of which the last `rows` are decided.

        A prompt decides one row, the tree of an EAGLE-3 drafter all of them.
        """
        config, formats = self.target.config, self.target.formats
        costs = ModelCosts(TARGET, config, formats)
        kernels = [costs.norm(width)]  # the embedding
        for index, window in enumerate(config.windows):
            layer = ModelCosts(TARGET, config.at_layer(index), formats, self.kv_cache)
            kernels += layer.layer(f"model.layers.{index}", width, window)
        # The gather of the rows that are decided, and the last norm.
        kernels += [costs.norm(rows), costs.norm(rows), costs.head(rows, config.vocab_size)]
        return (*kernels, replace(costs.choice(rows, config.vocab_size), part=ACCEPT))

    def dflash_step(self, block_size: int, draft_len: int) -> tuple[KernelCost, ...]:
        """Return the kernels of a step that verifies `draft_len` drafts and drafts a block.

        Raises:
            UsageError: for more drafts than the block has, or a block larger than the drafter's.
        """
        config, vocab_size = self.drafter.config, self.target.config.vocab_size
        if not 1 <= draft_len < block_size <= config.block_size:
            raise UsageError(
                f"{draft_len} drafts of a block of {block_size} cannot be had from a drafter that"
                f" was trained with blocks of {config.block_size}"
            )
        width = draft_len + 1
        formats = {**self.target.formats, **self.drafter.formats}  # the head is the target's
        costs = ModelCosts(DRAFTER, config, formats)
        features = config.num_taps * config.hidden_size
        kernels = [costs.norm(block_size)]  # the embedding
        kernels += [costs.linear("fc", width, features, config.hidden_size), costs.norm(width)]
        for index, window in enumerate(config.windows):
            kernels += costs.layer(f"layers.{index}", block_size, window, width + block_size)
        kernels += [costs.norm(block_size), costs.head(block_size - 1, vocab_size)]
        return (
            *self.target_pass(width, width),
            *kernels,
            costs.choice(block_size - 1, vocab_size),
        )

    def prompt_pass(self, width: int, *, drafts: bool) -> tuple[KernelCost, ...]:
        """Return the kernels for `width` tokens of a prompt, whose last row may be decided.

        With drafts their features become keys and values of the drafter.
        """
        kernels = self.target_pass(width, 1)
        if not drafts:
            return kernels
        config = self.drafter.config
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

    def memory_bytes(self, batch: int, context: int) -> float:
        """Return the size of weights and caches. The drafter uses the target's two tables."""
        config, total = self.target.config, 0.0
        if not config.tie_word_embeddings:
            total += config.vocab_size * config.hidden_size * ACTIVATION_BYTES
        for cost in self.whole_step():
            if cost.operation != "head" or cost.part != DRAFTER:
                total += cost.weight_bytes * cost.num_experts
            positions = min(context, cost.window or context)
            total += batch * positions * cost.position_bytes
        return total

    def format_counts(self) -> dict[str, Counter[str]]:
        """Return how many linears, experts, heads and drafter's linears have which format."""
        counts = {role: Counter[str]() for role in (*_ROLES.values(), DRAFTER)}
        for cost in self.whole_step():
            is_drafter = cost.part == DRAFTER
            if cost.module.endswith(("fc", "router")) or cost.operation not in _ROLES:
                continue  # never quantized
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
