"""Damage to drafters of DFlash 2: convolutions, codebooks, and the keys that give their sizes."""

from __future__ import annotations

import numpy as np

from tests.bad_checkpoints.make_bad import (
    GOOD,
    HIDDEN,
    VOCAB,
    BadCheckpoint,
    bad,
    good_drafter,
    pack,
)
from tests.bad_checkpoints.quantized_cases import _repack

DFLASH2 = "dflash2 drafter"
RANK, TAPS, GROUP = 3, 2, 2
_SELECTOR = "candidate_selector."
_PREDECESSORS = f"{_SELECTOR}predecessor_codebook"
_CONV = "layers.0.attention_conv."


def good_dflash2() -> BadCheckpoint:
    """Return a one-layer drafter of DFlash 2, nothing spoiled yet."""
    model = good_drafter()
    shapes = {name: entry["shape"] for name, entry in model.weights.header.items()}
    for conv in ("attention_conv", "mlp_conv"):
        name = f"layers.0.{conv}."
        shapes[f"{name}base_kernel"] = [2, TAPS, HIDDEN]
        shapes[f"{name}kernel_projection.weight"] = [2 * TAPS * HIDDEN // GROUP, HIDDEN]
    for book in ("predecessor", "successor"):
        shapes[f"{_SELECTOR}{book}_codebook"] = [VOCAB, RANK]
    shapes[f"{_SELECTOR}hidden_projection.weight"] = [RANK, HIDDEN]
    settings = {
        "architectures": ["DFlash2DraftModel"],
        "conv_kernel_size": TAPS,
        "conv_group_size": GROUP,
        "selector_rank": RANK,
        "selector_top_k": 4,
    }
    return BadCheckpoint(model.config | settings, pack(shapes))


GOOD |= {DFLASH2: good_dflash2}


@bad(r"missing: candidate_selector.predecessor_codebook", base=DFLASH2)
def dflash2_without_a_codebook(model: BadCheckpoint) -> None:
    _repack(model, {_PREDECESSORS: None})


@bad(r"predecessor_codebook and .*codebook.weight are both there", base=DFLASH2)
def dflash2_with_a_codebook_under_both_names(model: BadCheckpoint) -> None:
    _repack(model, {f"{_PREDECESSORS}.weight": ("BF16", [VOCAB, RANK])})


@bad(r"predecessor_codebook has \[\d+, 4\], expected \[\d+, 3\] = \[vocab_size,", base=DFLASH2)
def dflash2_with_a_codebook_of_another_rank(model: BadCheckpoint) -> None:
    _repack(model, {_PREDECESSORS: ("BF16", [VOCAB, RANK + 1])})


@bad(r"predecessor_codebook has \[3, \d+\], expected \[\d+, 3\]", base=DFLASH2)
def dflash2_with_a_codebook_transposed(model: BadCheckpoint) -> None:
    _repack(model, {_PREDECESSORS: ("BF16", [RANK, VOCAB])})


@bad(r"predecessor_codebook is I32 \(supported: ", base=DFLASH2)
def dflash2_with_a_codebook_of_integers(model: BadCheckpoint) -> None:
    _repack(model, {_PREDECESSORS: ("I32", [VOCAB, RANK])})


@bad(r"predecessor_codebook has nan at index", base=DFLASH2)
def dflash2_with_a_codebook_of_nan(model: BadCheckpoint) -> None:
    begin, _ = model.weights.header[_PREDECESSORS]["data_offsets"]
    model.weights.data[begin : begin + 4] = np.array([np.nan], np.float32).tobytes()


@bad(r"missing: layers.0.mlp_conv.base_kernel \[2, 2, \d+\]", base=DFLASH2)
def dflash2_without_a_base_kernel(model: BadCheckpoint) -> None:
    _repack(model, {"layers.0.mlp_conv.base_kernel": None})


@bad(r"base_kernel has \[2, 2, \d+\], expected \[2, 3, \d+\]", base=DFLASH2)
def dflash2_of_another_kernel_size(model: BadCheckpoint) -> None:
    model.config["conv_kernel_size"] = 3


@bad(r"kernel_projection.weight has .* expected .* = \[2\*conv.kernel_size\*num_", base=DFLASH2)
def dflash2_of_another_group_size(model: BadCheckpoint) -> None:
    model.config["conv_group_size"] = 1


@bad(r"conv_group_size is 5, expected a divisor of hidden_size", base=DFLASH2)
def dflash2_of_groups_that_do_not_divide(model: BadCheckpoint) -> None:
    model.config["conv_group_size"] = 5


@bad(r"hidden_projection.weight has .* expected \[5, \d+\]", base=DFLASH2)
def dflash2_of_another_rank(model: BadCheckpoint) -> None:
    model.config["selector_rank"] = 5


@bad(r"selector_top_k is \d+, expected at least 1 and at most \d+", base=DFLASH2)
def dflash2_with_more_candidates_than_tokens(model: BadCheckpoint) -> None:
    model.config["selector_top_k"] = VOCAB + 1


@bad(r"conv_kernel_size is a key of DFlash 2, but architectures is", base=DFLASH2)
def dflash2_called_dflash(model: BadCheckpoint) -> None:
    model.config["architectures"] = ["DFlashDraftModel"]


@bad(r"unexpected: .*layers.0.attention_conv.base_kernel", base="drafter")
def convolutions_in_a_drafter_of_v1(model: BadCheckpoint) -> None:
    _repack(model, {f"{_CONV}base_kernel": ("BF16", [2, TAPS, HIDDEN])})
