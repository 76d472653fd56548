"""What the kernels of a step read and compute, from a model's configuration.

Elementwise operations count as fused into their neighbours. Projections of one input count as one
kernel. Every cost is that of one sequence; `roofline` multiplies what grows with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trtllm_dflash.checkpoint.quantization_checks import NEVER_QUANTIZED
from trtllm_dflash.estimate.formats import (
    ACCEPT,
    DRAFTER,
    HEAD,
    NUMERIC_FORMATS,
    TARGET,
    UNQUANTIZED,
    NumericFormat,
    PairFormats,
)
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.moe import MoEConfig

ACTIVATION_BYTES, LOGIT_BYTES = 2, 4  # BF16 between kernels; logits in float32
_SUMMED = ("o_proj", "down_proj", "fc")  # tensor parallel: the outputs of all GPUs add up
ROUTER = "router"  # no format quantizes it


@dataclass(frozen=True)
class ExpertRouting:
    """`count` experts in a layer, of which a token uses `top_k`."""

    count: int
    top_k: int

    def expected_active(self, tokens: float) -> float:
        """Return how many different experts `tokens` tokens use, if each chooses uniformly.

        A token misses an expert with probability 1 - top_k/count. All tokens miss it with that to
        the power of `tokens`. Real routing is uneven, and neighbouring tokens choose alike. Both
        lower the number, so this is an upper estimate.
        """
        return self.count * (1 - float((1 - self.top_k / self.count) ** tokens))


@dataclass(frozen=True)
class KernelCost:
    """The cost of one operation for one sequence; experts' weights and operations are of one."""

    part: str  # "target", "accept" or "drafter"
    operation: str  # "linear", "experts", "head", "attention" or "elementwise"
    format: NumericFormat
    rows: int
    module: str = ""
    weight_bytes: float = 0.0  # read once for the whole batch
    row_bytes: float = 0.0  # activations that a row reads and writes
    row_flops: float = 0.0
    position_bytes: float = 0.0  # keys and values of one position
    position_flops: float = 0.0  # of all rows on one position
    window: int = 0  # positions that an attention sees at most; 0: all
    experts: ExpertRouting | None = None
    reduced_bytes: float = 0.0  # of a row, summed up over all GPUs
    kernels: int = 1  # launches


@dataclass(frozen=True)
class ModelCosts:
    """The costs of one model's operations; `part` is its part of the step."""

    part: str
    config: TargetConfig | DrafterConfig
    formats: PairFormats

    def elementwise(self, rows: int, row_bytes: float) -> KernelCost:
        """Return a kernel that moves `row_bytes` for each row."""
        unquantized = NUMERIC_FORMATS[UNQUANTIZED]
        return KernelCost(self.part, "elementwise", unquantized, rows, row_bytes=row_bytes)

    def norm(self, rows: int) -> KernelCost:
        """Return a kernel that reads and writes hidden states: a norm, a gather, an embedding."""
        return self.elementwise(rows, 2 * self.config.hidden_size * ACTIVATION_BYTES)

    def linear(
        self, module: str, rows: int, shape: tuple[int, int], *, fused: bool = False
    ) -> KernelCost:
        """Return a linear of `shape` [out, in].

        A `fused` one is in the kernel of the linear before it, which has read the same input.
        """
        outputs, inputs = shape
        leaf = module.rpartition(".")[2]
        form = NUMERIC_FORMATS[UNQUANTIZED]
        if leaf not in NEVER_QUANTIZED and leaf != ROUTER:
            form = self.formats.format_of(self.part, module)
        return KernelCost(
            self.part,
            "linear",
            form,
            rows,
            module,
            weight_bytes=inputs * outputs * form.bits / 8,
            row_bytes=(inputs * (not fused) + outputs) * ACTIVATION_BYTES,
            row_flops=2 * inputs * outputs,
            reduced_bytes=outputs * ACTIVATION_BYTES * (leaf in _SUMMED),
            kernels=int(not fused),
        )

    def head(self, rows: int, vocab_size: int) -> KernelCost:
        """Return the head's product, which writes logits."""
        hidden_size = self.config.hidden_size
        form = self.formats.format_of(TARGET, HEAD)  # a drafter uses the target's
        return KernelCost(
            self.part,
            "head",
            form,
            rows,
            HEAD,
            weight_bytes=hidden_size * vocab_size * form.bits / 8,
            row_bytes=hidden_size * ACTIVATION_BYTES + vocab_size * LOGIT_BYTES,
            row_flops=2 * hidden_size * vocab_size,
        )

    def attention(self, rows: int, window: int) -> KernelCost:
        """Return three kernels: rotate and write; attend; add up the parts of the context."""
        config = self.config
        q_size = config.num_q_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        form = NUMERIC_FORMATS[self.formats.kv_cache if self.part == TARGET else UNQUANTIZED]
        return KernelCost(
            self.part,
            "attention",
            form,
            rows,
            row_bytes=2 * (q_size + kv_size) * ACTIVATION_BYTES,
            position_bytes=2 * kv_size * form.bits / 8,
            position_flops=4 * rows * q_size,
            window=window,
            kernels=3,
        )

    def attention_block(
        self, layer: str, rows: int, window: int, *, kv_rows: int | None = None
    ) -> Iterator[KernelCost]:
        """Yield norm, projections and attention of a layer.

        `kv_rows`: rows of keys and values where they are not those of the queries.
        """
        config = self.config
        q_size = config.num_q_heads * config.head_dim
        kv_shape = (config.num_kv_heads * config.head_dim, config.hidden_size)
        module = f"{layer}.self_attn."
        yield self.norm(rows)
        yield self.linear(f"{module}q_proj", rows, (q_size, config.hidden_size))
        is_fused = kv_rows is None
        yield self.linear(f"{module}k_proj", kv_rows or rows, kv_shape, fused=is_fused)
        yield self.linear(f"{module}v_proj", kv_rows or rows, kv_shape, fused=True)
        yield self.attention(rows, window)
        yield self.linear(f"{module}o_proj", rows, (config.hidden_size, q_size))

    def mlp_block(self, layer: str, rows: int) -> Iterator[KernelCost]:
        """Yield norm and gated MLP of a layer, or its experts."""
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        moe = self.config.moe if isinstance(self.config, TargetConfig) else None
        yield self.norm(rows)
        if moe is not None:
            yield self.linear(f"{layer}.mlp.{ROUTER}", rows, (moe.num_experts, hidden))
            yield self.experts(f"{layer}.mlp.experts", rows, moe)
            return
        yield self.linear(f"{layer}.mlp.gate_proj", rows, (inner, hidden))
        yield self.linear(f"{layer}.mlp.up_proj", rows, (inner, hidden), fused=True)
        yield self.elementwise(rows, 2 * inner * ACTIVATION_BYTES)
        yield self.linear(f"{layer}.mlp.down_proj", rows, (hidden, inner))

    def experts(self, module: str, rows: int, moe: MoEConfig) -> KernelCost:
        """Return the experts of a layer: gate, up and down projection of each."""
        hidden = self.config.hidden_size
        form = self.formats.format_of(self.part, module)
        weights = 3 * hidden * moe.intermediate_size
        return KernelCost(
            self.part,
            "experts",
            form,
            rows,
            module,
            weight_bytes=weights * form.bits / 8,
            row_bytes=2 * hidden * ACTIVATION_BYTES,
            row_flops=2 * weights,
            experts=ExpertRouting(moe.num_experts, moe.top_k),
            reduced_bytes=hidden * ACTIVATION_BYTES,
            kernels=5,
        )


def target_costs(
    config: TargetConfig, formats: PairFormats, *, width: int, rows: int
) -> Iterator[KernelCost]:
    """Yield the target's kernels for `width` tokens, of which the last `rows` are decided."""
    costs = ModelCosts(TARGET, config, formats)
    yield costs.norm(width)  # the embedding
    for index, window in enumerate(config.windows):
        name = f"model.layers.{index}"
        layer = ModelCosts(TARGET, config.at_layer(index), formats)
        yield from layer.attention_block(name, width, window)
        yield from layer.mlp_block(name, width)
    yield costs.norm(rows)  # the gather of the rows that are decided
    yield costs.norm(rows)
    yield costs.head(rows, config.vocab_size)
    yield ModelCosts(ACCEPT, config, formats).elementwise(rows, config.vocab_size * LOGIT_BYTES)


def drafter_costs(
    config: DrafterConfig, formats: PairFormats, *, width: int, block_size: int, vocab_size: int
) -> Iterator[KernelCost]:
    """Yield the drafter's kernels for features of `width` tokens and a block of `block_size`."""
    costs = ModelCosts(DRAFTER, config, formats)
    features = len(config.target_layer_ids) * config.hidden_size
    yield costs.norm(block_size)  # the embedding
    yield costs.linear("fc", width, (config.hidden_size, features))
    yield costs.norm(width)
    for index, layer in enumerate(config.layers):
        name = f"layers.{index}"
        kv_rows = width + block_size
        yield from costs.attention_block(name, block_size, layer.window, kv_rows=kv_rows)
        yield from costs.mlp_block(name, block_size)
    yield costs.norm(block_size)
    yield costs.head(block_size - 1, vocab_size)
    yield costs.elementwise(block_size - 1, vocab_size * LOGIT_BYTES)  # the drafts: argmax
