// The parameters of the DFlashBlockLinear kernels, and how their work is divided. Plain C++, read by kernels, launchers
// and tests.
#pragma once

#include "moe_params.h"

namespace dflash {

struct BlockLinearParams {
  const void* x;        // [N, I] bfloat16
  const void* weight;   // [O, I] E4M3 codes
  const float* scales;  // [ceil(O/128), ceil(I/128)]: a code of block (r/128, c/128) times its scale is a weight
  const void* bias;     // [O] bfloat16, or null
  void* out;            // [N, O] bfloat16
  int tokens;           // N
  int in_size;          // I
  int out_size;         // O
};

// As experts' tiles, with fewer rows: a linear has one weight, whose rows alone must fill the GPU.
constexpr MoeTile linear_tile(int tile_tokens) {
  if (tile_tokens <= 8) return {8, 1};
  if (tile_tokens <= 16) return {16, 2};
  if (tile_tokens <= 32) return {32, 4};
  return {64, 8};
}

// Tokens from which on tiles are the largest. Between 32 and this a weight is read by several CTAs, one after the other
// out of the second cache; tiles of 64 tokens and 128 rows would leave multiprocessors without work.
constexpr int kLargeTileTokens = 129;

// Two stages of tokens' columns: what one warp more takes of the rows, it takes fewer of the columns.
constexpr int kLinearSharedBytes = 32 * 1024;

struct BlockLinearPlan {
  MoeTile tile;
  int token_tiles;
  int row_blocks;
};

inline BlockLinearPlan block_linear_plan(int tokens, int out_size) {
  BlockLinearPlan plan{};
  plan.tile = linear_tile(tokens <= 32 ? tokens : tokens < kLargeTileTokens ? 32 : 64);
  plan.token_tiles = (tokens + plan.tile.tokens - 1) / plan.tile.tokens;
  const int rows = 16 * plan.tile.row_warps;
  plan.row_blocks = (out_size + rows - 1) / rows;
  return plan;
}

}  // namespace dflash
