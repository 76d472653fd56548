"""What the kernels of one model read and compute in a step.

Elementwise operations count as fused into their neighbours. Projections of one input count as one
kernel. Every cost is that of one sequence; `roofline` multiplies what grows with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trtllm_dflash.checkpoint.formats import WeightFormat
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.dflash2 import SelectorConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
from trtllm_dflash.models.moe import MoEConfig

# BF16 between kernels; logits and recurrent states in float32.
ACTIVATION_BYTES, LOGIT_BYTES, STATE_BYTES = 2, 4, 4
TARGET, ACCEPT, DRAFTER = "target", "accept", "drafter"  # the parts of a step
HEAD = "lm_head"
# Tensor parallel: the outputs of all GPUs add up.
_SUMMED = ("o_proj", "out_proj", "down_proj", "fc", "fusion")


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
    # Of a sequence's recurrent state and window, read and written once; of these, the window.
    state_bytes: float = 0.0
    window_bytes: float = 0.0
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
        kept_rows = sizes.window_rows(self.block_size)
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
            window_bytes=window,
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
            yield from self._convolutions(f"{name}.attention_conv", rows)
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
        yield from self._convolutions(f"{name}.mlp_conv", rows)
        yield from self._swiglu(f"{name}.mlp", rows, config.intermediate_size)

    def _convolutions(self, name: str, rows: int) -> Iterator[KernelCost]:
        """Yield those of DFlash 2 around a sublayer: of its input and of its output.

        A kernel of each takes rows and the dynamic parts, which one linear computes for both.
        """
        config = self.config
        if not isinstance(config, DrafterConfig) or config.conv is None:
            return
        dynamic = config.conv.kernel_size * config.num_conv_groups
        projection = f"{name}.kernel_projection"
        yield self.linear(projection, rows, config.hidden_size, 2 * dynamic)
        moved = (2 * config.hidden_size + dynamic) * ACTIVATION_BYTES
        yield self.elementwise(rows, moved)
        yield self.elementwise(rows, moved)

    def walk(self, rows: int, walk: SelectorConfig) -> Iterator[KernelCost]:
        """Yield how DFlash 2 or DSpark chooses a draft in each row, behind the candidates."""
        if isinstance(self.config, DrafterConfig) and self.config.selector is not None:
            module = "candidate_selector.hidden_projection"
            yield self.linear(module, rows, self.config.hidden_size, walk.rank)
        # A row's candidates are scored after each of those of the row before.
        pairs = 2 * walk.top_k * walk.rank * ACTIVATION_BYTES
        yield self.elementwise(rows, pairs)

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
