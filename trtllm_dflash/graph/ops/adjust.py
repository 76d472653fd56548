"""DFlashAdjust: the logits of slots that ask for it, before tokens are chosen from them.

A row decides the token at one position. What stands before that position is the slot's text:
prompt, answer, and the step's own drafts up to there. So penalties and bad words see the text that
a step without drafts would see. As in vLLM, in this order:

    bias         l + bias[v]
    repetition   l / penalty where l > 0, else l · penalty, for tokens of the text
    frequency    l - penalty · (how often v stands in the answer)
    presence     l - penalty, if v stands in the answer
    bad words    -infinity for a sequence's last token, where the text ends with those before it
    mask         -infinity for what this step's mask does not allow

A step in which no slot asks runs none of it: it stands in loops that run no time. Penalties gather
the text's tokens and scatter what they become, so that they cost by the text's length and not by
the vocabulary. Tokens that come twice are written twice, with the same number.

It also writes the step's tokens into the slot's history, which is float32: TensorRT updates only
caches of floats in place. Token ids up to 2^24 are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import Kernel
from trtllm_dflash.graph.ops.spec import Attribute, OpSpec, Tensor
from trtllm_dflash.options.logit_adjustments import (
    BAD_WORDS,
    BIASES,
    MASK,
    NO_TOKEN,
    PENALTIES,
    WORD_BITS,
)
from trtllm_dflash.options.row_sampling import PENALTY_INPUTS

_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_NEVER = float("-inf")
_PAIRWISE = "pairwise"


@dataclass(frozen=True)
class _TextStep:
    """The operator's inputs, and what several parts need of them."""

    g: GraphBuilder
    adjusts: ir.Value
    text: ir.Value  # int64 [B, L]: tokens by position, behind `end` of no meaning
    past: ir.Value  # [B, 1], as the others
    known: ir.Value  # past + num_known
    end: ir.Value  # past + S
    rows: ir.Value  # int64 [R]: 0 … R-1
    positions: ir.Value  # int64 [L]

    def asks(self, bit: int) -> ir.Value:
        """Tell which slots ask for one kind, bool [B, 1, 1]."""
        g = self.g
        shifted = g.Div(g.cast(self.adjusts, _INT64), bit)
        return g.Unsqueeze(g.Equal(g.Mod(shifted, 2), 1), [1, 2])

    def any_asks(self, bit: int) -> ir.Value:
        """Return 1 if any slot asks for one kind, else 0; an int64 scalar."""
        return self.g.ReduceMax(self.g.cast(self.asks(bit), _INT64), keepdims=0)

    def tokens_at(self, positions: ir.Value) -> ir.Value:
        """Return the text's tokens at positions [B, N]; NO_TOKEN - 1 where no text stands."""
        g = self.g
        inside = g.And(g.GreaterOrEqual(positions, 0), g.Less(positions, self.end))
        place = g.Max(g.Min(positions, g.Sub(g.size(self.text, 1), 1)), 0)
        return g.Where(inside, g.GatherElements(self.text, place, axis=1), NO_TOKEN - 1)


def _body(
    g: GraphBuilder,
    logits: ir.Value,
    history: ir.Value,
    input_ids: ir.Value,
    num_known: ir.Value,
    past_len: ir.Value,
    adjusts: ir.Value,
    prompt_len: ir.Value,
    repetition: ir.Value,
    frequency: ir.Value,
    presence: ir.Value,
    bias_ids: ir.Value,
    bias_values: ir.Value,
    bad_words: ir.Value,
    token_mask: ir.Value,
    kv_positions: ir.Value,
) -> tuple[ir.Value, ...]:
    rows_of_text = g.cast(g.Unsqueeze(input_ids, [1, 3]), _FLOAT)
    history = g.TensorScatter(history, rows_of_text, g.cast(past_len, _INT64), axis=2)

    def adjusted(x: ir.Value) -> tuple[ir.Value]:
        past = g.Unsqueeze(g.cast(past_len, _INT64), [1])
        text = g.Slice(history, [0], g.size(kv_positions, 0), [2])
        step = _TextStep(
            g,
            adjusts,
            g.cast(g.Squeeze(text, [1, 3]), _INT64),
            past,
            g.Add(past, g.Unsqueeze(g.cast(num_known, _INT64), [1])),
            g.Add(past, g.size(input_ids, 1)),
            g.arange(g.size(x, 1)),
            kv_positions,
        )
        penalties = (repetition, frequency, presence)
        x = _where_asked(step, BIASES, x, lambda x: _biased(step, x, bias_ids, bias_values))
        if g.has_attribute(_PAIRWISE):
            # TensorRT-RTX 1.7 compiles no loop in a loop in a loop, and counting is one.
            x = _penalized(step, x, prompt_len, penalties)
        else:
            x = _where_asked(
                step, PENALTIES, x, lambda x: _penalized(step, x, prompt_len, penalties)
            )
        x = _where_asked(step, BAD_WORDS, x, lambda x: _without_words(step, x, bad_words))
        return (_where_asked(step, MASK, x, lambda x: _masked(step, x, token_mask)),)

    asked = g.cast(g.Not(g.Equal(g.cast(adjusts, _INT64), 0)), _INT64)
    return g.repeat(g.ReduceMax(asked, keepdims=0), (logits,), adjusted)[0], history


def _where_asked(
    step: _TextStep, bit: int, x: ir.Value, change: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Return `change(x)` if any slot asks for this kind, else x."""
    return step.g.repeat(step.any_asks(bit), (x,), lambda x: (change(x),))[0]


def _biased(step: _TextStep, x: ir.Value, ids: ir.Value, values: ir.Value) -> ir.Value:
    """Return x with every slot's biases. Unused entries repeat a used one."""
    g = step.g
    values = g.Where(step.asks(BIASES), g.Unsqueeze(values, [1]), 0.0)  # [B, 1, K]
    return _changed(step, x, g.cast(ids, _INT64), lambda old: g.Add(old, values))


def _changed(
    step: _TextStep, x: ir.Value, tokens: ir.Value, change: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Return x [B, R, V] with `change` of the numbers [B, R, N] that tokens [B, N] have in it.

    It must give a token's every place the same.
    """
    g = step.g
    shape = g.Concat(g.Shape(x, start=0, end=2), g.size(tokens, 1), axis=0)
    # By places in all of x: TensorRT's ScatterElements takes no more tokens than there are in V.
    rows = g.Mul(g.size(x, 0), g.size(x, 1))
    first = g.Mul(g.arange(rows), g.size(x, 2))
    first = g.Reshape(first, g.Concat(g.Shape(x, start=0, end=2), [1], axis=0))
    places = g.Reshape(g.Add(first, g.Unsqueeze(tokens, [1])), [-1])
    flat = g.Reshape(x, [-1])
    new = change(g.Reshape(g.Gather(flat, places, axis=0), shape))
    flat = g.ScatterND(flat, g.Unsqueeze(places, [1]), g.Reshape(new, [-1]))
    return g.Reshape(flat, g.Shape(x))


def _penalized(
    step: _TextStep, x: ir.Value, prompt_len: ir.Value, penalties: tuple[ir.Value, ...]
) -> ir.Value:
    """Return x with the penalties for tokens of the text before each row."""
    g = step.g
    repetition, frequency, presence = (g.Unsqueeze(value, [1, 2]) for value in penalties)
    counted = g.Less(step.positions, step.known)  # [B, L]
    answer = g.GreaterOrEqual(step.positions, g.Unsqueeze(g.cast(prompt_len, _INT64), [1]))
    tokens = g.Where(g.Less(step.positions, step.end), step.text, 0)
    weights = (g.cast(counted, _FLOAT), g.cast(g.And(counted, answer), _FLOAT))
    counts = (_counts_by_pairs if g.has_attribute(_PAIRWISE) else _counts)(
        step, x, tokens, weights
    )

    # Drafts stand before the rows behind them, and are part of the answer.
    path = step.tokens_at(g.Add(step.known, step.rows))  # [B, R]
    is_draft = g.cast(g.Equal(g.Unsqueeze(path, [2]), g.Unsqueeze(tokens, [1])), _FLOAT)
    along = g.CumSum(is_draft, 1, exclusive=1)  # [B, R, L]
    in_text, in_answer = (g.Add(g.Unsqueeze(count, [1]), along) for count in counts)

    def penalized(old: ir.Value) -> ir.Value:
        repeated = g.Where(g.Greater(old, 0.0), g.Div(old, repetition), g.Mul(old, repetition))
        new = g.Where(g.Greater(in_text, 0.0), repeated, old)
        new = g.Sub(new, g.Mul(frequency, in_answer))
        new = g.Sub(new, g.Mul(presence, g.Min(in_answer, 1.0)))
        return g.Where(step.asks(PENALTIES), new, old)

    return _changed(step, x, tokens, penalized)


def _counts(
    step: _TextStep, x: ir.Value, tokens: ir.Value, weights: Sequence[ir.Value]
) -> list[ir.Value]:
    """Return for each weight [B, L] what all places of each place's token have of it, [B, L]."""
    g = step.g
    zeros = g.Expand(0.0, g.Concat(g.size(tokens, 0), g.size(x, 2), axis=0))
    tables = [g.ScatterElements(zeros, tokens, w, axis=1, reduction="add") for w in weights]
    return [g.GatherElements(table, tokens, axis=1) for table in tables]


def _counts_by_pairs(
    step: _TextStep, _: ir.Value, tokens: ir.Value, weights: Sequence[ir.Value]
) -> list[ir.Value]:
    """Return the same, place by place: TensorRT-RTX 1.7 has no scatter that adds."""
    g = step.g
    zeros = g.Mul(weights[0], 0.0)

    def count(place: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        at = g.Unsqueeze(place, [0])
        same = g.cast(g.Equal(tokens, g.Gather(tokens, at, axis=1)), _FLOAT)
        return [
            g.Add(total, g.Mul(same, g.Gather(weight, at, axis=1)))
            for total, weight in zip(sums, weights, strict=True)
        ]

    times = g.Mul(g.Squeeze(g.size(tokens, 1)), step.any_asks(PENALTIES))
    return list(g.loop(times, [zeros] * len(weights), lambda at, *sums: count(at, *sums)))


def _without_words(step: _TextStep, x: ir.Value, words: ir.Value) -> ir.Value:
    """Return x without the last tokens of words whose tokens before it end the text."""
    g = step.g
    before = g.size(words, 2)
    before = g.Sub(before, 1)
    words = g.cast(words, _INT64)
    first = g.Slice(words, [0], before, [2])  # [B, W, N-1]
    last = g.Squeeze(g.Slice(words, before, [2**31 - 1], [2]), [2])  # [B, W]
    ends = g.Unsqueeze(g.Add(step.known, step.rows), [2])  # [B, R, 1]
    places = g.Add(g.Sub(ends, before), g.arange(before))  # [B, R, N-1]
    flat = g.Reshape(places, g.Concat(g.size(x, 0), [-1], axis=0))
    text = g.Reshape(step.tokens_at(flat), g.Shape(places))
    first, text = g.Unsqueeze(first, [1]), g.Unsqueeze(text, [2])
    fits = g.Or(g.Equal(first, NO_TOKEN), g.Equal(first, text))  # [B, R, W, N-1]
    fits = g.ReduceMin(g.cast(fits, _INT64), [3], keepdims=0)  # [B, R, W]
    is_word = g.And(g.GreaterOrEqual(last, 0), g.Squeeze(step.asks(BAD_WORDS), [2]))
    fits = g.Mul(fits, g.Unsqueeze(g.cast(is_word, _INT64), [1]))
    # A token that several words end with is forbidden by any of them.
    last = g.Max(last, 0)
    same = g.Unsqueeze(g.Equal(g.Unsqueeze(last, [1]), g.Unsqueeze(last, [2])), [1])
    any_fits = g.ReduceMax(g.Where(same, g.Unsqueeze(fits, [2]), 0), [3], keepdims=0)
    is_bad = g.Greater(any_fits, 0)
    return _changed(step, x, last, lambda old: g.Where(is_bad, _NEVER, old))


def _masked(step: _TextStep, x: ir.Value, mask: ir.Value) -> ir.Value:
    """Return x with -infinity for tokens whose bit is 0; bit i of element w is token 32·w + i."""
    g = step.g
    words = g.cast(mask, _INT64)
    words = g.Where(g.Less(words, 0), g.Add(words, 2**WORD_BITS), words)
    # By whole bytes, whose bits come out of a table: a division for each bit costs more.
    parts = g.Div(g.Unsqueeze(words, [3]), [1, 2**8, 2**16, 2**24])
    bits = g.Gather(g.constant(_byte_bits()), g.Mod(parts, 256), axis=0)  # [B, R, M, 4, 8]
    bits = g.Reshape(bits, g.Concat(g.Shape(x, start=0, end=2), [-1], axis=0))
    allowed = g.Greater(g.Slice(bits, [0], g.size(x, 2), [2]), 0.0)
    return g.Where(g.Or(allowed, g.Not(step.asks(MASK))), x, _NEVER)


def _byte_bits() -> np.ndarray:
    """Return the bits of every byte, the lowest first, float32 [256, 8]."""
    every = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    return np.unpackbits(every, axis=1, bitorder="little").astype(np.float32)


ADJUST = OpSpec(
    name="DFlashAdjust",
    meaning=(
        "The logits of slots that ask for penalties, biases, bad words or a mask. What counts is"
        " the text before each row: drafts of the step count for the rows behind them. The step's"
        " tokens are written into the history."
    ),
    inputs=(
        Tensor("logits", "float32", "[B, R, V]", "of the rows from num_known-1 on"),
        Tensor(
            "history",
            "float32",
            "[B, 1, H, 1]",
            "token ids by position, exact up to 2^24; updated in place",
        ),
        Tensor("input_ids", "int64", "[B, S]", "the step's tokens, from past_len on"),
        Tensor("num_known", "int32", "[B]", "how many of them are decided, 1 … S"),
        Tensor("past_len", "int32", "[B]", "positions before the step; past_len + S ≤ H"),
        Tensor(
            "adjusts",
            "int32",
            "[B]",
            f"what the slot asks for, a sum of {PENALTIES}: penalties, {BIASES}: biases,"
            f" {BAD_WORDS}: bad words, {MASK}: the mask",
        ),
        Tensor(
            "prompt_len", "int32", "[B]", "tokens of the prompt; those behind are the answer"
        ),
        *(Tensor(row.name, row.dtype, "[B]", row.help) for row in PENALTY_INPUTS),
        Tensor("bias_ids", "int32", "[B, K]", "tokens with a bias; unused entries repeat one"),
        Tensor("bias_values", "float32", "[B, K]", "added to their logits"),
        Tensor(
            "bad_words",
            "int32",
            "[B, W, N]",
            f"sequences of tokens that must not come; each ends at N, before it stands {NO_TOKEN}",
        ),
        Tensor(
            "token_mask",
            "int32",
            "[B, R, M]",
            "bit i of element w: token 32·w + i is allowed in that row",
        ),
        Tensor("kv_positions", "int64", "[L]", "0 … L-1, L ≥ past_len + S", body_only=True),
    ),
    outputs=(
        Tensor(
            "adjusted",
            "float32",
            "[B, R, V]",
            "of slots that ask. Of others the body gives the logits, and the kernel nothing",
        ),
        Tensor(
            "history_out",
            "float32",
            "[B, 1, H, 1]",
            "the memory of history: the step's tokens from past_len on",
            aliases="history",
        ),
    ),
    attributes=(
        Attribute(
            _PAIRWISE,
            1,
            "tokens are counted pair by pair, for compilers whose scatter does not add",
            optional=True,
            body_only=True,
        ),
    ),
    reference_body=_body,
    kernel=Kernel("adjust", "float32"),
)
