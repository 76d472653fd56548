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
from trtllm_dflash.engine_dir.io_tensors import window_rows
from trtllm_dflash.errors import UsageError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.draft_tables import EMBEDDING
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
from trtllm_dflash.models.moe import MoEConfig

# BF16 between kernels; logits and recurrent states in float32.
ACTIVATION_BYTES, LOGIT_BYTES, STATE_BYTES = 2, 4, 4
TARGET, ACCEPT, DRAFTER = "target", "accept", "drafter"  # the parts of a step
HEAD = "lm_head"
# Tensor parallel: the outputs of all GPUs add up.
_SUMMED = ("o_proj", "out_proj", "down_proj", "fc", "fusion")
# Linears that no format is asked of.
_PLAIN = ("fc", "router", "in_proj_a", "in_proj_b", "in_proj_ba", "shared_expert_gate")
_ROLES = {"linear": "linears", "experts": "experts", "head": "head"}


@dataclass(frozen=True)
class KernelCost:
    """The cost of one operation for one sequence; experts' weights and operations are of one."""

    part: str
    # "linear", "experts", "head", "attention", "linear attention" or "elementwise"
    operation: str
    rows: int
    format: WeightFormat | None = None  # of weights or cached keys; None: BF16
    module: str = ""
    weight_bytes: float = 0.0  # read once for the whole batch
    row_bytes: float = 0.0  # activations that a row reads and writes
    row_flops: float = 0.0
    position_bytes: float = 0.0  # keys and values of one position
    position_flops: float = 0.0  # of all rows on one position
    state_bytes: float = (
        0.0  # of a sequence's recurrent state and window, read and written once
    )
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
    `block_size` is the engine's, 1 without a drafter: windows of linear attention keep its drafts.
    """

    part: str
    config: TargetConfig | DrafterConfig
    formats: Mapping[str, WeightFormat]
    kv_cache: WeightFormat | None = None
    block_size: int = 1

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

    def linear_attention(self, rows: int, sizes: LinearAttentionConfig) -> KernelCost:
        """Return two kernels: convolve the rows and move the window; run the rule on the state.

        A step reads and writes the state and the window once. For each row a head takes its state
        times the key, adds key times correction, and takes it times the query. Each is a product
        and a sum for every number of the state.
        """
        out_size = sizes.value_size
        state = out_size * sizes.key_dim * STATE_BYTES
        kept_rows = window_rows(sizes, self.block_size)
        window = kept_rows * sizes.window_columns * ACTIVATION_BYTES
        convolution = sizes.conv_size * sizes.conv_kernel
        return KernelCost(
            self.part,
            "linear attention",
            rows,
            weight_bytes=convolution * ACTIVATION_BYTES,
            row_bytes=(sizes.window_columns + out_size) * ACTIVATION_BYTES,
            row_flops=6 * out_size * sizes.key_dim + 2 * convolution,
            state_bytes=state + window,
            kernels=2,
        )

    def layer(
        self, name: str, rows: int, window: int, kv_rows: int | None = None
    ) -> Iterator[KernelCost]:
        """Yield a layer's attention, full or linear, and its gated MLP or experts.

        `kv_rows`: rows of keys and values where they are not those of the queries.
        """
        config = self.config
        yield self.norm(rows)
        sizes = config.linear_attention if isinstance(config, TargetConfig) else None
        if sizes is not None and isinstance(config, TargetConfig) and config.is_linear:
            yield from self._gated_delta_net(f"{name}.linear_attn", rows, sizes)
        else:
            yield from self._full_attention(f"{name}.self_attn", rows, window, kv_rows)
        yield self.norm(rows)
        if isinstance(config, TargetConfig) and config.moe is not None:
            yield self.linear(
                f"{name}.mlp.router", rows, config.hidden_size, config.moe.num_experts
            )
            yield self.experts(f"{name}.mlp.experts", rows, config.moe)
            if config.moe.shared_intermediate_size:
                yield from self._shared_expert(f"{name}.mlp.shared_expert", rows, config.moe)
            return
        yield from self._swiglu(f"{name}.mlp", rows, config.intermediate_size)

    def _full_attention(
        self, attn: str, rows: int, window: int, kv_rows: int | None
    ) -> Iterator[KernelCost]:
        config = self.config
        hidden, own = config.hidden_size, kv_rows is None
        q_size = config.num_q_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        is_gated = isinstance(config, TargetConfig) and config.gated_attention
        yield self.linear(f"{attn}.q_proj", rows, hidden, q_size * (2 if is_gated else 1))
        yield self.linear(f"{attn}.k_proj", kv_rows or rows, hidden, kv_size, fused=own)
        yield self.linear(f"{attn}.v_proj", kv_rows or rows, hidden, kv_size, fused=True)
        yield self.attention(rows, window)
        if is_gated:
            yield self.elementwise(rows, 2 * q_size * ACTIVATION_BYTES)
        yield self.linear(f"{attn}.o_proj", rows, q_size, hidden)

    def _gated_delta_net(
        self, attn: str, rows: int, sizes: LinearAttentionConfig
    ) -> Iterator[KernelCost]:
        """Yield the projections around linear attention, and the gated norm of its heads."""
        hidden, heads = self.config.hidden_size, sizes.num_value_heads
        out_size = sizes.value_size
        if sizes.fused_projections:
            inputs = {"qkvz": sizes.conv_size + out_size, "ba": 2 * heads}
        else:
            inputs = {"qkv": sizes.conv_size, "z": out_size, "b": heads, "a": heads}
        for number, (leaf, size) in enumerate(inputs.items()):
            yield self.linear(f"{attn}.in_proj_{leaf}", rows, hidden, size, fused=number > 0)
        yield self.linear_attention(rows, sizes)
        yield self.elementwise(rows * heads, 2 * sizes.value_dim * ACTIVATION_BYTES)
        yield self.linear(f"{attn}.out_proj", rows, out_size, hidden)

    def _swiglu(
        self, mlp: str, rows: int, inner: int, *, fused: bool = False
    ) -> Iterator[KernelCost]:
        hidden = self.config.hidden_size
        yield self.linear(f"{mlp}.gate_proj", rows, hidden, inner, fused=fused)
        yield self.linear(f"{mlp}.up_proj", rows, hidden, inner, fused=True)
        yield self.elementwise(rows, 2 * inner * ACTIVATION_BYTES)
        yield self.linear(f"{mlp}.down_proj", rows, inner, hidden)

    def _shared_expert(self, name: str, rows: int, moe: MoEConfig) -> Iterator[KernelCost]:
        """Yield the expert of every token, which reads what the router reads.

        Its output is summed over GPUs with the others'.
        """
        yield self.linear(f"{name}_gate", rows, self.config.hidden_size, 1, fused=True)
        for cost in self._swiglu(name, rows, moe.shared_intermediate_size, fused=True):
            yield replace(cost, reduced_bytes=0.0)

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
        kernels = [costs.norm(block_size)]  # the embedding
        kernels += [costs.linear("fc", width, features, config.hidden_size), costs.norm(width)]
        for index, window in enumerate(config.windows):
            kernels += costs.layer(f"layers.{index}", block_size, window, width + block_size)
        kernels += [costs.norm(block_size), costs.head(block_size - 1, vocab_size)]
        return (
            *self.target_pass(width, width, block_size=block_size),
            *kernels,
            costs.choice(block_size - 1, vocab_size),
        )

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
