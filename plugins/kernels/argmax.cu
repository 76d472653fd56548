// DFlashArgmax: where the largest logit of each row stands, the first of equals; in a slot that samples the best by
// noise, as in DFlashAccept.
//
// Logits are bfloat16, and each is read once, or twice where the slot samples. Shapes stand in argmax_params.h,
// choosing in choose.cuh. Two launches:
//   dflash_argmax_scan    grid (chunks, N), 256 threads: what a chunk of a row has
//   dflash_argmax_choose  grid (N), 1024 threads: merges the chunks, filters where the slot asks for it
// A row with a NaN gets any place of 0 … V-1.
#include "argmax_params.h"
#include "choose.cuh"

namespace dflash {

using Bits = unsigned short;  // of a bfloat16

static_assert(Chunk<Bits>::kElements == kArgmaxElements, "a CTA's loads are a chunk, wherever its row begins");

__device__ __forceinline__ Row<Bits> row_of(const ArgmaxParams& p, int row) {
  return Row<Bits>(p, static_cast<const Bits*>(p.logits), p.tokens, row);
}

__device__ __forceinline__ long long position_of(const ArgmaxParams& p, int row) {
  return 1LL + p.next_len[row / p.slot_rows] + row % p.slot_rows;
}

}  // namespace dflash

extern "C" __global__ void __launch_bounds__(dflash::kScanThreads)
    dflash_argmax_scan(const __grid_constant__ dflash::ArgmaxParams p) {
  using namespace dflash;
  const int row = static_cast<int>(blockIdx.y);
  const int slot = row / p.slot_rows;
  scan_chunk(row_of(p, row), Sampling(p, slot), p.noise_key + kKeyWords * slot, position_of(p, row));
}

extern "C" __global__ void __launch_bounds__(dflash::kChooseThreads)
    dflash_argmax_choose(const __grid_constant__ dflash::ArgmaxParams p) {
  using namespace dflash;
  __shared__ Shared smem;
  const int row = static_cast<int>(blockIdx.x);
  const int slot = row / p.slot_rows;
  const int place =
      choose(row_of(p, row), Sampling(p, slot), p.noise_key + kKeyWords * slot, position_of(p, row), &smem);
  if (threadIdx.x == 0) p.places[row] = place < 0 ? ~place : place;
}
