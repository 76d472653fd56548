"""Damage to drafters of other makers: lists of tokens, Markov heads, sinks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.bad_checkpoints.make_bad import (
    GOOD,
    HIDDEN,
    VOCAB,
    BadCheckpoint,
    bad,
    good_drafter,
    pack_bytes,
)
from tests.bad_checkpoints.quantized_cases import _repack

SPECULATORS = "speculators drafter"
IDS, RANK, HEADS = (1, 4, 5, 9), 3, 2
_BODY = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
)


def good_speculators() -> BadCheckpoint:
    """Return a drafter with a vocabulary of its own and a Markov head, nothing spoiled yet."""
    model = good_drafter()
    ids = np.array(IDS)
    _add(
        model,
        {
            "lm_head.weight": np.full((len(IDS), HIDDEN), 0.25, np.float32),
            "d2t": ids - np.arange(len(IDS)),
            "t2d": np.isin(np.arange(VOCAB), ids),
            "markov_head.markov_w1.weight": np.full((VOCAB, RANK), 0.5, np.float32),
            "markov_head.markov_w2.weight": np.full((len(IDS), RANK), 0.5, np.float32),
            "confidence_head.proj.weight": np.zeros((1, HIDDEN + RANK), np.float32),
        },
    )
    model.config = {
        "architectures": ["DSparkDraftModel"],
        "speculators_model_type": "dspark",
        "speculators_config": {"verifier": {"architectures": ["LlamaForCausalLM"]}},
        "transformer_layer_config": {key: model.config[key] for key in _BODY},
        "aux_hidden_state_layer_ids": [1, 3],
        "block_size": 4,
        "mask_token_id": 10,
        "draft_vocab_size": len(IDS),
        "sample_from_anchor": True,
        "markov_rank": RANK,
        "markov_head_type": "vanilla",
    }
    return model


def _add(model: BadCheckpoint, arrays: Mapping[str, np.ndarray]) -> None:
    """Store tensors beside the others, or in their place."""
    tensors = {}
    for name, entry in model.weights.header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], bytes(model.weights.data[begin:end]))
    dtypes = {"float32": "F32", "int64": "I64", "bool": "BOOL"}
    for name, array in arrays.items():
        tensors[name] = (dtypes[array.dtype.name], list(array.shape), array.tobytes())
    model.weights = pack_bytes(tensors)


GOOD |= {SPECULATORS: good_speculators}


@bad("4 of 11 tokens, but there is no tensor d2t", base=SPECULATORS)
def a_head_without_its_list(model: BadCheckpoint) -> None:
    _repack(model, {"d2t": None})


@bad(r"d2t\[3\] is \d+, so row 3 .* and tokens are 0 to 10", base=SPECULATORS)
def offsets_of_garbage(model: BadCheckpoint) -> None:
    _add(model, {"d2t": np.array([1, 3, 3, 72 << 40])})


@bad("4 rows of the head stand for 3 tokens only", base=SPECULATORS)
def a_token_twice(model: BadCheckpoint) -> None:
    _add(model, {"d2t": np.array([1, 0, 3, 6])})


@bad("t2d has token 0 and d2t has not .* is taken as an offset", base=SPECULATORS)
def flags_of_other_tokens(model: BadCheckpoint) -> None:
    _add(model, {"t2d": np.isin(np.arange(VOCAB), (0, 4, 5, 9))})


@bad(r"markov_w2.weight has \[4, 3\], expected \[4, 5\]", base=SPECULATORS)
def a_markov_head_of_another_rank(model: BadCheckpoint) -> None:
    _add(model, {"markov_head.markov_w1.weight": np.zeros((VOCAB, 5), np.float32)})
    model.config["markov_rank"] = 5


@bad("markov_w1.weight and markov_head.markov_w1.weight are both there", base=SPECULATORS)
def a_markov_head_under_both_names(model: BadCheckpoint) -> None:
    _add(model, {"markov_w1.weight": np.zeros((VOCAB, RANK), np.float32)})


@bad("unexpected: .*markov_head.gate_proj.weight", base=SPECULATORS)
def a_gate_in_a_plain_markov_head(model: BadCheckpoint) -> None:
    _add(model, {"markov_head.gate_proj.weight": np.zeros((RANK, HIDDEN), np.float32)})


@bad('markov_head_type is "gated", and only "vanilla" is supported', base=SPECULATORS)
def a_gated_markov_head(model: BadCheckpoint) -> None:
    model.config["markov_head_type"] = "gated"


@bad("aux_hidden_state_layer_ids contains 0, expected at least 1", base=SPECULATORS)
def a_tap_on_the_embedding(model: BadCheckpoint) -> None:
    model.config["aux_hidden_state_layer_ids"] = [0, 3]


@bad(r"unexpected: .*self_attn.attention_sink_bias \[2\]", base="drafter")
def sinks_that_the_config_does_not_state(model: BadCheckpoint) -> None:
    _add(model, {"layers.0.self_attn.attention_sink_bias": np.zeros(HEADS, np.float32)})


@bad(r"attention_sink_bias has \[1\], expected \[2\] = \[num_q_heads\]", base="drafter")
def a_sink_for_all_heads(model: BadCheckpoint) -> None:
    _add(model, {"layers.0.self_attn.attention_sink_bias": np.zeros(1, np.float32)})
    model.config["attention_sink_bias"] = True
