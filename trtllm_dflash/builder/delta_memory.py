"""What gated delta nets take in a plan of an engine's memory: their code, and their scratch.

The formulas of the operator's body are fitted to what TensorRT-RTX 1.7.1 reported for sm120. Its
engines had 4 and 8 such layers and 1 to 16 slots.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.graph.kernel_specs import DELTA_CHUNK_ROWS
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
from trtllm_dflash.options.build import DTYPE_BYTES
from trtllm_dflash.trt_plugins.params import gated_delta_plan

# Code of a layer in one profile beyond that of one with attention: with our kernels, and with the
# compiler's own.
CODE_BYTES = {True: 470_000, False: 3_300_000}
_SHARED_STATES = 6  # copies of a state that the layers share, in the body
_SHARED_ROWS = 1.5  # copies of the rows of keys and of values that they share


@dataclass(frozen=True)
class DeltaMemory:
    """The gated delta nets of a target, in steps of blocks of `block_size` tokens."""

    linear: LinearAttentionConfig
    num_layers: int
    block_size: int

    @classmethod
    def of(cls, target: TargetConfig, block_size: int) -> DeltaMemory | None:
        """Return those of a target; None if it has none."""
        if target.linear_attention is None:
            return None
        return cls(target.linear_attention, sum(target.linear_layers), block_size)

    def kernel_scratch(self, slots: int, rows: int) -> int:
        """Return the workspace of our kernels for `rows` of each slot; all layers share it."""
        return gated_delta_plan(
            batch=slots,
            rows=rows,
            window_rows=self.linear.window_rows(self.block_size),
            key_heads=self.linear.num_key_heads,
            value_heads=self.linear.num_value_heads,
        ).workspace_bytes

    def body_scratch(self, slots: int, rows: int, *, layers_share: bool) -> int:
        """Return about the bytes that the operator's body takes for `rows` of each slot.

        TensorRT-RTX gives every layer memory of its own for what the loop over chunks carries and
        returns (not `layers_share`).
        """
        open_rows = self.block_size - 1
        chunks = -(-(rows + open_rows) // DELTA_CHUNK_ROWS)
        head_rows = chunks * DELTA_CHUNK_ROWS * self.linear.num_value_heads
        size = DTYPE_BYTES["float32"]
        key_dim, value_dim = self.linear.key_dim, self.linear.value_dim
        state = self.linear.value_size * key_dim * size
        shared = _SHARED_STATES * state
        shared += int(_SHARED_ROWS * head_rows * (key_dim + value_dim) * size)
        own = 0 if layers_share else self.num_layers * (state + head_rows * value_dim * size)
        return slots * (shared + own)

    def code_bytes(self, *, plugins: bool) -> int:
        """Return about the bytes of code beyond that of layers with attention."""
        return self.num_layers * CODE_BYTES[plugins]
