"""An EAGLE-3 drafter as work, by formula: no graph of ours has one.

Source: EAGLE-3 (arXiv 2503.01840). One Llama layer reads the token's embedding beside the hidden
state, so its attention has inputs of twice the width. A projection of three of the target's layers
is before it, and a head over a short vocabulary behind it. The drafter runs over the tokens that
were just committed, which gives the tree's first depth, and once for every further one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.estimate.workload import DRAFTER, HEAD, KernelCost, ModelCosts
from trtllm_dflash.models.base import TargetConfig

_TAPS = 3
_MODULES = ("fusion", "qkv_proj", "o_proj", "gate_up_proj", "down_proj", HEAD)


@dataclass(frozen=True)
class Eagle3Tree:
    """A tree of `tokens` verified drafts, `depth` long and `branches` wide.

    The layer has the target's own sizes. Where the target has experts, its MLP is as wide as the
    experts of a token together.
    """

    tokens: int
    depth: int
    branches: int
    vocab_size: int = 32000

    def costs(self, target: TargetConfig, format_name: str) -> tuple[KernelCost, ...]:
        """Return the drafter's kernels of one step, without the target's verification."""
        fmt, hidden, rows = FORMATS.get(format_name), target.hidden_size, self.depth + 1
        formats = {} if fmt is None else dict.fromkeys(_MODULES, fmt)
        model = ModelCosts(DRAFTER, target, formats)
        fusion = model.linear("fusion", rows, _TAPS * hidden, hidden)
        first = [fusion, *self._pass(model, target, rows, scored=1)]
        later = [*self._pass(model, target, self.branches, scored=self.branches)]
        return (*first, *later * (self.depth - 1))

    def _pass(
        self, model: ModelCosts, target: TargetConfig, rows: int, scored: int
    ) -> Iterator[KernelCost]:
        hidden, inner, head_dim = target.hidden_size, target.intermediate_size, target.head_dim
        heads = target.num_q_heads + 2 * target.num_kv_heads
        if target.moe is not None:
            inner = target.moe.intermediate_size * target.moe.top_k
        yield model.norm(rows)
        qkv = model.linear("qkv_proj", rows, 2 * hidden, heads * head_dim)
        yield qkv
        yield replace(model.attention(rows, window=0), format=qkv.format)
        yield model.linear("o_proj", rows, target.num_q_heads * head_dim, hidden)
        yield model.norm(rows)
        yield model.linear("gate_up_proj", rows, hidden, 2 * inner)
        yield model.norm(rows)
        yield model.linear("down_proj", rows, inner, hidden)
        yield model.norm(rows)
        yield model.head(scored, self.vocab_size)
        # The best branches of each node, the best nodes of all, and the next inputs.
        yield model.choice(scored, self.vocab_size, kernels=3)
