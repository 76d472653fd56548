"""Our operators, domain `trtllm_dflash`: one declaration each, from which node, function body and
plugin come.
"""

from __future__ import annotations

from trtllm_dflash.graph.ops.accept import ACCEPT
from trtllm_dflash.graph.ops.adjust import ADJUST
from trtllm_dflash.graph.ops.argmax import ARGMAX
from trtllm_dflash.graph.ops.block_linear import BLOCK_LINEAR
from trtllm_dflash.graph.ops.draft_attention import DRAFT_ATTENTION
from trtllm_dflash.graph.ops.gated_delta import GATED_DELTA
from trtllm_dflash.graph.ops.lookup import LOOKUP
from trtllm_dflash.graph.ops.moe import MOE
from trtllm_dflash.graph.ops.selection import SELECT
from trtllm_dflash.graph.ops.spec import OpSpec
from trtllm_dflash.graph.ops.verify_attention import VERIFY_ATTENTION

__all__ = [
    "ACCEPT",
    "ADJUST",
    "ARGMAX",
    "BLOCK_LINEAR",
    "DRAFT_ATTENTION",
    "GATED_DELTA",
    "LOOKUP",
    "MOE",
    "OPS",
    "SELECT",
    "VERIFY_ATTENTION",
    "OpSpec",
]

OPS: dict[str, OpSpec] = {
    spec.name: spec
    for spec in (
        VERIFY_ATTENTION,
        DRAFT_ATTENTION,
        ACCEPT,
        MOE,
        GATED_DELTA,
        BLOCK_LINEAR,
        SELECT,
        ARGMAX,
        LOOKUP,
        ADJUST,
    )
}
