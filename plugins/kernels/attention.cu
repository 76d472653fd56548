// Attention of a step's rows over a cache that the same launch extends: DFlashVerifyAttention and DFlashDraftAttention.
//
//   out[b, t, h] = sum_p w_p v_p / (sum_p w_p + e^sink_h),  w_p = e^(scale q[b, t, h] . k_p),  over the keys p that row
//   t sees: those before the block's end, not later than t if causal, nearer than the window if there is one.
//
// Shapes, layouts and types stand in attention_params.h. Query heads that share a key head are packed with the block's
// rows: packed row r is head r % G of block row r / G, so eight rows of a block fill the tensor cores' sixteen.
//
// Grid (row tiles x splits, kv heads, slots), four warps. Each CTA takes a tile of packed rows, and of its keys one
// split, in tiles that arrive by asynchronous copies while the one before is used. Warps divide the rows, or the keys
// of each tile, or both (AttentionTile); those that share rows are merged through shared memory. With several splits
// each leaves an unnormalised float32 result for dflash_attention_merge.
//
// Keys older than the step come from the caches, the step's own from k and v. So what the CTAs write into the caches is
// read by none of them, and one launch needs no order among its CTAs.
//
// FP8 caches hold codes c = e4m3(k / key_scale): then keys are codes everywhere, q . k_p is key_scale q . c_p, and the
// sum over values is multiplied by value_scale at its end. A code is exact in bfloat16, so no product loses anything.
//
// A ring holds the last cache_len positions of its slot. What the step writes takes the rows of positions that are
// further back than the window of its first row, so here too no CTA writes what another reads. Keys are taken in the
// order of their positions, so results are those of caches that hold everything, bit for bit, where the keys are split
// in the same way.
//
// Not handled: other types than bfloat16 and, of the caches, FP8; head_dim other than 64, 96, 128, 256. Lengths are
// read on the device: wrong ones give wrong results, but nothing outside the tensors is read or written.

#include "attention_tile.cuh"

namespace dflash {

// out of a head row from what each split found: a warp for each row, and in its statistics a lane for each split.
template <int kHeadDim>
__device__ void merge_splits(const AttentionParams& p) {
  const index_t head_rows = index_t(p.batch) * p.rows * p.q_heads;
  const index_t head = (index_t(blockIdx.x) * kMergeThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (head >= head_rows) return;
  const index_t own = (lane < p.splits ? lane : 0) * head_rows + head;
  const float split_sum = lane < p.splits ? p.partial_stats[own * 2 + 1] : 0.f;
  const float split_largest = split_sum > 0.f ? p.partial_stats[own * 2] : -kInfinity;
  const float largest = lanes_max(split_largest);
  const float share = split_sum > 0.f ? exp2_approx(split_largest - largest) : 0.f;
  float sum = lanes_sum(split_sum * share), shrink = 1.f;
  add_sink(p, head, largest, sum, shrink);

  float out_rmem[kHeadDim / kWarp] = {};
  for (int split = 0; split < p.splits; ++split) {
    const float factor = __shfl_sync(kAllLanes, share, split);
    if (factor == 0.f) continue;  // its keys are hidden from this row, and it may have written nothing
    const float* from = p.partial_out + (split * head_rows + head) * kHeadDim;
#pragma unroll
    for (int i = 0; i < kHeadDim / kWarp; ++i) out_rmem[i] += from[i * kWarp + lane] * factor;
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

#define DFLASH_ATTENTION(HEAD_DIM, ROWS)                                                                            \
  extern "C" __global__ void __launch_bounds__(dflash::kAttentionThreads, 2)                                        \
      DFLASH_NAME(dflash_attention_d##HEAD_DIM##_r##ROWS)(const __grid_constant__ dflash::AttentionParams params) { \
    DFLASH_SHARED_MEMORY(smem);                                                                                     \
    dflash::Attention<HEAD_DIM, ROWS, DFLASH_CACHE>(params, smem).run();                                            \
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
