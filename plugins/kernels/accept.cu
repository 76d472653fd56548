// DFlashAccept: which token each row of logits becomes, and how many of the drafts that confirms.
//
//   choice[b, r]  = argmax(l) where temperature <= 0, else the argmax of (l - max l) / temperature + noise among the
//                   tokens that top-k, top-p and min-p keep
//   accepted[b]   = how many of the drafts input_ids[b, num_known + r], r = 0, 1, … equal choice[b, r] before the
//                   first that does not
//   new_ids[b]    = choice[b, 0 … accepted], then -1; the last of them is the bonus
//
// l = logits[b, r], or what DFlashAdjust made of it; noise is that of position past_len + num_known + r, which the row
// decides. Shapes and types stand in accept_params.h, choosing in choose.cuh. Three launches, since a row is the work
// of many CTAs, and the prefix that of all rows of a slot:
//   dflash_accept_scan    grid (chunks, B·R), 256 threads: the largest logit of a chunk, and where it first stands;
//                         where the slot samples its best by noise or, for a filter, its mass
//   dflash_accept_choose  grid (B·R), 1024 threads: merges the chunks, filters where the slot asks for it; 33 KB of
//                         shared memory (accept_sample.cuh). Without a filter it reads one logit of each chunk again
//   dflash_accept_finish  grid (B), one warp: the prefix
// None waits for the host, and none asks it for a length.
//
// A row with a NaN, or whose largest logit is not finite, decides no token: its new id is -1, and it confirms no draft.
// It is not sampled, and its choice is stored as ~token. The bonus is a token of the vocabulary whatever comes in,
// since the drafter reads its embedding.
#include "accept_params.h"
#include "choose.cuh"
#include "device.cuh"

namespace dflash {

static_assert(Chunk<float>::kElements == kScanElements, "a CTA's loads are a chunk, wherever its row begins");
static_assert(kFinishThreads == kWarp, "the prefix is found by one warp");

// What row `row` of all chooses from.
__device__ __forceinline__ Row<float> row_of(const AcceptParams& p, int row) {
  return Row<float>(p, p.adjusts[row / p.rows] ? p.adjusted : p.logits, nullptr, row);
}

// The position that a row decides.
__device__ __forceinline__ long long position_of(const AcceptParams& p, int row) {
  const int slot = row / p.rows;
  return 0LL + p.past_len[slot] + p.num_known[slot] + row % p.rows;
}

}  // namespace dflash

extern "C" __global__ void __launch_bounds__(dflash::kScanThreads)
    dflash_accept_scan(const __grid_constant__ dflash::AcceptParams p) {
  using namespace dflash;
  const int row = static_cast<int>(blockIdx.y);
  const int slot = row / p.rows;
  scan_chunk(row_of(p, row), Sampling(p, slot), p.noise_key + kKeyWords * slot, position_of(p, row));
}

extern "C" __global__ void __launch_bounds__(dflash::kChooseThreads)
    dflash_accept_choose(const __grid_constant__ dflash::AcceptParams p) {
  using namespace dflash;
  __shared__ Shared smem;
  const int row = static_cast<int>(blockIdx.x);
  const int slot = row / p.rows;
  const int choice =
      choose(row_of(p, row), Sampling(p, slot), p.noise_key + kKeyWords * slot, position_of(p, row), &smem);
  if (threadIdx.x == 0) p.choice[row] = choice;
}

extern "C" __global__ void __launch_bounds__(dflash::kFinishThreads)
    dflash_accept_finish(const __grid_constant__ dflash::AcceptParams p) {
  using namespace dflash;
  const int slot = blockIdx.x;
  const int known = p.num_known[slot];
  const int* choice_gmem = p.choice + 1LL * slot * p.rows;         // [R]
  const long long* ids_gmem = p.input_ids + 1LL * slot * p.width;  // [S]
  int accepted = p.rows - 1;                                       // the last row has no draft to confirm
  for (int first = 0; first < p.rows - 1; first += kWarp) {
    const int row = first + lane_of_thread();
    const bool drafted = static_cast<unsigned>(known + row) < static_cast<unsigned>(p.width);
    const bool valid = row >= p.rows - 1 || choice_gmem[row] >= 0;
    const bool hit = row >= p.rows - 1 || (drafted && valid && ids_gmem[known + row] == choice_gmem[row]);
    const unsigned missed = ~__ballot_sync(kAllLanes, hit);
    if (missed == 0) continue;
    accepted = first + __ffs(static_cast<int>(missed)) - 1;
    break;
  }
  for (int row = lane_of_thread(); row < p.rows; row += kWarp) {
    p.new_ids[1LL * slot * p.rows + row] = row <= accepted ? max(choice_gmem[row], -1) : -1;
  }
  if (lane_of_thread() > 0) return;
  p.num_new[slot] = accepted + 1;
  p.next_len[slot] = p.past_len[slot] + known + accepted;
  const int choice = choice_gmem[accepted];
  p.bonus[slot] = choice < 0 ? ~choice : choice;
}
