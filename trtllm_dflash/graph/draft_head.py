"""The end of drafting: from the drafter's final rows to the drafts.

A drafter decodes with the target's head, unless it has one of its own. A draft vocabulary limits it
to some of the head's rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.draft_tables import HEAD
from trtllm_dflash.models.drafter import DrafterConfig


@dataclass(frozen=True)
class DraftHead:
    """A drafter's head. `vocab` (int64 ids) limits the drafts; None: every token may be one."""

    verifier: LayerBuilder
    target: TargetConfig
    drafter: LayerBuilder
    config: DrafterConfig
    vocab: np.ndarray | None

    def drafts(self, hidden: ir.Value, block_size: int) -> ir.Value:
        """Return the drafts int64 [B, T-1] of the block's rows [B·R, hidden].

        Row j predicts the token at its own position, so row 0 is not used: it is the anchor's,
        which is known. With `sample_from_anchor` it predicts the next token, and there are T-1.
        """
        g = self.drafter.g
        rows = hidden
        if not self.config.sample_from_anchor:
            size = self.config.hidden_size
            rows = g.Reshape(hidden, [-1, block_size, size])
            rows = g.Reshape(g.Slice(rows, [1], [block_size], [1]), [-1, size])
        places = g.ArgMax(self._logits(rows), axis=-1, keepdims=0)
        return g.Reshape(self._tokens(places), [-1, block_size - 1])

    def _logits(self, rows: ir.Value) -> ir.Value:
        """Return float32 logits [N, Vd] of rows [N, hidden]: of all tokens, or of the list's."""
        m, name = self.verifier, _head_name(self.target)
        if HEAD in self.drafter.weights:
            m, name = self.drafter, HEAD.removesuffix(".weight")
        # A head of its own over a part of the vocabulary has only the list's rows.
        if self.vocab is None or self.config.draft_vocab_size is not None:
            logits = m.linear(rows, name)
        else:
            logits = m.linear_rows(rows, name, self.vocab, "draft_head.weight")
        return self.drafter.g.cast(logits, ir.DataType.FLOAT)

    def _tokens(self, places: ir.Value) -> ir.Value:
        """Return the tokens at these places of the draft vocabulary."""
        ids = self.vocab
        if ids is None:
            return places
        g = self.drafter.g
        return g.Gather(g.initializer("drafter.vocab", lambda: ir.Tensor(ids)), places)


def target_logits(m: LayerBuilder, config: TargetConfig, rows: ir.Value) -> ir.Value:
    """Return float32 logits [N, V] of the target's normed rows [N, hidden]."""
    return m.g.cast(m.linear(rows, _head_name(config)), ir.DataType.FLOAT)


def _head_name(config: TargetConfig) -> str:
    return "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
