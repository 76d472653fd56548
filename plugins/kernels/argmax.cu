// DFlashArgmax: where the largest logit of each row stands, the first of equals.
//
// Logits are bfloat16, and each is read once. Shapes stand in argmax_params.h. Two launches:
//   dflash_argmax_scan   grid (chunks, N), 256 threads: the largest logit of a chunk, and where it first stands
//   dflash_argmax_merge  a warp for each row: merges the chunks
// A row with a NaN gets any place of 0 … V-1: NaN is smaller than every number here.
#include "argmax_params.h"
#include "best.cuh"

namespace dflash {

constexpr int kVector = 8;  // logits of 16 bytes
constexpr int kArgmaxLoads = kArgmaxElements / (kVector * kArgmaxThreads);
constexpr int kArgmaxWarps = kArgmaxThreads / kWarp;
constexpr unsigned kNoLogits = 0x7fff7fff;  // two NaN

static_assert(kArgmaxElements == kVector * kArgmaxThreads * kArgmaxLoads, "the loads are the same for every thread");
static_assert(kWarp % kArgmaxWarps == 0, "one warp reads what every warp of the CTA found");

__device__ __forceinline__ float low_logit(unsigned word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_logit(unsigned word) { return __uint_as_float(word & 0xffff0000u); }

// Eight logits from `at` on, a multiple of 16 bytes; NaN for what is not in [0, vocab).
__device__ __forceinline__ uint4 load_logits(const unsigned short* row_gmem, int at, int vocab) {
  if (at >= 0 && at + kVector <= vocab) return *reinterpret_cast<const uint4*>(row_gmem + at);
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int low = at + 2 * i, high = low + 1;
    words[i] = kNoLogits;
    if (low >= 0 && low < vocab) words[i] = (words[i] & 0xffff0000u) | row_gmem[low];
    if (high >= 0 && high < vocab) words[i] = (words[i] & 0xffffu) | static_cast<unsigned>(row_gmem[high]) << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ float largest_of(unsigned word) { return fmaxf(low_logit(word), high_logit(word)); }

// Set `index` to where `largest` first stands among the eight logits from `at` on, if it does.
__device__ __forceinline__ void find(const uint4& logits, float largest, int at, int& index) {
  const unsigned words[4] = {logits.x, logits.y, logits.z, logits.w};
#pragma unroll
  for (int i = 3; i >= 0; --i) {
    if (high_logit(words[i]) == largest) index = at + 2 * i + 1;
    if (low_logit(words[i]) == largest) index = at + 2 * i;
  }
}

}  // namespace dflash

extern "C" __global__ void __launch_bounds__(dflash::kArgmaxThreads)
    dflash_argmax_scan(const __grid_constant__ dflash::ArgmaxParams p) {
  using namespace dflash;
  __shared__ Best found_smem[kArgmaxWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const long long row = blockIdx.y;
  const auto* const row_gmem = static_cast<const unsigned short*>(p.logits) + row * p.vocab;
  const int lead = static_cast<int>(reinterpret_cast<size_t>(row_gmem) / sizeof(unsigned short) % kVector);
  const int first = static_cast<int>(blockIdx.x) * kArgmaxElements - lead + kVector * thread;

  uint4 loaded[kArgmaxLoads];  // all on their way before the first is looked at
#pragma unroll
  for (int i = 0; i < kArgmaxLoads; ++i) {
    loaded[i] = load_logits(row_gmem, first + i * kVector * kArgmaxThreads, p.vocab);
  }
  float largest = -kInfinity;
#pragma unroll
  for (int i = 0; i < kArgmaxLoads; ++i) {
    const float front = fmaxf(largest_of(loaded[i].x), largest_of(loaded[i].y));
    largest = fmaxf(largest, fmaxf(front, fmaxf(largest_of(loaded[i].z), largest_of(loaded[i].w))));
  }
  largest = lanes_max(largest);
  int index = p.vocab - 1;  // where a chunk has NaN alone
  // From back to front, so that the first of equals is what remains.
#pragma unroll
  for (int i = kArgmaxLoads - 1; i >= 0; --i) find(loaded[i], largest, first + i * kVector * kArgmaxThreads, index);

  const Best warps = lanes_best({largest, index});
  if (thread % kWarp == 0) found_smem[thread / kWarp] = warps;
  __syncthreads();  // every warp's best is there
  if (thread >= kWarp) return;
  const Best best = lanes_best(found_smem[thread % kArgmaxWarps]);
  if (thread > 0) return;
  p.chunk_max[row * p.chunks + blockIdx.x] = best.value;
  p.chunk_argmax[row * p.chunks + blockIdx.x] = best.index;
}

extern "C" __global__ void __launch_bounds__(dflash::kArgmaxMergeThreads)
    dflash_argmax_merge(const __grid_constant__ dflash::ArgmaxParams p) {
  using namespace dflash;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = static_cast<int>(blockIdx.x * kArgmaxMergeThreads + threadIdx.x) / kWarp;
  if (row >= p.rows) return;
  const long long first = 1LL * row * p.chunks;
  Best best = {-kInfinity, p.vocab - 1};
  for (int chunk = lane; chunk < p.chunks; chunk += kWarp) {
    best = better(best, {p.chunk_max[first + chunk], p.chunk_argmax[first + chunk]});
  }
  best = lanes_best(best);
  if (lane == 0) p.places[row] = best.index;
}
