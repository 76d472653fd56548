"""Linear attention: the sizes of layers that keep a state instead of keys and values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearAttentionConfig:
    """A gated delta net: a convolution over the last positions, then a rule on a state.

    num_key_heads      heads of queries and keys
    num_value_heads    heads of values; each has a state [key_dim, value_dim]
    key_dim            numbers of a query or key head
    value_dim          numbers of a value head
    conv_kernel        positions that the convolution sees, its own counted
    fused_projections  the checkpoint has in_proj_qkvz and in_proj_ba, rows by key head
                       (Qwen3-Next); else in_proj_qkv, _z, _b and _a
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    fused_projections: bool

    @property
    def conv_size(self) -> int:
        """Return the channels of the convolution: queries, keys and values."""
        keys = self.num_key_heads * self.key_dim
        return 2 * keys + self.num_value_heads * self.value_dim

    @property
    def window_columns(self) -> int:
        """Return the numbers of a row of the window: the convolution's channels and the gates."""
        return self.conv_size + 2 * self.num_value_heads
