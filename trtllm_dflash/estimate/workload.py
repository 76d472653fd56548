"""What the kernels of a step read and compute, from a model's configuration.

Elementwise operations count as fused into their neighbours. Projections of one input count as one
kernel. Every cost is that of one sequence; `roofline` multiplies what grows with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trtllm_dflash.checkpoint.formats import WeightFormat
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.moe import MoEConfig

ACTIVATION_BYTES, LOGIT_BYTES = 2, 4  # BF16 between kernels; logits in float32
HEAD = "lm_head"
_SUMMED = ("o_proj", "down_proj", "fc")  # tensor parallel: the outputs of all GPUs add up


@dataclass(frozen=True)
class KernelCost:
    """The cost of one operation for one sequence; experts' weights and operations are of one."""

    part: str  # "target", "accept" or "drafter"
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
        config, hidden, inner = self.config, self.config.hidden_size, self.config.intermediate_size
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
