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
  float* partial_out;          // [split_limit, B·T·Hq, D]: what each split of the keys adds, where there are several
  float* partial_stats;        // [split_limit, B·T·Hq, 2]: its largest score (base 2), and its sum of weights
  int batch;
  int rows;          // T
  int context_rows;  // C
  int q_heads;       // Hq, a multiple of kv_heads
  int kv_heads;      // Hkv
  int cache_len;
  int tile_rows;    // of the kernel that is launched
  int tile_keys;    // likewise
  int row_tiles;    // of a slot and key head
  int group;        // G, query heads of a key head
  int packed_rows;  // T · G
  int even_splits;  // of a slot's keys, where all slots have as many (attention_splits)
  int split_limit;  // the most splits that a slot's keys are divided in
  int window;       // keys at this distance or further are not seen; 0: no window
  int causal;       // 1: a block row sees no later block row
  int ring;         // 1: the caches are rings, which is for windows only; then cache_len >= window - 1 + C + T
  float scale;
  float key_scale;    // what a code of an FP8 cache is worth; 1 where the caches are bfloat16
  float value_scale;  // likewise
};

// How a tile of rows (query heads of one key head × block rows) is worked on by a CTA of four warps.
struct AttentionTile {
  int rows;   // packed rows of q
  int warps;  // of the four, how many divide the rows; the others divide the keys
  int keys;   // keys in shared memory at once
  int ctas;   // for how many on a multiprocessor there are registers: the compiler is told so
};

constexpr int kAttentionThreads = 128;
constexpr int kAttentionStages = 2;  // tiles of keys and values in shared memory: one in use, one on its way
constexpr int kMaxSlots = 1024;      // their lengths are compared in shared memory
constexpr int kMaxSplits = 64;
constexpr int kMinSplitTiles = 4;   // tiles of keys: a shorter split costs more to merge than it saves
constexpr int kMaxSplitTiles = 24;  // a longer one is a lump that the other CTAs wait for
constexpr int kRowPadding = 8;  // elements behind each row in shared memory, so that matrix loads meet no bank twice
constexpr int kMergeThreads = 128;
constexpr int kReservedSharedBytes = 1024;  // of each CTA, by CUDA

// Fewer warps along the rows means that fewer warps read the same keys out of shared memory.
constexpr AttentionTile attention_tile(int head_dim, int tile_rows) {
  if (head_dim > 128) return tile_rows <= 32 ? AttentionTile{32, 2, 32, 2} : AttentionTile{64, 4, 32, 2};
  if (head_dim <= 64) {
    if (tile_rows <= 16) return {16, 1, 64, 5};
    if (tile_rows <= 32) return {32, 1, 64, 3};
    if (tile_rows <= 64) return {64, 2, 64, 3};
    if (tile_rows <= 96) return {96, 2, 64, 2};  // ten rows of eight heads
    return {128, 4, 32, 3};
  }
  if (tile_rows <= 16) return {16, 1, 64, 4};
  if (tile_rows <= 32) return {32, 1, 64, 2};
  if (tile_rows <= 64) return {64, 2, 64, 2};
  return {128, 4, 32, 2};
}

// Shared memory in bytes: q, and the stages of keys and values; the same memory later holds the float32 result.
constexpr int attention_shared_bytes(int head_dim, AttentionTile tile) {
  const int staged = (tile.rows + 2 * kAttentionStages * tile.keys) * (head_dim + kRowPadding) * 2;
  const int result = tile.rows * (head_dim + 4) * 4 + 4 * tile.rows * 2 * 4;
  return staged > result ? staged : result;
}

// What a plan is made for: the shapes of a launch, and of the GPU its multiprocessors and the shared memory of each.
struct AttentionSizes {
  int batch;
  int rows;
  int q_heads;
  int kv_heads;
  int head_dim;
  int cache_len;
  int window;
  int processors;
  int processor_shared_bytes;
};

struct AttentionPlan {
  AttentionTile tile;
  int row_tiles;  // of a slot and key head
  int ctas;       // of the launch: as many as the GPU holds at once, if there is work for them
  int even_splits;
  int split_limit;
  int shared_bytes;
  long long workspace_bytes;  // partial_out, then partial_stats; 0 where no keys are split
};

constexpr int divide_up(long long number, int unit) { return static_cast<int>((number + unit - 1) / unit); }

// In how many splits a row tile's keys are dealt out that are `tiles` tiles. This depends on no other sequence: a
// sequence gets the same bits whatever lengths the others have. Splits are `even`, or a multiple of it, so that equally
// long sequences fill all places evenly.
constexpr int attention_splits(int tiles, int even, int limit) {
  const int most = tiles / kMinSplitTiles;
  const int wanted = even * divide_up(tiles, even * kMaxSplitTiles);
  const int allowed = wanted < limit ? wanted : limit;
  return most < 1 ? 1 : most < allowed ? most : allowed;
}

// The fewest splits of each of `tiles` row tiles for which CTAs in rounds of `places` leave hardly more places empty
// than for any other number of splits up to `limit` that four rounds have places for.
inline int even_splits(long long tiles, int places, int limit) {
  const long long most = 4LL * places / tiles < limit ? 4LL * places / tiles : limit;
  long long best = tiles, best_rounds = divide_up(tiles, places);
  for (long long splits = 2; splits <= most; ++splits) {
    const long long rounds = divide_up(tiles * splits, places);
    if (tiles * splits * best_rounds > best * rounds) best = tiles * splits, best_rounds = rounds;
  }
  int splits = 1;
  while (20 * tiles * splits * best_rounds < 19 * best * divide_up(tiles * splits, places)) ++splits;
  return splits;
}

// Depends on shapes only, never on lengths: the same launch serves every step of a CUDA graph. Its CTAs deal the work
// out among themselves when they know the lengths (attention_deal.cuh).
inline AttentionPlan attention_plan(const AttentionSizes& s) {
  const int packed = s.rows * (s.q_heads / s.kv_heads);
  AttentionPlan plan{};
  plan.tile = attention_tile(s.head_dim, packed);
  plan.row_tiles = divide_up(packed, plan.tile.rows);
  plan.shared_bytes = attention_shared_bytes(s.head_dim, plan.tile);
  const int fit = s.processor_shared_bytes / (plan.shared_bytes + kReservedSharedBytes);
  const int places = s.processors * (fit < 1 ? 1 : fit < plan.tile.ctas ? fit : plan.tile.ctas);

  const int of_slot = plan.row_tiles * s.kv_heads;
  const long long tiles = 1LL * of_slot * s.batch;
  // No slot is divided into more work than fills the GPU by itself.
  const int fill = places / of_slot < 1 ? 1 : places / of_slot;
  int limit = fill < kMaxSplits ? fill : kMaxSplits;
  plan.even_splits = even_splits(tiles, places, limit);
  limit = limit / plan.even_splits * plan.even_splits;
  const int keys = s.window > 0 && s.window + s.rows < s.cache_len ? s.window + s.rows : s.cache_len;
  plan.split_limit = attention_splits(divide_up(keys, plan.tile.keys), plan.even_splits, limit);
  const long long work = tiles * plan.split_limit;
  plan.ctas = work < places ? static_cast<int>(work) : places;
  const long long head_rows = 1LL * s.batch * s.rows * s.q_heads;
  plan.workspace_bytes = plan.split_limit > 1 ? plan.split_limit * head_rows * (s.head_dim + 2) * 4 : 0;
  return plan;
}

}  // namespace dflash
