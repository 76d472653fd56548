"""An autoregressive drafter, EAGLE-3, as work: for comparison, by formula, since no graph of ours
has one.

Source: EAGLE-3 (arXiv 2503.01840). One Llama layer whose attention reads the token's embedding
beside the hidden state (inputs of twice the width), behind a projection of three of the target's
layers; a head over a short vocabulary. It runs over the tokens that were just committed, which
gives the tree's first depth, and once for every further one.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.estimate.count import ACTIVATION_BYTES, LOGIT_BYTES, Work
from trtllm_dflash.estimate.known import KnownTarget
from trtllm_dflash.estimate.precision import Number

_TAPS = 3


@dataclass(frozen=True)
class Eagle:
    """`layers` of the target's own sizes, and a tree of `tokens` verified drafts, `depth` long and
    `branches` wide.

    Where the target has experts, its MLP is as wide as the top_k of a token.
    """

    tokens: int
    depth: int
    branches: int
    layers: int = 1
    vocab_size: int = 32000

    def works(self, target: KnownTarget, number: Number) -> tuple[Work, ...]:
        """All that it does in one step; the target's verification is not in it."""
        first = [
            *self._fusion(target, number),
            *self._pass(target, number, rows=self.depth + 1, scored=1),
        ]
        later = self._pass(target, number, rows=self.branches, scored=self.branches)
        return (*first, *later * (self.depth - 1))

    def _fusion(self, target: KnownTarget, number: Number) -> list[Work]:
        return [
            _linear(
                number,
                self.depth + 1,
                _TAPS * target.config.hidden_size,
                target.config.hidden_size,
                reduced=True,
            )
        ]

    def _pass(self, known: KnownTarget, number: Number, *, rows: int, scored: int) -> list[Work]:
        t = known.config
        q_size, kv_size = t.num_q_heads * t.head_dim, t.num_kv_heads * t.head_dim
        inner = t.moe.intermediate_size * t.moe.top_k if t.moe else t.intermediate_size
        hidden = t.hidden_size
        attention = Work(
            "drafter",
            "attention",
            number,
            rows,
            row_bytes=2 * (q_size + kv_size) * ACTIVATION_BYTES,
            position_bytes=2 * kv_size * ACTIVATION_BYTES,
            position_flops=4 * rows * q_size,
            kernels=3,
        )
        small = Work("drafter", "other", number, rows, row_bytes=2 * hidden * ACTIVATION_BYTES)
        layer = [
            small,
            _linear(number, rows, 2 * hidden, q_size + 2 * kv_size),
            attention,
            _linear(number, rows, q_size, hidden, reduced=True),
            small,
            _linear(number, rows, hidden, 2 * inner),
            small,
            _linear(number, rows, inner, hidden, reduced=True),
        ]
        head = _linear(number, scored, hidden, self.vocab_size, written=LOGIT_BYTES, kind="head")
        # The best branches of each node, the best nodes of all, and the next inputs.
        choice = Work(
            "drafter", "other", number, scored, row_bytes=self.vocab_size * LOGIT_BYTES, kernels=3
        )
        return [*layer * self.layers, small, head, choice]


def _linear(
    number: Number,
    rows: int,
    columns: int,
    outputs: int,
    *,
    reduced: bool = False,
    written: int = ACTIVATION_BYTES,
    kind: str = "linear",
) -> Work:
    return Work(
        "drafter",
        kind,
        number,
        rows,
        weight_bytes=columns * outputs * number.bits / 8,
        row_bytes=columns * ACTIVATION_BYTES + outputs * written,
        row_flops=2 * columns * outputs,
        reduced_bytes=outputs * ACTIVATION_BYTES if reduced else 0.0,
    )
