"""An EAGLE-3 drafter as work, by formula: no graph of ours has one.

Source: EAGLE-3 (arXiv 2503.01840). One Llama layer reads the token's embedding beside the hidden
state, so its attention has inputs of twice the width. A projection of three of the target's layers
is before it, and a head over a short vocabulary behind it. The drafter runs over the tokens that
were just committed, which gives the tree's first depth, and once for every further one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trtllm_dflash.estimate.formats import DRAFTER, HEAD, TARGET, PairFormats
from trtllm_dflash.estimate.workload import ACTIVATION_BYTES, LOGIT_BYTES, KernelCost, ModelCosts
from trtllm_dflash.models.base import TargetConfig

_TAPS = 3
_LINEARS = ("fusion", "qkv_proj", "o_proj", "gate_up_proj", "down_proj")


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
        modules = {f"{DRAFTER}.{module}": format_name for module in _LINEARS}
        formats = PairFormats(modules | {f"{TARGET}.{HEAD}": format_name})
        model = ModelCosts(DRAFTER, target, formats)
        hidden, rows = target.hidden_size, self.depth + 1
        fusion = model.linear("fusion", rows, (hidden, _TAPS * hidden))
        fusion = replace(fusion, reduced_bytes=hidden * ACTIVATION_BYTES)
        first = [fusion, *self._pass(model, target, rows=rows, scored=1)]
        later = [*self._pass(model, target, rows=self.branches, scored=self.branches)]
        return (*first, *later * (self.depth - 1))

    def _pass(
        self, model: ModelCosts, target: TargetConfig, *, rows: int, scored: int
    ) -> Iterator[KernelCost]:
        hidden = target.hidden_size
        q_size, kv_size = (n * target.head_dim for n in (target.num_q_heads, target.num_kv_heads))
        inner = target.intermediate_size
        if target.moe is not None:
            inner = target.moe.intermediate_size * target.moe.top_k
        yield model.norm(rows)
        qkv = model.linear("qkv_proj", rows, (q_size + 2 * kv_size, 2 * hidden))
        yield qkv
        yield replace(model.attention(rows, window=0), format=qkv.format)
        yield model.linear("o_proj", rows, (hidden, q_size))
        yield model.norm(rows)
        yield model.linear("gate_up_proj", rows, (2 * inner, hidden))
        yield model.norm(rows)
        yield model.linear("down_proj", rows, (hidden, inner))
        yield model.norm(rows)
        yield model.head(scored, self.vocab_size)
        # The best branches of each node, the best nodes of all, and the next inputs.
        choice = model.elementwise(scored, self.vocab_size * LOGIT_BYTES)
        yield replace(choice, kernels=3)
