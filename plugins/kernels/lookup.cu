// DFlashLookup: the next block's drafts, from the drafter or from what followed the slot's last tokens earlier.
//
// One launch, grid (B), 512 threads: a CTA looks for the longest match of the last tokens of its slot, and chooses.
// Shapes stand in lookup_params.h, the meaning in graph/ops/lookup.py.
#include "best.cuh"
#include "lookup_params.h"

namespace dflash {

constexpr int kLookupWarps = kLookupThreads / kWarp;
static_assert(kWarp % kLookupWarps == 0, "one warp reads what every warp of the CTA found");
static_assert(kTallySize == 1 + kNumClasses, "a class, and the means of all");

__device__ __forceinline__ int prior_of(int block_class) {
  const int priors[kNumClasses] = {kPriorOfDrafter, kPriorOfFirst, kPriorOfSecond, kPriorOfThird, kPriorOfFourth};
  int prior = 0;
#pragma unroll
  for (int i = 0; i < kNumClasses; ++i) prior = i == block_class ? priors[i] : prior;
  return prior;
}

__device__ __forceinline__ int class_of(int matched) {
  return matched < kMinMatch ? kNoMatch
                             : 1 + (matched >= kSecondMatch) + (matched >= kThirdMatch) + (matched >= kMaxMatch);
}

// The text of a slot: its history, and the bonus at its end.
struct Text {
  const float* history_gmem;
  int end;
  float bonus;

  __device__ __forceinline__ float operator[](int at) const { return at == end ? bonus : history_gmem[at]; }
};

// The longest match of the tokens up to `end` that ends before it, as far as this thread looks: its length, and how far
// back it ends. Of equals the nearest.
__device__ __forceinline__ Best longest_match(const Text& text) {
  const int end = text.end;
  float last[kMaxMatch];
#pragma unroll
  for (int back = 0; back < kMaxMatch; ++back) last[back] = back <= end ? text[end - back] : -1.0f;
  Best best = {0.0f, 1};  // a match of no token is the last token itself
  for (int at = static_cast<int>(threadIdx.x); at < end; at += kLookupThreads) {
    int matched = 0;
    while (matched < kMaxMatch && matched <= at && text.history_gmem[at - matched] == last[matched]) ++matched;
    best = matched ? better(best, {static_cast<float>(matched), end - at}) : best;
  }
  return best;
}

// Every class's mean once the step's block is counted.
__device__ __forceinline__ void count_block(const LookupParams& p, int slot, int* means) {
  const int* const tally_gmem = p.tally + 1LL * slot * kTallySize;
  const bool has_drafts = p.width > p.num_known[slot];
  const int accepted = p.next_len[slot] - p.past_len[slot] - p.num_known[slot];
#pragma unroll
  for (int i = 0; i < kNumClasses; ++i) {
    const int mean = tally_gmem[1 + i] + prior_of(i);
    const int moved = ((kMeanShare - 1) * mean + kMeanUnit * accepted + kMeanShare / 2) / kMeanShare;
    means[i] = has_drafts && tally_gmem[0] == i ? moved : mean;
  }
}

}  // namespace dflash

extern "C" __global__ void __launch_bounds__(dflash::kLookupThreads)
    dflash_lookup_choose(const __grid_constant__ dflash::LookupParams p) {
  using namespace dflash;
  __shared__ Best found_smem[kLookupWarps];
  __shared__ int period_smem;  // 0: the drafter's block
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = static_cast<int>(blockIdx.x);
  // A length that cannot be right reads and writes nothing else's memory: such a text has one token.
  const int next_len = p.next_len[slot];
  const int end = next_len >= 0 && next_len < p.rows ? next_len : 0;
  const Text text = {p.history + 1LL * slot * p.rows, end, static_cast<float>(p.bonus[slot])};

  const Best warps = lanes_best(longest_match(text));
  if (thread % kWarp == 0) found_smem[thread / kWarp] = warps;
  __syncthreads();  // every warp's best is there
  if (thread < kWarp) {
    const Best best = lanes_best(found_smem[thread % kLookupWarps]);
    if (thread == 0) {
      const int matched = static_cast<int>(best.value);
      const int of_match = class_of(matched);
      const int sources = p.draft_sources[slot];
      int means[kNumClasses];
      count_block(p, slot, means);
      int mean_of_match = 0;
      int* const tally_gmem = p.next_tally + 1LL * slot * kTallySize;
#pragma unroll
      for (int i = 0; i < kNumClasses; ++i) {
        mean_of_match = i == of_match ? means[i] : mean_of_match;
        tally_gmem[1 + i] = means[i] - prior_of(i);
      }
      const bool pays = matched >= kMinMatch && mean_of_match >= means[0];
      const bool takes = sources == kFromLookup || (sources == kFromBoth && pays);
      tally_gmem[0] = takes ? of_match : 0;
      period_smem = takes ? best.index : 0;
    }
  }
  __syncthreads();  // the choice is there
  const int period = period_smem;
  for (int i = thread; i < p.num_drafts; i += kLookupThreads) {
    const long long at = 1LL * slot * p.num_drafts + i;
    long long draft = p.drafts[at];
    if (period) draft = static_cast<long long>(text[end - period + 1 + i % period]);
    p.next_drafts[at] = draft;
  }
}
