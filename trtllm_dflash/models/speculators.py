"""The layout of `speculators`, vLLM's trainer, read as the published one.

Its config.json keeps the layers' sizes in `transformer_layer_config`, a Qwen3 configuration, and
the drafter's own keys beside it. Three things differ in meaning (speculators 0.9.0):

- `aux_hidden_state_layer_ids` counts hidden states, of which number 0 is the embedding: target
  layer i is i + 1 there.
- Full attention is bidirectional in the block. A sliding layer is causal, unless
  `sliding_window_non_causal` is true, which it is for DFlash 2 where it is not said.
- `draft_vocab_size` is smaller than the vocabulary where the drafter has a head of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.models.hf_config import MAX_SIZE, Allowed, HfReader, quote

TARGETS = "aux_hidden_state_layer_ids"
_BODY = "transformer_layer_config"
_MARKERS = ("speculators_model_type", "speculators_config", _BODY, TARGETS)
# speculators_model_type -> the published class that computes the same.
_ARCHITECTURES = {
    "dflash": "DFlashDraftModel",
    "dflash2": "DFlash2DraftModel",
    "dspark": "DSparkDraftModel",
}
_BODY_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
)
_OWN_KEYS = (
    "block_size",
    "mask_token_id",
    "draft_vocab_size",
    "sample_from_anchor",
    "conv_kernel_size",
    "conv_group_size",
    "selector_rank",
    "selector_top_k",
    "markov_rank",
    "markov_head_type",
)


@dataclass(frozen=True)
class Verifier:
    """The target that a drafter says it was trained for.

    `name` is "" where it is not said; `architectures` are Hugging Face's classes.
    """

    name: str
    architectures: tuple[str, ...]


def is_speculators(config_json: Mapping[str, Any]) -> bool:
    """Tell whether a drafter's config.json has this layout."""
    return any(config_json.get(key) is not None for key in _MARKERS)


def read_verifier(config_json: Mapping[str, Any], where: str) -> Verifier:
    """Return the target that config.json names.

    Raises: ConfigError: for a section that is no object, or another type in it.
    """
    outer = HfReader(config_json, where).section("speculators_config")
    reader = outer.section("verifier") if outer else None
    if reader is None:
        return Verifier("", ())
    return Verifier(
        name=reader.read(str, "name_or_path", default=""),
        architectures=reader.read_list(str, "architectures", default=()),
    )


def flat_config(config_json: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return config.json in the flat layout; errors name the keys that the file has.

    Raises: ConfigError.
    """
    reader = HfReader(config_json, where)
    method = reader.read(str, "speculators_model_type")
    if method not in _ARCHITECTURES:
        known = " or ".join(map(quote, _ARCHITECTURES))
        reader.fail(
            "speculators_model_type", f"is {quote(method)}, and only {known} is supported."
        )
    body = reader.section(_BODY)
    if body is None:
        reader.fail(_BODY, "is missing. It has the sizes of the drafter's layers; add it.")
    read_verifier(config_json, where)
    _check_body(reader, body)
    flat = {key: body.data[key] for key in _BODY_KEYS if body.get(key) is not None}
    flat |= {key: reader.get(key) for key in _OWN_KEYS}
    flat |= {
        "architectures": [_ARCHITECTURES[method]],
        "target_layer_ids": _target_layers(reader),
    }
    if reader.read(bool, "sliding_window_non_causal", default=method == "dflash2"):
        flat["is_causal"] = False
    return flat


def _check_body(reader: HfReader, body: HfReader) -> None:
    """Refuse what the layers would compute otherwise, by the keys' full paths."""
    body.check_allowed(
        (Allowed("model_type", ("qwen3",), "a DFlash drafter's layers are Qwen3's."),)
    )
    hidden = body.read(int, "hidden_size", low=1, high=MAX_SIZE)
    reader.check_allowed(
        (
            Allowed(
                "target_hidden_size",
                (hidden,),
                "the drafter and its target share their embedding.",
            ),
        )
    )


def _target_layers(reader: HfReader) -> list[int]:
    """Return the tap layers, counted from 0."""
    hidden_states = reader.read_list(int, TARGETS)
    for number in hidden_states:
        if number < 1:
            reader.fail(
                TARGETS,
                f"contains {number}, expected at least 1: hidden state 0 is the embedding, and the"
                " output of target layer i is hidden state i + 1.",
            )
    return [number - 1 for number in hidden_states]
