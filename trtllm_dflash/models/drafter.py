"""The DFlash drafter's configuration, read once from the published layout and frozen.

The tap convention, written once: `target_layer_ids` counts the target's decoder layers from 0. Id i
means the residual stream AFTER layer i: both additions done, the next layer's norm not yet applied.
Hugging Face calls it `hidden_states[i + 1]`, because its `hidden_states[0]` is the embedding. vLLM,
SGLang and llama.cpp store i + 1. TensorRT-LLM sorts the ids; we keep their order, in which `fc` was
trained to see the features. For the last layer, Hugging Face's entry is after the final norm and
therefore not the same tensor: `check_pair` refuses that id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtllm_dflash.models import dflash2, draft_tables, dspark
from trtllm_dflash.models.automodel import is_automodel, published_config
from trtllm_dflash.models.base import MAX_LAYERS, read_kv_heads
from trtllm_dflash.models.decoder import (
    ROPE_BUFFER,
    attention_specs,
    mlp_specs,
)
from trtllm_dflash.models.dflash2 import DraftConvConfig, SelectorConfig
from trtllm_dflash.models.draft_masks import DraftLayerConfig, read_masks
from trtllm_dflash.models.drafter_keys import either
from trtllm_dflash.models.hf_config import MAX_SIZE, Allowed, HfReader, quote
from trtllm_dflash.models.rope import RopeConfig
from trtllm_dflash.models.speculators import flat_config, is_speculators
from trtllm_dflash.models.tensor_specs import IgnoredSpec, TensorSpec, TensorTable
from trtllm_dflash.models.unsupported_drafters import ARCHITECTURE, refuse_unsupported_in_config

MIN_BLOCK_SIZE = 2
MAX_BLOCK_SIZE = 64

_ALLOWED = (
    Allowed(
        "architectures",
        ([ARCHITECTURE], [dflash2.ARCHITECTURE], *([name] for name in dspark.ARCHITECTURES)),
        "this is no drafter of DFlash, DFlash 2 or DSpark.",
    ),
    Allowed(
        "model_type",
        ("qwen3",),
        "a DFlash drafter's layers are Qwen3's, whatever its target is.",
    ),
    Allowed("hidden_act", ("silu",), "the MLP is built as SwiGLU."),
    Allowed("mlp_bias", (False,), "a DFlash drafter's MLP has no bias."),
)

_LAYER = "layers.{i}."
SINKS = "attention_sink_bias"
DRAFTER_TENSORS = TensorTable(
    used=(
        TensorSpec("fc.weight", ("hidden_size", "num_taps*hidden_size"), is_linear=True),
        TensorSpec("hidden_norm.weight", ("hidden_size",)),
        *attention_specs(_LAYER, qk_norm=True),
        *mlp_specs(_LAYER),
        TensorSpec(f"{_LAYER}self_attn.{SINKS}", ("num_q_heads",), when="has_sinks"),
        *dflash2.dflash2_specs(_LAYER),
        TensorSpec("norm.weight", ("hidden_size",)),
        *draft_tables.USED,
        *dspark.USED,
    ),
    ignored=(
        *draft_tables.IGNORED,
        *dspark.IGNORED,
        IgnoredSpec(f"{_LAYER}self_attn.rotary_emb.inv_freq", reason=ROPE_BUFFER),
        IgnoredSpec("rotary_emb.inv_freq", reason=ROPE_BUFFER),
    ),
)


@dataclass(frozen=True)
class DrafterConfig:
    """A DFlash drafter: Qwen3 layers that see the target's features through `fc`.

    `target_layer_ids`: id i is the output of target layer i, 0-based, in the order given.
    `block_size` counts the anchor and its drafts. With `sample_from_anchor` the anchor's row drafts
    too, so there is a row less than that. `attention_bias` puts a bias on q, k, v and o.
    `num_target_layers` may be missing. `conv` and `selector` are those of DFlash 2, None in v1. The
    selector sees logits times `output_multiplier`, capped at `logit_softcap`; an argmax is the same
    without. `draft_vocab_size`: the rows of a head of its own, None for that of all tokens.
    `embedding_scale` multiplies the block's embeddings; `has_sinks`: attention sinks in all layers.
    `markov_rank`: of DSpark's Markov head, None without one.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    attention_bias: bool
    block_size: int
    mask_token_id: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int | None
    layers: tuple[DraftLayerConfig, ...]
    conv: DraftConvConfig | None = None
    selector: SelectorConfig | None = None
    output_multiplier: float = 1.0
    logit_softcap: float | None = None
    draft_vocab_size: int | None = None
    embedding_scale: float = 1.0
    has_sinks: bool = False
    sample_from_anchor: bool = False
    markov_rank: int | None = None

    @property
    def num_draft_tokens(self) -> int:
        """Return how many tokens the drafter can draft."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def walk(self) -> SelectorConfig | None:
        """Return the walk over candidates of a selector or a Markov head; None: each row's argmax
        is its draft.
        """
        return self.selector or (dspark.walk_of(self.markov_rank) if self.markov_rank else None)

    def rows_of(self, block_size: int) -> int:
        """Return how many rows the drafter computes for a block of so many tokens."""
        return block_size - self.sample_from_anchor

    @property
    def num_conv_groups(self) -> int:
        """Return how many groups of channels have a dynamic kernel of their own; 0: none."""
        return self.hidden_size // self.conv.group_size if self.conv else 0

    @property
    def num_taps(self) -> int:
        """Return how many target layers `fc` reads."""
        return len(self.target_layer_ids)

    @property
    def windows(self) -> tuple[int, ...]:
        """Return each layer's window; 0: none."""
        return tuple(layer.window for layer in self.layers)

    def at_layer(self, _: int) -> DrafterConfig:
        """Return the configuration as a layer sees it; only masks differ, and `layers` has them."""
        return self

    @property
    def tensors(self) -> TensorTable:
        """Return the table of a drafter's tensors."""
        return DRAFTER_TENSORS

    @classmethod
    def from_hf(cls, config_json: dict[str, Any], where: str) -> DrafterConfig:
        """Read config.json; other variants of drafters are refused by name."""
        reader = _read_layout(config_json, where)
        refuse_unsupported_in_config(reader)
        reader.section("dflash_config")
        reader.read_list(str, "architectures")
        reader.check_allowed(_ALLOWED)
        is_dflash2 = dflash2.is_dflash2(reader)
        is_dspark = dspark.is_dspark(reader)
        sample_from_anchor = dspark.read_anchor_rows(reader, default=is_dspark)
        hidden_size = reader.read(int, "hidden_size", low=1, high=MAX_SIZE)
        num_q_heads = reader.read(int, "num_attention_heads", low=1, high=MAX_SIZE)
        head_dim = reader.read(int, "head_dim", low=2, high=MAX_SIZE)
        num_layers = reader.read(int, "num_hidden_layers", low=1, high=MAX_LAYERS)
        vocab_size = reader.read(int, "vocab_size", low=2, high=MAX_SIZE)
        num_target_layers = reader.read(
            int, "num_target_layers", default=None, low=1, high=MAX_LAYERS
        )
        return cls(
            hidden_size=hidden_size,
            intermediate_size=reader.read(int, "intermediate_size", low=1, high=MAX_SIZE),
            num_layers=num_layers,
            num_q_heads=num_q_heads,
            num_kv_heads=read_kv_heads(reader, num_q_heads),
            head_dim=head_dim,
            vocab_size=vocab_size,
            rms_norm_eps=reader.read(float, "rms_norm_eps", low=0.0, high=0.1),
            rope=_read_rope(reader, head_dim),
            attention_bias=reader.read(bool, "attention_bias", default=False),
            block_size=_read_block_size(reader, sample_from_anchor),
            mask_token_id=reader.read(
                int, *either("mask_token_id"), low=0, high=vocab_size - 1
            ),
            target_layer_ids=_read_taps(reader, num_target_layers),
            num_target_layers=num_target_layers,
            layers=read_masks(reader, num_layers),
            conv=dflash2.read_conv(reader, hidden_size) if is_dflash2 else None,
            selector=dflash2.read_selector(reader, vocab_size) if is_dflash2 else None,
            output_multiplier=dflash2.read_multiplier(reader),
            logit_softcap=dflash2.read_softcap(reader),
            draft_vocab_size=draft_tables.read_draft_vocab_size(reader, vocab_size),
            embedding_scale=draft_tables.read_embedding_scale(reader),
            has_sinks=reader.read(
                bool, *either("attention_sink_bias"), *either("attention_sink"), default=False
            ),
            sample_from_anchor=sample_from_anchor,
            markov_rank=dspark.read_markov_rank(reader) if is_dspark else None,
        )


def _read_layout(config_json: dict[str, Any], where: str) -> HfReader:
    """Return a reader of config.json in the published layout, whoever made the drafter."""
    if is_speculators(config_json):
        refuse_unsupported_in_config(HfReader(config_json, where))
        return HfReader(flat_config(config_json, where), f"{where} (layout of speculators)")
    if is_automodel(config_json):
        config_json = published_config(config_json)
    return HfReader(config_json, where)


def _read_block_size(reader: HfReader, sample_from_anchor: bool) -> int:
    """Return the tokens of a block: the anchor and as many drafts as there are rows that draft.

    The key counts rows. The anchor's is one that drafts only with `sample_from_anchor`.
    """
    extra = int(sample_from_anchor)
    low, high = MIN_BLOCK_SIZE - extra, MAX_BLOCK_SIZE - extra
    return reader.read(int, *either("block_size"), low=low, high=high) + extra


def _read_rope(reader: HfReader, head_dim: int) -> RopeConfig:
    rope = RopeConfig.from_hf(reader, head_dim)
    if rope.rope_type == "dynamic":
        path = "rope_parameters" if reader.get("rope_parameters") else "rope_scaling"
        reader.fail(path, "is dynamic, whose positions change with the length. Use yarn.")
    return rope


def _read_taps(reader: HfReader, num_target_layers: int | None) -> tuple[int, ...]:
    path = "dflash_config.target_layer_ids"
    taps = reader.read_list(int, *either("target_layer_ids"))
    if not taps:
        reader.fail(
            path, "is empty. List the target layers whose outputs the drafter was trained on."
        )
    if len(set(taps)) != len(taps):
        reader.fail(
            path,
            f"is {quote(taps)}, which names a layer twice; no DFlash drafter is trained that way.",
        )
    limit = num_target_layers if num_target_layers is not None else MAX_LAYERS
    for tap in taps:
        if not 0 <= tap < limit:
            reader.fail(
                path, f"contains {tap}, expected 0 (the first layer) to {limit - 1} (the last)."
            )
    return taps
