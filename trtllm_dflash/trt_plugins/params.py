"""How the kernels' work is divided: the plans of plugins/kernels/*_params.h in Python.

Structures and constants come from the headers. A test compares every number of a plan, and every
offset of a structure, with the C++ side.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.graph.kernel_specs import FP8_FORMAT
from trtllm_dflash.trt_plugins.kernel_sources import constants, structure

AttentionParams = structure("attention_params.h", "AttentionParams")
AcceptParams = structure("accept_params.h", "AcceptParams")
MoeParams = structure("moe_params.h", "MoeParams")
GatedDeltaParams = structure("gated_delta_params.h", "GatedDeltaParams")
BlockLinearParams = structure("block_linear_params.h", "BlockLinearParams")
SelectParams = structure("select_params.h", "SelectParams")
ArgmaxParams = structure("argmax_params.h", "ArgmaxParams")
LookupParams = structure("lookup_params.h", "LookupParams")
AdjustParams = structure("adjust_params.h", "AdjustParams")
_ATTENTION = constants("attention_params.h")
_ACCEPT = constants("accept_params.h")
_MOE = constants("moe_params.h")
_DELTA = constants("gated_delta_params.h")
_BLOCK_LINEAR = constants("block_linear_params.h")
_SELECT = constants("select_params.h")
_ARGMAX = constants("argmax_params.h")
_LOOKUP = constants("lookup_params.h")
_ADJUST = constants("adjust_params.h")

# A plan is made for the GPU that runs it, and its workspace at build time for any: none has more
# multiprocessors.
MAX_PROCESSORS = 256
MAX_GRID = 65535  # of CUDA, in y and z
ATTENTION_THREADS = _ATTENTION["kAttentionThreads"]
MAX_SLOTS = _ATTENTION["kMaxSlots"]
MERGE_THREADS = _ATTENTION["kMergeThreads"]
SCAN_THREADS = _ACCEPT["kScanThreads"]
CHOOSE_THREADS = _ACCEPT["kChooseThreads"]
FINISH_THREADS = _ACCEPT["kFinishThreads"]
MOE_THREADS = _MOE["kMoeThreads"]
ROUTE_THREADS = _MOE["kRouteThreads"]
LIST_THREADS = _MOE["kListThreads"]
SUM_THREADS = _MOE["kSumThreads"]
MAX_EXPERTS = _MOE["kMaxExperts"]
MAX_TOP_K_EXPERTS = _MOE["kMaxTopKExperts"]
DELTA_ROW_THREADS = _DELTA["kDeltaRowThreads"]
DELTA_RULE_THREADS = _DELTA["kDeltaRuleThreads"]
DELTA_HISTORY = _DELTA["kDeltaHistory"]
DELTA_MAX_SHARED_BYTES = _DELTA["kDeltaMaxSharedBytes"]
LINEAR_SHARED_BYTES = _BLOCK_LINEAR["kLinearSharedBytes"]
PACKED_OF_WORD = {1: 8, 2: 8, FP8_FORMAT: 4}  # by weight format: codes that an int32 has
SELECT_THREADS = _SELECT["kSelectThreads"]
WALK_THREADS = _SELECT["kWalkThreads"]
MAX_CANDIDATES = _SELECT["kSelectMaxTopK"]
LOOKUP_THREADS = _LOOKUP["kLookupThreads"]
COUNT_THREADS = _ADJUST["kCountThreads"]
ROW_THREADS = _ADJUST["kRowThreads"]
FEW_THREADS = _ADJUST["kFewThreads"]
_PLAIN_UNIT = 8
_WARP = 32


@dataclass(frozen=True)
class AcceptPlan:
    """CTAs that share the first pass over a row of logits, and the workspace in bytes.

    It is that of DFlashAdjust, too.
    """

    chunks: int
    workspace_bytes: int


@dataclass(frozen=True)
class ArgmaxPlan:
    """CTAs that share the pass over a row of logits, and the workspace in bytes."""

    chunks: int
    workspace_bytes: int


@dataclass(frozen=True)
class MoeTile:
    """Tokens of an expert that a CTA multiplies at once, and the warps that divide the rows of its
    weights.
    """

    tokens: int
    row_warps: int


MOE_TILES = MoeTile(8, 2), MoeTile(16, 4), MoeTile(32, 8)
"""All tiles, from few tokens to many; there are kernels for each."""


@dataclass(frozen=True)
class MoePlan:
    """CTAs of each launch, shared memory of a CTA in bytes; where each part of the workspace
    begins, and its bytes.
    """

    tile: MoeTile
    groups: int
    gate_up_blocks: int
    down_blocks: int
    sum_blocks: int
    shared_bytes: int
    parts: dict[str, int]
    workspace_bytes: int


LINEAR_TILES = MoeTile(8, 1), MoeTile(16, 2), MoeTile(32, 4), MoeTile(64, 8)
"""Those of DFlashBlockLinear, likewise."""


@dataclass(frozen=True)
class BlockLinearPlan:
    """CTAs of the launch: tiles of tokens, and blocks of the weight's rows."""

    tile: MoeTile
    token_tiles: int
    row_blocks: int


@dataclass(frozen=True)
class GatedDeltaPlan:
    """CTAs of both launches, shared memory of a CTA in bytes; where each part of the workspace
    begins, and its bytes. The workspace holds `row_limit` rows of a slot.
    """

    row_limit: int
    row_vectors: int
    row_chunks: int
    rule_blocks: int
    shared_bytes: int
    parts: dict[str, int]
    workspace_bytes: int


@dataclass(frozen=True)
class SelectPlan:
    """CTAs that share a row's logits, and how many each takes. Shared memory of a CTA in bytes;
    where each part of the workspace begins, and its bytes.
    """

    chunks: int
    chunk_elements: int
    shared_bytes: int
    parts: dict[str, int]
    workspace_bytes: int


def accept_plan(*, batch: int, rows: int, vocab: int) -> AcceptPlan:
    """Return the plan of choosing `rows` tokens a slot."""
    chunks = _ceil(vocab, _ACCEPT["kScanElements"])
    return AcceptPlan(chunks, 4 * batch * rows * (3 * chunks + 1))


def adjust_plan(batch: int, vocab: int) -> AcceptPlan:
    """Return the plan of adjusting logits: the CTAs of a row, and the table of a slot's tokens."""
    return AcceptPlan(_ceil(vocab, _ADJUST["kRowElements"]), 4 * batch * vocab)


def argmax_plan(*, rows: int, vocab: int) -> ArgmaxPlan:
    """Return the plan of finding the largest logit of each of `rows` rows."""
    chunks = _ceil(vocab, _ARGMAX["kArgmaxElements"])
    return ArgmaxPlan(chunks, 12 * rows * chunks)


def moe_plan(
    *, tokens: int, hidden: int, inner_size: int, experts: int, top_k: int, weight_format: int
) -> MoePlan:
    """Return the plan of one call.

    The workspace of a number of tokens suffices for every smaller one.
    """
    assignments = tokens * top_k
    limits = [size * experts for size in (_MOE["kSmallTileTokens"], _MOE["kMediumTileTokens"])]
    tile = MOE_TILES[sum(assignments > limit for limit in limits)]
    rows = 16 * tile.row_warps
    groups = min(assignments, experts)
    sizes = {
        "shares": 4 * assignments,
        "chosen": 4 * assignments,
        "order": 4 * assignments,
        "rows": 4 * assignments,
        "groups": 16 * groups,
        "ordered_x": 2 * tokens * hidden if weight_format in (1, 2) else 0,
        "inner": 2 * assignments * inner_size,
        "partial": 4 * assignments * hidden,
    }
    parts = {}
    end = 0
    for name, size in sizes.items():
        parts[name] = end
        end += 16 * _ceil(size, 16)
    shared_bytes = {0: 8, FP8_FORMAT: 16}.get(weight_format, 32) << 10
    blocks = (
        _ceil(2 * inner_size, rows),
        _ceil(hidden, rows),
        _ceil(hidden, _MOE["kSumElements"]),
    )
    return MoePlan(tile, groups, *blocks, shared_bytes, parts, end)


def gated_delta_plan(
    *, batch: int, rows: int, window_rows: int, key_heads: int, value_heads: int
) -> GatedDeltaPlan:
    """Return the plan of one call of `rows` rows a slot.

    The workspace of a batch and a number of rows suffices for all smaller ones.
    """
    head_dim = _DELTA["kDeltaHeadDim"]
    unit = _DELTA["kRuleRows"]
    row_limit = unit * _ceil(window_rows - DELTA_HISTORY + rows, unit)
    sizes = {
        "q_rows": 4 * batch * key_heads * row_limit * head_dim,
        "k_rows": 4 * batch * key_heads * row_limit * head_dim,
        "v_rows": 4 * batch * value_heads * row_limit * head_dim,
        "gate_rows": 8 * batch * value_heads * row_limit,
    }
    parts = {}
    end = 0
    for name, size in sizes.items():
        parts[name] = end
        end += size
    chunk = _DELTA["kDeltaChunkRows"]
    columns = max(head_dim, 2 * value_heads)
    return GatedDeltaPlan(
        row_limit=row_limit,
        row_vectors=2 * key_heads + value_heads + 1,
        row_chunks=_ceil(rows, chunk),
        rule_blocks=head_dim // _DELTA["kRuleColumns"],
        shared_bytes=(window_rows + chunk) * columns * 2,
        parts=parts,
        workspace_bytes=end,
    )


def select_plan(*, batch: int, rows: int, vocab: int, top_k: int) -> SelectPlan:
    """Return the plan of selecting one of `top_k` candidates in each of `rows` rows a slot."""
    slots = vocab + 3 if vocab % 4 else vocab
    elements = _SELECT["kSelectElements"]
    chunk_elements = elements * _ceil(slots, elements * _SELECT["kSelectMaxChunks"])
    chunks = _ceil(slots, chunk_elements)
    found = 8 * top_k * (4 * _SELECT["kSelectLoads"] + 1)
    tiles = 2 * 4 * _SELECT["kSelectPitch"] * 16 * _ceil(top_k, 16)
    row_bytes = 4 * batch * rows * top_k
    sizes = {
        "chunk_values": row_bytes * chunks,
        "chunk_places": row_bytes * chunks,
        "candidates": row_bytes,
        "next": row_bytes,
    }
    parts = {}
    end = 0
    for name, size in sizes.items():
        parts[name] = end
        end += size
    return SelectPlan(chunks, chunk_elements, max(found, tiles), parts, end)


def moe_unit(weight_format: int) -> int:
    """Return the unit that must divide both sizes of an expert, H and I."""
    return 4 * PACKED_OF_WORD.get(weight_format, _PLAIN_UNIT // 4)


def block_linear_plan(*, tokens: int, out_size: int) -> BlockLinearPlan:
    """Return the plan of one call."""
    large = _BLOCK_LINEAR["kLargeTileTokens"]
    tiles = LINEAR_TILES[:3] if tokens < large else LINEAR_TILES
    tile = next((tile for tile in tiles if tokens <= tile.tokens), tiles[-1])
    return BlockLinearPlan(
        tile, _ceil(tokens, tile.tokens), _ceil(out_size, 16 * tile.row_warps)
    )


def merge_blocks(head_rows: int) -> int:
    """CTAs of the kernel that merges splits: a warp for each row of a head."""
    return _ceil(head_rows, MERGE_THREADS // _WARP)


def _ceil(count: int, unit: int) -> int:
    return -(-count // unit)
