// DFlashMoE: the weighted sum of each token's experts, of which only those that were chosen are read.
//
//   inner[a] = (up + shift) · gate · sigmoid(alpha · gate),  gate and up the rows of W1[e] x[n] + b1[e], cut at limit
//   out[n]   = sum_j share[n, j] (W2[e] inner[a] + b2[e]),   a = n·k + j an assignment, e its expert
//
// The experts of token n are those of its k highest logits (of equals the lower number), share is the softmax over
// them, or theirs in the softmax over all. Shapes, layouts and formats stand in moe_params.h and moe_weights.cuh. Five
// launches:
//   route    grid (N), 128 threads: a token's experts and shares; x in the order that the products want
//   list     one CTA, 1024 threads: assignments sorted by expert; the groups of those experts that have some
//   gate_up  grid (row blocks, min(E, A)), 256 threads: gate, up and activation of a group (moe_tile.cuh), rounded to
//            bfloat16
//   down     the same grid but for the number of row blocks: an expert's results in float32
//   sum      grid (N, blocks of H), 128 threads: in the order of the choices
// Grids follow from shapes alone. Which experts are read is decided on the device: CTA y takes group y, and returns at
// once where there is none. Every sum has its order, and nothing is added atomically: the same inputs give the same
// bits.
//
// Not handled: other types; H and I that 8 (bfloat16), 32 (FP4) or 16 (FP8) does not divide; interleaved rows of FP8;
// more than 1024 experts or 32 choices. NaN logits are chosen last. Whatever comes in, nothing outside the tensors is
// read or written.
#include "moe_tile.cuh"

namespace dflash {

static_assert((kMaxExperts * 2 + kListCounters) * 4 <= 48 << 10, "list_groups' shared memory is static");
static_assert(kListCounters >= kMaxExperts, "one warp of list_groups has all counters");

// Four elements of one row of out for each thread.
__device__ inline void sum_choices(const MoeParams& p) {
  const index_t token = blockIdx.x;
  const int column = (blockIdx.y * kSumThreads + threadIdx.x) * 4;
  if (column >= p.hidden) return;
  float4 sum = {};
  for (int choice = 0; choice < p.top_k; ++choice) {
    const index_t assignment = token * p.top_k + choice;
    const float share = p.shares[assignment];
    const float4 one = *reinterpret_cast<const float4*>(p.partial + assignment * p.hidden + column);
    sum.x += share * one.x, sum.y += share * one.y, sum.z += share * one.z, sum.w += share * one.w;
  }
  uint2* to = reinterpret_cast<uint2*>(static_cast<bf16*>(p.out) + token * p.hidden + column);
  *to = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
}

}  // namespace dflash

// One format is compiled at a time, and has its own kernels: without DFLASH_WEIGHT_FORMAT bfloat16.
#ifndef DFLASH_WEIGHT_FORMAT
#define DFLASH_WEIGHT_FORMAT 0
#endif
#if DFLASH_WEIGHT_FORMAT == 0
#define DFLASH_NAME(name) name
#elif DFLASH_WEIGHT_FORMAT == 1
#define DFLASH_NAME(name) name##_mxfp4
#elif DFLASH_WEIGHT_FORMAT == 2
#define DFLASH_NAME(name) name##_nvfp4
#elif DFLASH_WEIGHT_FORMAT == 3
#define DFLASH_NAME(name) name##_fp8
#else
#error "DFLASH_WEIGHT_FORMAT is 0 to 3"
#endif

#define DFLASH_MOE(NAME, THREADS, DO)                                       \
  extern "C" __global__ void __launch_bounds__(dflash::THREADS)             \
      DFLASH_NAME(NAME)(const __grid_constant__ dflash::MoeParams params) { \
    DO;                                                                     \
  }

// CTAS: how many a multiprocessor is to hold at once, which limits their registers. For few tokens that is as many
// loads on their way as possible.
#define DFLASH_MOE_TILE(TOKENS, CTAS)                                                               \
  extern "C" __global__ void __launch_bounds__(dflash::kMoeThreads, CTAS)                           \
      DFLASH_NAME(dflash_moe_gate_up_t##TOKENS)(const __grid_constant__ dflash::MoeParams params) { \
    DFLASH_SHARED_MEMORY(smem);                                                                     \
    dflash::ExpertTile<DFLASH_WEIGHT_FORMAT, TOKENS, false>(params, smem).run();                    \
  }                                                                                                 \
  extern "C" __global__ void __launch_bounds__(dflash::kMoeThreads, CTAS)                           \
      DFLASH_NAME(dflash_moe_down_t##TOKENS)(const __grid_constant__ dflash::MoeParams params) {    \
    DFLASH_SHARED_MEMORY(smem);                                                                     \
    dflash::ExpertTile<DFLASH_WEIGHT_FORMAT, TOKENS, true>(params, smem).run();                     \
  }

DFLASH_MOE(dflash_moe_route, kRouteThreads, dflash::route<DFLASH_WEIGHT_FORMAT>(params))
DFLASH_MOE(dflash_moe_list, kListThreads, dflash::list_groups(params))
DFLASH_MOE(dflash_moe_sum, kSumThreads, dflash::sum_choices(params))
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900 && DFLASH_WEIGHT_FORMAT == 1
DFLASH_MOE_TILE(8, 2)  // there three would spill
#else
DFLASH_MOE_TILE(8, 3)
#endif
DFLASH_MOE_TILE(16, 2)
DFLASH_MOE_TILE(32, 2)
