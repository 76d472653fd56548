"""DFlashAccept: each row's choice, the longest accepted prefix of the drafts, the bonus, and the
next length.
"""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import Kernel
from trtllm_dflash.graph.ops.sampling import choose_tokens
from trtllm_dflash.graph.ops.spec import OpSpec, Tensor
from trtllm_dflash.options.row_sampling import CHOICE_INPUTS


def _body(
    g: GraphBuilder,
    logits: ir.Value,
    input_ids: ir.Value,
    num_known: ir.Value,
    past_len: ir.Value,
    *sampling_and_more: ir.Value,
) -> tuple[ir.Value, ...]:
    *sampling, noise_key, adjusted, _ = sampling_and_more
    logits = adjusted  # of slots that do not ask they are the logits
    settings = {row.name: value for row, value in zip(CHOICE_INPUTS, sampling, strict=True)}
    width = g.size(input_ids, 1)
    rows = g.size(logits, 1)
    row = g.arange(rows)

    # Row r decides the token behind position num_known-1+r: there stands the draft that it may
    # confirm.
    behind = g.Add(g.Unsqueeze(g.cast(num_known, ir.DataType.INT64), [1]), row)
    position = g.Add(behind, g.Unsqueeze(g.cast(past_len, ir.DataType.INT64), [1]))
    choice = choose_tokens(g, logits, settings, noise_key, position)  # [B, R]

    draft = g.GatherElements(input_ids, g.Min(behind, g.Sub(width, 1)), axis=1)
    valid = _is_finite(g, logits)  # [B, R]
    hit = g.And(g.And(g.Less(behind, width), valid), g.Equal(draft, choice))
    first_miss = g.ReduceMin(g.Where(hit, rows, row), [1], keepdims=1)
    accepted = g.Min(first_miss, g.Sub(rows, 1))  # [B, 1]

    # The bonus stays in the vocabulary, since the drafter's embedding of it is read all the same.
    new_ids = g.Where(g.And(g.LessOrEqual(row, accepted), valid), choice, -1)
    bonus = g.GatherElements(choice, accepted, axis=1)
    accepted = g.cast(g.Squeeze(accepted, [1]), ir.DataType.INT32)
    num_new = g.Add(accepted, g.Cast(1, to=int(ir.DataType.INT32)))
    return new_ids, num_new, g.Add(g.Add(past_len, num_known), accepted), bonus


def _is_finite(g: GraphBuilder, logits: ir.Value) -> ir.Value:
    """Tell which rows decide a token, bool [B, R]: no NaN, and a largest logit that is finite.

    A sum is NaN if a summand is, whatever ReduceMax and ArgMax make of NaN.
    """
    total = g.ReduceSum(logits, [-1], keepdims=0)
    largest = g.Abs(g.ReduceMax(logits, [-1], keepdims=0))
    return g.And(g.Not(g.IsNaN(total)), g.Less(largest, float("inf")))


ACCEPT = OpSpec(
    name="DFlashAccept",
    meaning=(
        "The target's choice in every decided row; drafts are accepted while they equal it, the"
        " first unequal choice is the bonus. Lossless: what is committed does not depend on the"
        " drafts."
    ),
    inputs=(
        Tensor(
            "logits",
            "float32",
            "[B, R, V]",
            "row r decides the token behind position num_known-1+r",
        ),
        Tensor("input_ids", "int64", "[B, S]", "decided tokens, then drafts"),
        Tensor("num_known", "int32", "[B]", "how many are decided, 1 … S"),
        Tensor("past_len", "int32", "[B]", "positions in the caches before the step"),
        *(Tensor(row.name, row.dtype, "[B]", row.help) for row in CHOICE_INPUTS),
        Tensor(
            "noise_key",
            "int64",
            "[B, 4]",
            "numbers below 2^31; with the position that row r decides, past_len + num_known + r, it"
            " fixes the noise of every token there",
        ),
        Tensor(
            "adjusted",
            "float32",
            "[B, R, V]",
            "what counts instead of the logits in slots that ask; the kernel does not read others,"
            " and for the body they equal the logits",
        ),
        Tensor("adjusts", "int32", "[B]", "what the slot asks for; 0: nothing"),
    ),
    outputs=(
        Tensor(
            "new_ids",
            "int64",
            "[B, R]",
            "the choices 0 … accepted, then -1; -1 too where a row's logits have NaN, or no finite"
            " largest; such a row confirms no draft",
        ),
        Tensor("num_new", "int32", "[B]", "accepted + 1"),
        Tensor("next_len", "int32", "[B]", "past_len + num_known + accepted"),
        Tensor("bonus", "int64", "[B, 1]", "the choice of row accepted, the next anchor"),
    ),
    attributes=(),
    reference_body=_body,
    kernel=Kernel("accept", "float32"),
)
