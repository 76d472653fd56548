// What a CTA of the attention kernel does with a piece of work, and what it does besides attention: the step's keys and
// values go into the caches, and a head's sink joins the weights.
#pragma once

#include "attention_params.h"
#include "fp8.cuh"

namespace dflash {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kRingLimit = 1 << 30;  // of positions in a ring: sums of them stay in an int
constexpr int kChunk = 8;            // elements that a thread moves at once: 16 bytes of bfloat16

// One piece of work: a split of the keys of one row tile, for one key head of a slot.
struct Item {
  int slot;
  int kv_head;
  int row_tile;
  int split;
  int splits;  // of this row tile's keys
};

// What a CTA does with an item. Positions are those of the sequence.
struct Work {
  int slot;
  int kv_head;
  int split;
  int splits;
  int part;  // of the slot and key head: this item's number among `parts`
  int parts;
  int group;        // G, query heads of a key head
  int first_row;    // packed
  int end_row;      // packed
  int start;        // first position of the step
  int block_start;  // position of block row 0
  int first_key;    // the split's keys
  int end_key;
  int all_see_to;  // every row of the tile sees the keys before this one, where there is no window
  int wrap;        // position p is in row p - wrap of a ring, or in the one cache_len before; else 0
  int limit;       // positions from here on have no row
};

// The positions at which a slot's step and its block begin. Wrong lengths must not lead outside the tensors: the block
// starts at most its context behind the step's start.
struct Starts {
  int step;
  int block;
};

__device__ inline Starts find_starts(const AttentionParams& p, int slot) {
  const index_t* positions = p.positions + index_t(slot) * (p.context_rows + p.rows);
  const int limit = p.ring ? kRingLimit : p.cache_len;
  const int step = int(max(0LL, min(positions[0], index_t(limit))));
  const int block = int(max(index_t(step), min(positions[p.context_rows], index_t(step) + p.context_rows)));
  return {step, block};
}

// The keys that some row of a row tile sees, [begin, end).
struct KeyRange {
  int begin;
  int end;
};

__device__ inline KeyRange find_keys(const AttentionParams& p, int block_start, int first_row, int end_row) {
  const int first = block_start + first_row / p.group, last = block_start + (end_row - 1) / p.group;
  KeyRange keys = {0, p.causal ? last + 1 : block_start + p.rows};
  if (p.window > 0) keys = {max(0, first - p.window + 1), min(keys.end, last + p.window)};
  return keys;
}

// Tiles of keys of a slot's last row tile, which under a causal mask has the most.
__device__ inline int count_tiles(const AttentionParams& p, int slot) {
  const int first_row = (p.row_tiles - 1) * p.tile_rows;
  const KeyRange keys = find_keys(p, find_starts(p, slot).block, first_row, p.packed_rows);
  return divide_up(keys.end - keys.begin, p.tile_keys);
}

// Divides each row tile's keys among its splits in whole key tiles. A split past the last key gets none.
__device__ inline Work find_work(const AttentionParams& p, const Item& item, int tile_rows, int tile_keys) {
  Work w;
  w.slot = item.slot;
  w.kv_head = item.kv_head;
  w.split = item.split;
  w.splits = item.splits;
  w.part = item.row_tile * item.splits + item.split;
  w.group = p.group;
  w.parts = p.row_tiles * item.splits;
  w.first_row = item.row_tile * tile_rows;
  w.end_row = min(w.first_row + tile_rows, p.packed_rows);
  const Starts starts = find_starts(p, item.slot);
  w.limit = p.ring ? kRingLimit : p.cache_len;
  w.start = starts.step;
  w.block_start = starts.block;
  // All positions that the launch looks at or writes are fewer than a ring's rows: they come round at most once.
  w.wrap = p.ring ? max(0, w.start - p.window + 1) / p.cache_len * p.cache_len : 0;
  const KeyRange keys = find_keys(p, w.block_start, w.first_row, w.end_row);
  w.all_see_to = p.causal ? w.block_start + w.first_row / w.group + 1 : keys.end;
  const int share = divide_up(divide_up(keys.end - keys.begin, tile_keys), item.splits) * tile_keys;
  w.first_key = min(keys.begin + w.split * share, keys.end);
  w.end_key = min(w.first_key + share, keys.end);
  return w;
}

// Row of a cache seen as [B·Hkv·cache_len, D].
__device__ inline index_t cache_row(const AttentionParams& p, const Work& w, int position) {
  const int row = position - w.wrap;
  return (index_t(w.slot) * p.kv_heads + w.kv_head) * p.cache_len + (row < p.cache_len ? row : row - p.cache_len);
}

// Row of k and v seen as [B·(C+T)·Hkv, D], by its number among the slot's C+T.
__device__ inline index_t step_row(const AttentionParams& p, const Work& w, int row) {
  return (index_t(w.slot) * (p.context_rows + p.rows) + row) * p.kv_heads + w.kv_head;
}

// Eight elements of k or v into a cache, as they are or as codes of number / scale.
__device__ inline void store_chunk(bf16* to, uint4 chunk, float) { *reinterpret_cast<uint4*>(to) = chunk; }
__device__ inline void store_chunk(fp8* to, uint4 chunk, float scale) {
  *reinterpret_cast<uint2*>(to) = narrow(chunk, scale);
}

__device__ inline uint4 load_chunk(const void* tensor, index_t element) {
  return *reinterpret_cast<const uint4*>(static_cast<const bf16*>(tensor) + element);
}

// Put this item's share of the step's keys and values into the caches, eight elements a thread. Rejected context rows
// stay out: the block takes their place.
template <int kHeadDim, typename Cache>
__device__ void write_caches(const AttentionParams& p, const Work& w) {
  constexpr int kChunks = kHeadDim / kChunk;
  const int rows = p.context_rows + p.rows;
  for (int i = w.part * kAttentionThreads + threadIdx.x; i < rows * kChunks; i += w.parts * kAttentionThreads) {
    const int row = i / kChunks, column = i % kChunks * kChunk;
    const bool in_block = row >= p.context_rows;
    const int position = in_block ? w.block_start + row - p.context_rows : w.start + row;
    if (position >= w.limit || (!in_block && position >= w.block_start)) continue;
    const index_t from = step_row(p, w, row) * kHeadDim + column;
    const index_t to = cache_row(p, w, position) * kHeadDim + column;
    store_chunk(static_cast<Cache*>(p.key_cache) + to, load_chunk(p.k, from), p.key_scale);
    store_chunk(static_cast<Cache*>(p.value_cache) + to, load_chunk(p.v, from), p.value_scale);
  }
}

// The head's sink joins a row's weights: sum, and through `shrink` all that is relative to `largest`, are brought down
// to whichever is larger.
__device__ inline void add_sink(const AttentionParams& p, index_t head_row, float largest, float& sum, float& shrink) {
  if (p.sinks == nullptr) return;
  const float sink = __bfloat162float(static_cast<const bf16*>(p.sinks)[head_row % p.q_heads]) * kLog2E;
  const float joint = fmaxf(largest, sink);
  shrink = exp2_approx(largest - joint);
  sum = sum * shrink + exp2_approx(sink - joint);
}

}  // namespace dflash
