"""Layers of linear attention: gated delta nets, whose memory is a state of a fixed size."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.models.hf_config import MAX_SIZE, HfReader
from trtllm_dflash.models.windows import FULL, read_layer_types

LINEAR = "linear_attention"
MAX_CONV_KERNEL = 16  # rows; published targets have 4
_DEFAULT_INTERVAL = 4  # as in the config classes


@dataclass(frozen=True)
class LinearAttentionConfig:
    """Gated delta nets: `num_value_heads` states [key_dim, value_dim] a layer.

    A key head serves `num_value_heads` / `num_key_heads` value heads. Queries, keys and values pass
    a causal convolution per channel over `conv_kernel` rows. `fused_projections`, as in Qwen3-Next:
    in_proj_qkvz and in_proj_ba, whose rows are ordered by key head. Otherwise there are
    in_proj_qkv, in_proj_z, in_proj_b and in_proj_a.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    fused_projections: bool

    @property
    def value_size(self) -> int:
        """Return the size of the values of all heads, which is that of the layer's output."""
        return self.num_value_heads * self.value_dim

    @property
    def conv_size(self) -> int:
        """Return the channels of the convolution: queries, keys and values of all heads."""
        return 2 * self.num_key_heads * self.key_dim + self.value_size

    @property
    def window_columns(self) -> int:
        """Return the columns of a row that is not in the state yet: channels and both gates."""
        return self.conv_size + 2 * self.num_value_heads

    @property
    def qkvz_size(self) -> int:
        """Return the rows of in_proj_qkvz: the channels, and the gates of the output."""
        return self.conv_size + self.value_size

    def window_rows(self, block_size: int) -> int:
        """Return the rows of a layer's window, for blocks of so many tokens.

        They are the positions that the convolution sees before a step's first row, then the drafts
        of the step before. Those that were accepted are not in the state yet.
        """
        return self.conv_kernel - 1 + block_size - 1


def read_linear_attention(
    reader: HfReader, *, fused_projections: bool
) -> LinearAttentionConfig:
    """Read the sizes of gated delta nets; the key heads divide the value heads."""
    num_key_heads = reader.read(int, "linear_num_key_heads", low=1, high=MAX_SIZE)
    num_value_heads = reader.read(int, "linear_num_value_heads", low=1, high=MAX_SIZE)
    if num_value_heads % num_key_heads:
        problem = f"is {num_key_heads}, and does not divide linear_num_value_heads ="
        reader.fail("linear_num_key_heads", f"{problem} {num_value_heads}.")
    return LinearAttentionConfig(
        num_key_heads=num_key_heads,
        num_value_heads=num_value_heads,
        key_dim=reader.read(int, "linear_key_head_dim", low=1, high=MAX_SIZE),
        value_dim=reader.read(int, "linear_value_head_dim", low=1, high=MAX_SIZE),
        conv_kernel=reader.read(int, "linear_conv_kernel_dim", low=2, high=MAX_CONV_KERNEL),
        fused_projections=fused_projections,
    )


def read_linear_layers(reader: HfReader, num_layers: int) -> tuple[bool, ...]:
    """Read for each layer whether it is linear, from `layer_types` or `full_attention_interval`.

    Of every `interval` layers the last one is full. Where both keys are there, they agree.
    """
    interval = reader.read(int, "full_attention_interval", default=None, low=1)
    step = interval or _DEFAULT_INTERVAL
    default = tuple(LINEAR if (layer + 1) % step else FULL for layer in range(num_layers))
    layer_types = read_layer_types(
        reader, num_layers, "hybrid targets", allowed=(LINEAR, FULL), default=default
    )
    if interval is not None and layer_types != default:
        reader.fail(
            "full_attention_interval",
            f"is {interval} but layer_types says otherwise. Make them agree or drop one.",
        )
    if FULL not in layer_types:
        reader.fail(
            "layer_types" if reader.get("layer_types") else "num_hidden_layers",
            f"leaves no layer with {FULL}, and at least one is expected.",
        )
    return tuple(layer_type == LINEAR for layer_type in layer_types)
