"""Sound files with the wrong tensors in them: missing, unexpected, misshapen, of a wrong dtype, not
finite.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.bad_checkpoints.make_bad import HIDDEN, VOCAB, BadCheckpoint, bad, pack

NORM = "model.norm.weight"


def _repack(model: BadCheckpoint, changes: dict[str, list[int] | None]) -> None:
    """Store the same tensors with some shapes changed, added, or (None) removed."""
    shapes = {name: entry["shape"] for name, entry in model.weights.header.items()} | changes
    model.weights = pack({name: shape for name, shape in shapes.items() if shape is not None})


def _poke(model: BadCheckpoint, name: str, index: int, value: float) -> None:
    begin, _ = model.entry(name)["data_offsets"]
    blob = np.array(value, dtype=ml_dtypes.bfloat16).tobytes()
    model.weights.data[begin + 2 * index : begin + 2 * index + 2] = blob


@bad(r"missing: model.norm.weight \[6\]")
def missing_tensor(model: BadCheckpoint) -> None:
    _repack(model, {NORM: None})


@bad(r"unexpected: model.layers.0.self_attn.q_norm.weight \[4\]")
def unexpected_tensor(model: BadCheckpoint) -> None:
    _repack(model, {"model.layers.0.self_attn.q_norm.weight": [4]})


@bad(r"unexpected: model.layers.1.input_layernorm.weight \[6\]")
def one_layer_too_many(model: BadCheckpoint) -> None:
    _repack(model, {"model.layers.1.input_layernorm.weight": [HIDDEN]})


@bad(
    r"lm_head.weight has \[6, 11\], expected \[11, 6\] = \[vocab_size, hidden_size\]\n"
    r"Pass the config.json that belongs to these weights"
)
def transposed_head(model: BadCheckpoint) -> None:
    _repack(model, {"lm_head.weight": [HIDDEN, VOCAB]})


@bad(
    r"(?s)missing: model.norm.weight.*unexpected: model.final_norm.weight.*wrong shape:"
    r" lm_head.weight has \[12, 6\]"
)
def three_faults_in_one_error(model: BadCheckpoint) -> None:
    _repack(
        model,
        {
            NORM: None,
            "model.final_norm.weight": [HIDDEN],
            "lm_head.weight": [VOCAB + 1, HIDDEN],
        },
    )


@bad(r"wrong dtype: model.norm.weight is I16 \(supported: F32, F16, BF16\)")
def integer_weight(model: BadCheckpoint) -> None:
    model.entry(NORM)["dtype"] = "I16"


@bad(r"wrong shape: model.norm.weight has \[\]")
def scalar_and_zero_size(model: BadCheckpoint) -> None:
    _repack(model, {NORM: [], "lm_head.weight": [0, HIDDEN]})


@bad(r"tensor lm_head.weight has nan at index \[10, 5\]")
def nan_weight(model: BadCheckpoint) -> None:
    _poke(model, "lm_head.weight", VOCAB * HIDDEN - 1, float("nan"))


@bad(r"tensor model.layers.0.mlp.down_proj.weight has -inf at index \[1, 3\]")
def infinite_weight(model: BadCheckpoint) -> None:
    _poke(model, "model.layers.0.mlp.down_proj.weight", 13, float("-inf"))


@bad(
    "tie_word_embeddings is true, but lm_head.weight is stored and differs from the embedding at"
    " index"
)
def tied_head_that_differs(model: BadCheckpoint) -> None:
    model.config["tie_word_embeddings"] = True
    _poke(model, "lm_head.weight", 7, 5.0)


@bad(
    r"fc.weight has \[6, 12\], expected \[6, 18\] = \[hidden_size, num_taps\*hidden_size\]",
    base="drafter",
)
def fc_for_other_taps(model: BadCheckpoint) -> None:
    model.config["dflash_config"] = model.config["dflash_config"] | {
        "target_layer_ids": [0, 1, 2]
    }


@bad(
    "layers.0.self_attn.q_proj.weight_quantizer._amax .1 such tensors. shows ModelOpt's"
    " calibration",
    base="drafter",
)
def quantizer_leftovers(model: BadCheckpoint) -> None:
    _repack(model, {"layers.0.self_attn.q_proj.weight_quantizer._amax": [1]})


@bad(r"wrong shape: embed_tokens.weight has \[9, 6\], expected \[11, 6\]", base="drafter")
def drafter_with_a_smaller_table(model: BadCheckpoint) -> None:
    _repack(model, {"embed_tokens.weight": [9, HIDDEN]})
