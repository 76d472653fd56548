// How tiles of keys and values come into shared memory, as they are in the caches: from there, or the step's own from k
// and v. A tile is begun while the one before is in use.
#pragma once

#include "attention_work.cuh"

namespace dflash {

// Where a key is to be read: in a cache, or among the rows of the step.
struct KeyPlace {
  bool present;  // before the split's end
  bool cached;
  index_t row;
};

__device__ inline KeyPlace find_key(const AttentionParams& p, const Work& w, int position) {
  const bool present = position < w.end_key, cached = position < w.start;
  if (!present) return {false, cached, 0};
  if (cached) return {true, true, cache_row(p, w, position)};
  const int row = position < w.block_start ? position - w.start : p.context_rows + position - w.block_start;
  return {true, false, step_row(p, w, row)};
}

// Whether the `keys` keys from position `first` on are in the caches, in rows one behind the other. Nearly all tiles
// are, and where their rows are takes one address.
__device__ inline bool is_whole(const AttentionParams& p, const Work& w, int first, int keys) {
  const int row = first - w.wrap;
  return first + keys <= min(w.start, w.end_key) && (row + keys <= p.cache_len || row >= p.cache_len);
}

constexpr int largest_power_of_two(int limit) { return limit < 2 ? 1 : 2 * largest_power_of_two(limit / 2); }

// Copies of such tiles, `kBytes` a row: each thread has one column of 16 bytes, and every kRows-th row.
template <int kBytes, int kKeys>
struct WholeTile {
  static constexpr int kColumns = kBytes / 16;
  static constexpr int kRows = largest_power_of_two(kAttentionThreads / kColumns);
  static_assert(kKeys % kRows == 0, "the threads must divide the rows");

  // Begin the copies of keys and values to `to_smem`, `stride` bytes a row and values kKeys rows behind keys. `from` is
  // the first row's place in both caches.
  static __device__ __forceinline__ void begin(const AttentionParams& p, index_t from, unsigned char* to_smem,
                                               int stride) {
    if (kRows * kColumns < kAttentionThreads && threadIdx.x >= kRows * kColumns) return;
    const int row = threadIdx.x / kColumns, column = threadIdx.x % kColumns * 16;
    const index_t own = (from + row) * kBytes + column;
    const unsigned char* keys_gmem = static_cast<const unsigned char*>(p.key_cache) + own;
    const unsigned char* values_gmem = static_cast<const unsigned char*>(p.value_cache) + own;
    unsigned char* own_smem = to_smem + row * stride + column;
#pragma unroll
    for (int i = 0; i < kKeys; i += kRows) {
      copy_async_16(own_smem + i * stride, keys_gmem + i * kBytes, true);
      copy_async_16(own_smem + (kKeys + i) * stride, values_gmem + i * kBytes, true);
    }
  }
};

template <int kHeadDim, int kKeys, typename Cache>
struct KeyTiles;

// Caches of bfloat16: a tile is copied to where it is used. There are two such places in turn.
template <int kHeadDim, int kKeys>
struct KeyTiles<kHeadDim, kKeys, bf16> {
  static constexpr int kStride = kHeadDim + kRowPadding;
  static constexpr int kChunks = kHeadDim / kChunk;

  bf16* const smem;  // [kAttentionStages, 2, kKeys, kStride]

  // Begin the copies of the kKeys keys and values from position `first` on; zeros from the split's end on.
  __device__ void begin(const AttentionParams& p, const Work& w, int first, int stage) const {
    bf16* keys_smem = smem + stage * 2 * kKeys * kStride;
    if (is_whole(p, w, first, kKeys)) {
      WholeTile<kHeadDim * 2, kKeys>::begin(p, cache_row(p, w, first), reinterpret_cast<unsigned char*>(keys_smem),
                                            kStride * 2);
      return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kAttentionThreads) {
      const int row = i / kChunks, column = i % kChunks * kChunk;
      const KeyPlace key = find_key(p, w, first + row);
      const index_t from = key.row * kHeadDim + (key.present ? column : 0);
      const bf16* k = static_cast<const bf16*>(key.cached ? p.key_cache : p.k);
      const bf16* v = static_cast<const bf16*>(key.cached ? p.value_cache : p.v);
      copy_async_16(keys_smem + row * kStride + column, k + from, key.present);
      copy_async_16(keys_smem + (kKeys + row) * kStride + column, v + from, key.present);
    }
  }

  // The tile [2, kKeys, kStride], once every thread's copies are there.
  __device__ const bf16* tile(int stage) const { return smem + stage * 2 * kKeys * kStride; }
};

// FP8 caches: codes are copied, and widened in registers. The step's own keys and values become codes as well before
// anything is computed with them: what a step sees does not depend on where a prompt was cut.
template <int kHeadDim, int kKeys>
struct KeyTiles<kHeadDim, kKeys, fp8> {
  static constexpr int kCodes = 16;  // in 16 bytes
  static constexpr int kStride = kHeadDim + kCodes;
  static constexpr int kChunks = kHeadDim / kCodes;

  fp8* const smem;  // [kAttentionStages, 2, kKeys, kStride]

  __device__ void begin(const AttentionParams& p, const Work& w, int first, int stage) const {
    fp8* keys_smem = smem + stage * 2 * kKeys * kStride;
    fp8* values_smem = keys_smem + kKeys * kStride;
    if (is_whole(p, w, first, kKeys)) {
      WholeTile<kHeadDim, kKeys>::begin(p, cache_row(p, w, first), keys_smem, kStride);
      return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kAttentionThreads) {
      const int row = i / kChunks, column = i % kChunks * kCodes, to = row * kStride + column;
      const KeyPlace key = find_key(p, w, first + row);
      const index_t from = key.row * kHeadDim + (key.present ? column : 0);
      if (key.present && !key.cached) {
#pragma unroll
        for (int c = 0; c < kCodes; c += kChunk) {
          store_chunk(keys_smem + to + c, load_chunk(p.k, from + c), p.key_scale);
          store_chunk(values_smem + to + c, load_chunk(p.v, from + c), p.value_scale);
        }
        continue;
      }
      copy_async_16(keys_smem + to, static_cast<const fp8*>(p.key_cache) + from, key.present);
      copy_async_16(values_smem + to, static_cast<const fp8*>(p.value_cache) + from, key.present);
    }
  }

  // The tile [2, kKeys, kStride], once every thread's copies are there.
  __device__ const fp8* tile(int stage) const { return smem + stage * 2 * kKeys * kStride; }
};

}  // namespace dflash
