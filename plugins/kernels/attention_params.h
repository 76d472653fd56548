// The parameters of the attention kernels, and how work is divided. Plain C++, read by kernels, launchers and tests.
#pragma once

namespace dflash {

// The rows of k and v are `context_rows` rows, then `rows` block rows, one for each row of q. Of the context rows those
// before the block's first position hold, the rest were rejected. DFlashVerifyAttention has no context rows.
struct AttentionParams {
  const void* q;               // [B, T, Hq, D] bfloat16
  const void* k;               // [B, C+T, Hkv, D]
  const void* v;               // [B, C+T, Hkv, D]
  void* key_cache;             // [B, Hkv, cache_len, D] bfloat16, or FP8: codes of values / key_scale; position p is
                               // in row p, or in a ring in row p mod cache_len
  void* value_cache;           // [B, Hkv, cache_len, D] likewise
  const long long* positions;  // [B, C+T]: consecutive in the context, and again in the block
  const void* sinks;           // [Hq] bfloat16, or null: a logit for each head in the softmax denominator only
  void* out;                   // [B, T, Hq, D]
  float* partial_out;          // [splits, B·T·Hq, D]: what each split of the keys adds, where splits > 1
  float* partial_stats;        // [splits, B·T·Hq, 2]: its largest score (base 2), and its sum of weights
  int batch;
  int rows;          // T
  int context_rows;  // C
  int q_heads;       // Hq, a multiple of kv_heads
  int kv_heads;      // Hkv
  int cache_len;
  int splits;  // CTAs that share the keys of one tile of rows
  int window;  // keys at this distance or further are not seen; 0: no window
  int causal;  // 1: a block row sees no later block row
  int ring;    // 1: the caches are rings, which is for windows only; then cache_len >= window - 1 + C + T
  float scale;
  float key_scale;    // what a code of an FP8 cache is worth; 1 where the caches are bfloat16
  float value_scale;  // likewise
};

// How a tile of rows (query heads of one key head × block rows) is worked on by a CTA of four warps.
struct AttentionTile {
  int rows;   // packed rows of q
  int warps;  // of the four, how many divide the rows; the others divide the keys
  int keys;   // keys in shared memory at once
};

constexpr int kAttentionThreads = 128;
constexpr int kAttentionStages = 2;  // tiles of keys and values in shared memory: one in use, one on its way
constexpr int kMaxSplits = 32;
constexpr int kRowPadding = 8;  // elements behind each row in shared memory, so that matrix loads meet no bank twice
constexpr int kMergeThreads = 128;

// Fewer warps along the rows means that fewer warps read the same keys out of shared memory.
constexpr AttentionTile attention_tile(int head_dim, int tile_rows) {
  if (head_dim > 128) return tile_rows <= 32 ? AttentionTile{32, 2, 32} : AttentionTile{64, 4, 32};
  if (tile_rows <= 16) return {16, 1, 64};
  if (tile_rows <= 32) return {32, 1, 64};
  if (tile_rows <= 64) return {64, 2, 64};
  return {128, 4, 32};
}

// Shared memory in bytes: q, and the stages of keys and values; the same memory later holds the float32 result.
constexpr int attention_shared_bytes(int head_dim, AttentionTile tile) {
  const int staged = (tile.rows + 2 * kAttentionStages * tile.keys) * (head_dim + kRowPadding) * 2;
  const int result = tile.rows * (head_dim + 4) * 4 + 4 * tile.rows * 2 * 4;
  return staged > result ? staged : result;
}

struct AttentionPlan {
  AttentionTile tile;
  int row_tiles;  // of a slot and key head
  int splits;
  int shared_bytes;
  long long workspace_bytes;  // partial_out, then partial_stats; 0 where the keys are not split
};

// `processors`: the GPU's multiprocessors, each to be given up to two CTAs by splitting. Depends on shapes only, never
// on lengths: the same launch serves every step of a CUDA graph, and CTAs that find no keys return at once.
inline AttentionPlan attention_plan(int batch, int rows, int q_heads, int kv_heads, int head_dim, int cache_len,
                                    int processors) {
  const int packed = rows * (q_heads / kv_heads);
  AttentionPlan plan{};
  plan.tile = attention_tile(head_dim, packed);
  plan.row_tiles = (packed + plan.tile.rows - 1) / plan.tile.rows;
  const long long tiles = 1LL * plan.row_tiles * kv_heads * batch;
  const int key_tiles = (cache_len + plan.tile.keys - 1) / plan.tile.keys;
  long long splits = 2LL * processors / tiles;
  splits = splits > kMaxSplits ? kMaxSplits : splits;
  splits = splits > key_tiles ? key_tiles : splits;
  plan.splits = splits < 1 ? 1 : static_cast<int>(splits);
  plan.shared_bytes = attention_shared_bytes(head_dim, plan.tile);
  const long long heads = 1LL * batch * rows * q_heads;
  plan.workspace_bytes = plan.splits > 1 ? plan.splits * heads * (head_dim + 2) * 4 : 0;
  return plan;
}

}  // namespace dflash
