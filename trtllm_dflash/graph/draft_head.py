"""The end of drafting: from the drafter's final rows to the drafts.

A drafter decodes with the target's head, unless it has one of its own. A draft vocabulary limits it
to some of the head's rows. A drafter of DFlash v1 drafts the likeliest token of each row, or the
one that the target's noise makes it choose. DFlash 2's selector chooses among the likeliest of each
row, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.graph.ops import ARGMAX, SELECT
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.dflash2 import PREDECESSORS, SELECTOR, SUCCESSORS, SelectorConfig
from trtllm_dflash.models.draft_tables import HEAD
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.dspark import W1, W2


@dataclass(frozen=True)
class DraftHead:
    """A drafter's head. `vocab` (int64 ids) limits the drafts; None: every token may be one."""

    verifier: LayerBuilder
    target: TargetConfig
    drafter: LayerBuilder
    config: DrafterConfig
    vocab: np.ndarray | None

    def drafts(
        self, hidden: ir.Value, anchor: ir.Value, block_size: int, noise: Sequence[ir.Value]
    ) -> ir.Value:
        """Return the drafts int64 [B, T-1] behind anchor [B, 1]; hidden [B·R, hidden] of its block.

        `noise`: the slots' sampling settings, their noise keys and the anchor's position [B].

        Row j predicts the token at its own position, so row 0 is not used: it is the anchor's,
        which is known. With `sample_from_anchor` it predicts the next token, and there are T-1.
        """
        g = self.drafter.g
        logits = self._logits(self._drafting_rows(hidden, self.config.hidden_size, block_size))
        if self.config.walk is not None:
            logits = self.drafter.wide(logits)
            projected = self._drafting_rows(
                self._projected(self.config.walk, hidden), self.config.walk.rank, block_size
            )
            return self._tokens(self._selected(self.config.walk, logits, projected, anchor))
        listed = [] if self.vocab is None else [self._listed(self.vocab)]
        (places,) = ARGMAX(g, logits, *self._unscaled(noise), *listed)
        return g.Reshape(self._tokens(places), g.Concat(g.size(anchor, 0), [-1], axis=0))

    def _unscaled(self, noise: Sequence[ir.Value]) -> list[ir.Value]:
        """Return the settings for logits that are not multiplied: of another temperature.

        A cap is left out: it costs a pass over all logits, and changes few drafts.
        """
        temperature, *rest = noise
        if self.config.output_multiplier == 1.0:
            return [temperature, *rest]
        return [self.drafter.g.Div(temperature, self.config.output_multiplier), *rest]

    def _drafting_rows(self, x: ir.Value, size: int, block_size: int) -> ir.Value:
        """Return the rows [B·(T-1), size] of x [B·R, size] that predict."""
        if self.config.sample_from_anchor:
            return x
        g = self.drafter.g
        rows = g.Reshape(x, [-1, block_size, size])
        return g.Reshape(g.Slice(rows, [1], [block_size], [1]), [-1, size])

    def _projected(self, selector: SelectorConfig, hidden: ir.Value) -> ir.Value:
        """Return all rows of a block as the selector sees them, [B·R, rank].

        For a Markov head all rows are alike, so they are ones. The others are projected before
        those that predict are chosen: TensorRT-RTX 1.7.1 joins two products of one input, and
        would store the head once more, with the projection.
        """
        m = self.drafter
        if not self.config.markov_rank:
            return m.linear(hidden, f"{SELECTOR}.hidden_projection")
        count = m.g.size(hidden, 0)
        return m.narrow(m.g.Expand(1.0, m.g.Concat(count, [selector.rank], axis=0)))

    def _selected(
        self, selector: SelectorConfig, logits: ir.Value, rows: ir.Value, anchor: ir.Value
    ) -> ir.Value:
        """Return the places [B, N] that the selector chooses, or DSpark's Markov head.

        logits float32 [B·N, Vd], projected rows [B·N, rank], anchor [B, 1].
        """
        m = self.drafter
        g = m.g
        size = self.size
        sizes = g.Concat(g.size(anchor, 0), [-1, size], axis=0)
        head = self.config if self._has_own_head else self.target
        if self.vocab is None and size < head.vocab_size:
            logits = g.Slice(logits, [0], [size], [1])
        before, behind = PREDECESSORS, SUCCESSORS
        if self.config.markov_rank:
            before, behind = W1, W2
        predecessors = m.weights.value(g, f"{before}.weight")
        (places,) = SELECT(
            g,
            self._scaled(g.Reshape(logits, sizes)),
            g.Reshape(rows, g.Concat(g.size(anchor, 0), [-1, selector.rank], axis=0)),
            # A token that the codebook does not know counts as its last one.
            g.Gather(predecessors, g.Min(g.Squeeze(anchor, [1]), self.config.vocab_size - 1)),
            self._codebook(before),
            self._codebook(behind),
            top_k=min(selector.top_k, size),
        )
        return places

    @property
    def size(self) -> int:
        """Return how many places there are: tokens of the list, or those that both models have."""
        if self.vocab is not None:
            return len(self.vocab)
        return min(self.target.vocab_size, self.config.vocab_size)

    def _codebook(self, name: str) -> ir.Value:
        """Return a codebook's rows [Vd, rank] of all places; the whole one is used in place."""
        m = self.drafter
        ids = self.vocab
        if name == W2 and self.config.draft_vocab_size is not None:
            ids = None  # it has only the list's rows
        elif ids is None and self.size < self.config.vocab_size:
            ids = np.arange(self.size)
        if ids is not None:
            ids = np.minimum(ids, self.config.vocab_size - 1)
        return m.weights.value(m.g, f"{name}.weight", ids, f"drafter.{name}.rows")

    def _scaled(self, logits: ir.Value) -> ir.Value:
        """Return the logits as the selector adds them up: multiplied and capped."""
        g = self.drafter.g
        cap = self.config.logit_softcap
        if self.config.output_multiplier != 1.0:
            logits = g.Mul(logits, self.config.output_multiplier)
        return logits if cap is None else g.Mul(g.Tanh(g.Div(logits, cap)), cap)

    def _logits(self, rows: ir.Value) -> ir.Value:
        """Return logits [N, Vd] of rows [N, hidden]: of all tokens, or of the list's."""
        m, name = self.verifier, _head_name(self.target)
        if self._has_own_head:
            m, name = self.drafter, HEAD.removesuffix(".weight")
        # A head of its own over a part of the vocabulary has only the list's rows.
        if self.vocab is None or self.config.draft_vocab_size is not None:
            if not self._has_own_head:
                return _head_logits(m, self.target, rows)
            return m.linear(rows, name)
        return m.linear_rows(rows, name, self.vocab, "draft_head.weight")

    @property
    def _has_own_head(self) -> bool:
        return HEAD in self.drafter.weights

    def _tokens(self, places: ir.Value) -> ir.Value:
        """Return the tokens at these places of the draft vocabulary."""
        if self.vocab is None:
            return places
        return self.drafter.g.Gather(self._listed(self.vocab), places)

    def _listed(self, ids: np.ndarray) -> ir.Value:
        """Return the draft vocabulary, int64 [Vd]."""
        return self.drafter.g.initializer("drafter.vocab", lambda: ir.Tensor(ids))


def target_logits(m: LayerBuilder, config: TargetConfig, rows: ir.Value) -> ir.Value:
    """Return float32 logits [N, V] of the target's normed rows [N, hidden]."""
    return m.g.cast(_head_logits(m, config, rows), ir.DataType.FLOAT)


def _head_logits(m: LayerBuilder, config: TargetConfig, rows: ir.Value) -> ir.Value:
    """Return the logits as the head writes them.

    A padded table's further rows have none: they are no tokens.
    """
    name = _head_name(config)
    logits = m.linear(rows, name)
    if f"{name}.weight" not in m.weights.padded:
        return logits
    return m.g.Slice(logits, [0], [config.vocab_size], [1])


def padded_tables(config: TargetConfig, dtype: ir.DataType) -> tuple[str, ...]:
    """Return the tables of a target of which its engine has one row more.

    Those of ONNX Runtime, which are float32, have none.
    """
    return () if dtype == ir.DataType.FLOAT else config.odd_tied_tables


def _head_name(config: TargetConfig) -> str:
    return "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
