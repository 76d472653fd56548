// How tiles of keys and values come into shared memory as bfloat16: from the caches, or the step's own from k and v. A
// tile is begun while the one before is in use.
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
  __device__ const bf16* finish(int stage) const { return smem + stage * 2 * kKeys * kStride; }
};

// FP8 caches: codes are copied, and widened when they are there. The step's own keys and values become codes as well
// before anything is computed with them: what a step sees does not depend on where a prompt was cut.
template <int kHeadDim, int kKeys>
struct KeyTiles<kHeadDim, kKeys, fp8> {
  static constexpr int kStride = kHeadDim + kRowPadding;
  static constexpr int kCodes = 16;  // in 16 bytes
  static constexpr int kChunks = kHeadDim / kCodes;
  static constexpr int kStageBytes = 2 * kKeys * kHeadDim;
  static_assert(kAttentionStages * kStageBytes <= (kAttentionStages - 1) * 2 * kKeys * kStride * 2,
                "the codes of all stages must fit behind the widened tile");

  bf16* const smem;  // the widened tile [2, kKeys, kStride], then codes [kAttentionStages, 2, kKeys, kHeadDim]

  __device__ fp8* codes(int stage) const {
    return reinterpret_cast<fp8*>(smem + 2 * kKeys * kStride) + stage * kStageBytes;
  }

  __device__ void begin(const AttentionParams& p, const Work& w, int first, int stage) const {
    fp8* keys_smem = codes(stage);
    fp8* values_smem = keys_smem + kKeys * kHeadDim;
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kAttentionThreads) {
      const int row = i / kChunks, column = i % kChunks * kCodes, to = row * kHeadDim + column;
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

  __device__ const bf16* finish(int stage) const {
    const fp8* from = codes(stage);
    for (int i = threadIdx.x; i < 2 * kKeys * kHeadDim / kChunk; i += kAttentionThreads) {
      const int row = i / (kHeadDim / kChunk), column = i % (kHeadDim / kChunk) * kChunk;
      *reinterpret_cast<uint4*>(smem + row * kStride + column) =
          widen(*reinterpret_cast<const uint2*>(from + i * kChunk));
    }
    __syncthreads();  // the tile is whole
    return smem;
  }
};

}  // namespace dflash
