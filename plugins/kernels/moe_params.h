// The parameters of the DFlashMoE kernels, and how their work is divided. Plain C++, read by kernels, launchers and
// tests.
#pragma once

namespace dflash {

enum MoeFormat { kMoeBfloat16 = 0, kMoeMxfp4 = 1, kMoeNvfp4 = 2, kMoeFp8 = 3 };

// Codes of four bits are expanded in pairs that are no neighbours: see moe_weights.cuh.
constexpr bool has_products_order(int format) { return format == kMoeMxfp4 || format == kMoeNvfp4; }

// How many codes a byte has, or 0 for formats without codes; and what H and I are multiples of: what a thread reads at
// once, 16 bytes of a row.
constexpr int codes_of_byte(int format) { return format == kMoeBfloat16 ? 0 : format == kMoeFp8 ? 1 : 2; }
constexpr int moe_unit(int format) { return format == kMoeBfloat16 ? 8 : 16 * codes_of_byte(format); }

constexpr int kFp8Block = 128;                 // rows and columns of FP8 that share a scale
constexpr int kBlockVectors = kFp8Block / 16;  // 16 bytes each

// An assignment is a token and one of its experts: number n·k + j for choice j of token n; there are A = N·k. Sorted by
// expert and then by number, they have places: those of one expert are a group.
struct MoeParams {
  const void* x;                 // [N, H] bfloat16
  const float* router_logits;    // [N, E]
  const void* gate_up;           // [E, 2I, H]: bfloat16, or codes, one or two a byte
  const void* gate_up_bias;      // [E, 2I] bfloat16
  const void* down;              // [E, H, I], as gate_up
  const void* down_bias;         // [E, H] bfloat16
  const void* gate_up_scale;     // a byte for each block: MXFP4 [E, 2I, H/32] E8M0, NVFP4 [E, 2I, H/16] E4M3; of FP8
                                 // float32 [E, 2 ceil(I/R), ceil(H/128)], R rows of a block, or 1: [E, 2I, 1]
  const void* down_scale;        // likewise [E, H, I/32], [E, H, I/16], [E, ceil(H/R), ceil(I/128)] or [E, H, 1]
  const float* gate_up_scale_2;  // [E], NVFP4 only
  const float* down_scale_2;     // [E], NVFP4 only
  void* out;                     // [N, H] bfloat16
  float* shares;                 // [A]: what an assignment's expert counts; workspace, like all that follow
  int* chosen;                   // [A]: its expert
  int* order;                    // [A]: the assignment at a place
  int* rows;                     // [A]: its token
  int* groups;                   // [groups, 4]: expert, first place, end; end is 0 where there are no more groups
  void* ordered_x;  // [N, H]: x as the products want it (moe_weights.cuh); x itself where that is its order
  void* inner;      // [A, I] bfloat16 by place, in the same order within a row
  float* partial;   // [A, H] by assignment: an expert's result
  int tokens;       // N
  int hidden;       // H
  int inner_size;   // I
  int experts;      // E
  int top_k;        // k
  int normalize;    // 1: softmax over the chosen experts' logits; 0: over all
  int interleaved;  // 1: rows 2i, 2i+1 of gate_up are gate i, up i; 0: rows i, I+i; 0 for FP8
  int block_rows;   // of FP8: rows that share scales, 128, or 1: a row has one scale
  float limit;      // 0: none
  float alpha;
  float shift;
};

constexpr int kMoeThreads = 256;  // of the products' CTAs: eight warps
constexpr int kRouteThreads = 128;
constexpr int kListThreads = 1024;
constexpr int kSumThreads = 128;
constexpr int kSumElements = 4 * kSumThreads;  // of a row of out, for a CTA
constexpr int kListCounters = 8192;            // of experts by warps, in shared memory
constexpr int kMaxExperts = 1024;
constexpr int kMaxTopKExperts = 32;  // of a token: a lane each

// How many of an expert's tokens a CTA multiplies at once, and how many of its warps divide the rows of the weights (16
// each); the others divide the columns. Many tokens want many rows, since every CTA fetches the tokens for itself; few
// want few rows, so that even one token's experts fill the GPU.
struct MoeTile {
  int tokens;
  int row_warps;
};

// Tokens of an expert, on average, up to which tiles are the smallest and the medium ones. At five of random routing
// one expert in fifteen has more than 8, whose weights are then read again out of the second cache; tiles of 16 would
// hold fewer CTAs on a multiprocessor, for columns that are mostly empty.
constexpr int kSmallTileTokens = 5;
constexpr int kMediumTileTokens = 8;

constexpr MoeTile moe_tile(int tile_tokens) {
  if (tile_tokens <= 8) return {8, 2};
  if (tile_tokens <= 16) return {16, 4};
  return {32, 8};
}

// Two stages of tokens' columns, the same for every tile: the warps that divide columns are fewer where tokens are
// more.
constexpr int moe_shared_bytes(int format) {
  return format == kMoeBfloat16 ? 8 << 10 : 16 * codes_of_byte(format) << 10;
}

// Where in the workspace each part begins, and its size; parts begin at multiples of 16 bytes.
struct MoeWorkspace {
  long long shares, chosen, order, rows, groups, ordered_x, inner, partial, bytes;
};

struct MoePlan {
  MoeTile tile;
  int groups;          // as many experts as may have been chosen
  int gate_up_blocks;  // CTAs of a group
  int down_blocks;
  int sum_blocks;  // CTAs of a token
  int shared_bytes;
  MoeWorkspace workspace;
};

// Depends on shapes only, never on what was chosen: the same launches serve every step of a CUDA graph, and CTAs of
// groups that there are not return at once.
inline MoePlan moe_plan(int tokens, int hidden, int inner_size, int experts, int top_k, int format) {
  const long long assignments = 1LL * tokens * top_k;
  MoePlan plan{};
  plan.tile = moe_tile(assignments <= kSmallTileTokens * 1LL * experts    ? 8
                       : assignments <= kMediumTileTokens * 1LL * experts ? 16
                                                                          : 32);
  plan.groups = static_cast<int>(assignments < experts ? assignments : experts);
  const int rows = 16 * plan.tile.row_warps;
  plan.gate_up_blocks = (2 * inner_size + rows - 1) / rows;
  plan.down_blocks = (hidden + rows - 1) / rows;
  plan.sum_blocks = (hidden + kSumElements - 1) / kSumElements;
  plan.shared_bytes = moe_shared_bytes(format);
  long long at = 0;
  const auto part = [&at](long long bytes) {
    const long long begin = at;
    at += (bytes + 15) / 16 * 16;
    return begin;
  };
  MoeWorkspace& w = plan.workspace;
  w.shares = part(4 * assignments);
  w.chosen = part(4 * assignments);
  w.order = part(4 * assignments);
  w.rows = part(4 * assignments);
  w.groups = part(16LL * plan.groups);
  w.ordered_x = part(has_products_order(format) ? 2LL * tokens * hidden : 0);
  w.inner = part(2 * assignments * inner_size);
  w.partial = part(4 * assignments * hidden);
  w.bytes = at;
  return plan;
}

}  // namespace dflash
