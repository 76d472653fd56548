// What one CTA of the attention kernel does, and what it does besides attention: the step's keys and values go into the
// caches, and a head's sink joins the weights.
#pragma once

#include "attention_params.h"
#include "fp8.cuh"

namespace dflash {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kRingLimit = 1 << 30;  // of positions in a ring: sums of them stay in an int
constexpr int kChunk = 8;            // elements that a thread moves at once: 16 bytes of bfloat16

// What one CTA does. Positions are those of the sequence.
struct Work {
  int slot;
  int kv_head;
  int split;
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

// Divides each row tile's keys among its splits in whole key tiles. A split past the last key gets none.
__device__ inline Work find_work(const AttentionParams& p, int tile_rows, int tile_keys) {
  Work w;
  w.slot = blockIdx.z;
  w.kv_head = blockIdx.y;
  w.split = blockIdx.x % p.splits;
  w.group = p.q_heads / p.kv_heads;
  // The last tile first: under a causal mask it has the most keys, and the others fill the gaps behind it.
  const int row_tile = gridDim.x / p.splits - 1 - blockIdx.x / p.splits;
  w.first_row = row_tile * tile_rows;
  w.end_row = min(w.first_row + tile_rows, p.rows * w.group);

  const index_t* positions = p.positions + index_t(w.slot) * (p.context_rows + p.rows);
  // Wrong lengths must not lead outside the tensors: the block starts at most its context behind the step's start.
  w.limit = p.ring ? kRingLimit : p.cache_len;
  w.start = int(max(0LL, min(positions[0], index_t(w.limit))));
  w.block_start = int(max(index_t(w.start), min(positions[p.context_rows], index_t(w.start) + p.context_rows)));
  const int first = w.block_start + w.first_row / w.group;
  const int last = w.block_start + (w.end_row - 1) / w.group;
  int begin = 0, end = p.causal ? last + 1 : w.block_start + p.rows;
  if (p.window > 0) begin = max(begin, first - p.window + 1), end = min(end, last + p.window);
  // All positions that the launch looks at or writes are fewer than a ring's rows: they come round at most once.
  w.wrap = p.ring ? max(0, w.start - p.window + 1) / p.cache_len * p.cache_len : 0;
  w.all_see_to = p.causal ? first + 1 : end;

  const int tiles = (end - begin + tile_keys - 1) / tile_keys;
  const int share = (tiles + p.splits - 1) / p.splits * tile_keys;
  w.first_key = min(begin + w.split * share, end);
  w.end_key = min(w.first_key + share, end);
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

// Put this CTA's share of the step's keys and values into the caches, eight elements a thread. Rejected context rows
// stay out: the block takes their place.
template <int kHeadDim, typename Cache>
__device__ void write_caches(const AttentionParams& p, const Work& w) {
  constexpr int kChunks = kHeadDim / kChunk;
  const int rows = p.context_rows + p.rows;
  for (int i = blockIdx.x * kAttentionThreads + threadIdx.x; i < rows * kChunks; i += gridDim.x * kAttentionThreads) {
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
