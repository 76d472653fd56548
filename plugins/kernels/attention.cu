// Attention of a step's rows over a cache that the same launch extends: DFlashVerifyAttention and DFlashDraftAttention.
//
//   out[b, t, h] = sum_p w_p v_p / (sum_p w_p + e^sink_h),  w_p = e^(scale q[b, t, h] . k_p),  over the keys p that row
//   t sees: those before the block's end, not later than t if causal, nearer than the window if there is one.
//
// Shapes, layouts and types stand in attention_params.h. Query heads that share a key head are packed with the block's
// rows: packed row r is head r % G of block row r / G, so eight rows of a block fill the tensor cores' sixteen.
//
// Grid (as many CTAs as the GPU holds at once), four warps. An item of work is a tile of packed rows of one key head
// and one split of its keys; how many splits a sequence has follows from its own length. The CTAs deal the items out
// among themselves, so that all have about as many keys. They take an item's keys in tiles that arrive by asynchronous
// copies while the one before is used. Warps divide the rows, or the keys of each tile, or both (AttentionTile); those
// that share rows are merged through shared memory. With several splits each leaves an unnormalised float32 result for
// dflash_attention_merge.
//
// Keys older than the step come from the caches, the step's own from k and v. So what the CTAs write into the caches is
// read by none of them, and one launch needs no order among its CTAs.
//
// FP8 caches hold codes c = e4m3(k / key_scale): then keys are codes everywhere, q . k_p is key_scale q . c_p, and the
// sum over values is multiplied by value_scale at its end. A code is exact in bfloat16, so no product loses anything.
//
// A ring holds the last cache_len positions of its slot. What the step writes takes the rows of positions that are
// further back than the window of its first row, so here too no CTA writes what another reads. Keys are taken in the
// order of their positions, so results are those of caches that hold everything, bit for bit.
//
// Not handled: other types than bfloat16 and, of the caches, FP8; head_dim other than 64, 96, 128, 256. Lengths are
// read on the device: wrong ones give wrong results, but nothing outside the tensors is read or written.

#include "attention_tile.cuh"

namespace dflash {

constexpr int kMergeLoads = 8;  // of splits on their way at once
constexpr int kSplitLanes = kMaxSplits / kWarp;
static_assert(kSplitLanes * kWarp == kMaxSplits && kWarp % kMergeLoads == 0, "whole warps of splits");

// Adds what kMergeLoads splits from `first` on have for a head row; a split's share is that of lane first % kWarp and
// on.
template <int kHeadDim>
__device__ __forceinline__ void add_splits(const AttentionParams& p, index_t head, int first, float share,
                                           float (&out_rmem)[kHeadDim / kWarp]) {
  const index_t head_rows = index_t(p.batch) * p.rows * p.q_heads;
  const int lane = threadIdx.x % kWarp;
  float part_rmem[kMergeLoads][kHeadDim / kWarp], factors[kMergeLoads];
#pragma unroll
  for (int i = 0; i < kMergeLoads; ++i) {
    // A split with no share has no keys that this row sees: it may have written nothing, and there may be none.
    factors[i] = __shfl_sync(kAllLanes, share, (first + i) % kWarp);
    const bool counts = factors[i] != 0.f;
    const float* from = p.partial_out + ((counts ? first + i : 0) * head_rows + head) * kHeadDim;
#pragma unroll
    for (int d = 0; d < kHeadDim / kWarp; ++d) part_rmem[i][d] = counts ? from[d * kWarp + lane] : 0.f;
  }
#pragma unroll
  for (int i = 0; i < kMergeLoads; ++i) {
#pragma unroll
    for (int d = 0; d < kHeadDim / kWarp; ++d) out_rmem[d] += part_rmem[i][d] * factors[i];
  }
}

// out of a head row from what each split found: a warp for each row, and in its statistics a lane for each split.
template <int kHeadDim>
__device__ void merge_splits(const AttentionParams& p) {
  const index_t head_rows = index_t(p.batch) * p.rows * p.q_heads;
  const index_t head = (index_t(blockIdx.x) * kMergeThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (head >= head_rows) return;
  const int tiles = count_tiles(p, static_cast<int>(head / (p.rows * p.q_heads)));
  const int splits = attention_splits(tiles, p.even_splits, p.split_limit);
  if (splits == 1) return;  // whose item wrote the row

  float sums[kSplitLanes], shares[kSplitLanes], largest = -kInfinity;
#pragma unroll
  for (int i = 0; i < kSplitLanes; ++i) {
    const int split = i * kWarp + lane;
    const float* statistics = p.partial_stats + ((split < splits ? split : 0) * head_rows + head) * 2;
    sums[i] = split < splits ? statistics[1] : 0.f;
    shares[i] = sums[i] > 0.f ? statistics[0] : -kInfinity;
    largest = fmaxf(largest, shares[i]);
  }
  largest = lanes_max(largest);
  float sum = 0.f, shrink = 1.f;
#pragma unroll
  for (int i = 0; i < kSplitLanes; ++i) {
    shares[i] = sums[i] > 0.f ? exp2_approx(shares[i] - largest) : 0.f;
    sum += lanes_sum(sums[i] * shares[i]);
  }
  add_sink(p, head, largest, sum, shrink);

  float out_rmem[kHeadDim / kWarp] = {};
#pragma unroll
  for (int i = 0; i < kSplitLanes; ++i) {
    for (int first = 0; first < kWarp && i * kWarp + first < splits; first += kMergeLoads) {
      add_splits<kHeadDim>(p, head, i * kWarp + first, shares[i], out_rmem);
    }
  }
#pragma unroll
  for (int i = 0; i < kHeadDim / kWarp; ++i) {
    static_cast<bf16*>(p.out)[head * kHeadDim + i * kWarp + lane] =
        __float2bfloat16(out_rmem[i] * shrink / sum * p.value_scale);
  }
}

}  // namespace dflash

// One type of cache is compiled at a time, and has its own kernels: without DFLASH_FP8_CACHE bfloat16.
#ifdef DFLASH_FP8_CACHE
#define DFLASH_NAME(name) name##_fp8
#define DFLASH_CACHE dflash::fp8
#else
#define DFLASH_NAME(name) name
#define DFLASH_CACHE dflash::bf16
#endif

#define DFLASH_ATTENTION(HEAD_DIM, ROWS)                                                                               \
  extern "C" __global__ void __launch_bounds__(dflash::kAttentionThreads, dflash::attention_tile(HEAD_DIM, ROWS).ctas) \
      DFLASH_NAME(dflash_attention_d##HEAD_DIM##_r##ROWS)(const __grid_constant__ dflash::AttentionParams params) {    \
    DFLASH_SHARED_MEMORY(smem);                                                                                        \
    dflash::Attention<HEAD_DIM, ROWS, DFLASH_CACHE>::run_all(params, smem);                                            \
  }

#define DFLASH_ATTENTION_MERGE(HEAD_DIM)                                                                        \
  extern "C" __global__ void __launch_bounds__(dflash::kMergeThreads)                                           \
      DFLASH_NAME(dflash_attention_merge_d##HEAD_DIM)(const __grid_constant__ dflash::AttentionParams params) { \
    dflash::merge_splits<HEAD_DIM>(params);                                                                     \
  }

#if !defined(DFLASH_HEAD_DIM) || DFLASH_HEAD_DIM == 64
DFLASH_ATTENTION(64, 16)
DFLASH_ATTENTION(64, 32)
DFLASH_ATTENTION(64, 64)
DFLASH_ATTENTION(64, 96)
DFLASH_ATTENTION(64, 128)
DFLASH_ATTENTION_MERGE(64)
#endif
#if !defined(DFLASH_HEAD_DIM) || DFLASH_HEAD_DIM == 96
DFLASH_ATTENTION(96, 16)
DFLASH_ATTENTION(96, 32)
DFLASH_ATTENTION(96, 64)
DFLASH_ATTENTION(96, 128)
DFLASH_ATTENTION_MERGE(96)
#endif
#if !defined(DFLASH_HEAD_DIM) || DFLASH_HEAD_DIM == 128
DFLASH_ATTENTION(128, 16)
DFLASH_ATTENTION(128, 32)
DFLASH_ATTENTION(128, 64)
DFLASH_ATTENTION(128, 128)
DFLASH_ATTENTION_MERGE(128)
#endif
#if !defined(DFLASH_HEAD_DIM) || DFLASH_HEAD_DIM == 256
DFLASH_ATTENTION(256, 32)
DFLASH_ATTENTION(256, 64)
DFLASH_ATTENTION_MERGE(256)
#endif
