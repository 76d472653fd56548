// DFlashSelect: of each row's likeliest places one, from the first row on, each chosen with the one before it.
//
//   C_j       = the top_k places of the largest logits l[b, j], in order
//   s_j(p, c) = l[b, j, c] + sum_r before(p)_r hidden[b, j]_r successor[c]_r
//   before(p) = predecessor[p], p in C_(j-1); in row 0 the anchor's row
//   places[b, j] = argmax of s_j(places[b, j-1], c) over c in C_j; among equals the first in C_j
//
// A place can only stand behind one of the candidates of the row before. So all scores of all rows are computed at
// once, and what is left in order is a walk of look-ups. NaN counts as -infinity, in logits and in scores. Shapes and
// types stand in select_params.h. Three launches:
//   dflash_select_scan   grid (chunks, B·N), 128 threads: the top_k of a chunk of logits, each read once
//   dflash_select_pairs  grid (N, B), 128 threads: merges the chunks of this row and of the one before; the best
//                        candidate behind each candidate before
//   dflash_select_walk   grid (B), one warp: the look-ups
// Sums over R are in float32. Whatever comes in, nothing outside the tensors is read, and a place is one of 0 … V-1.
#include "select_pairs.cuh"

namespace dflash {

static_assert(kWalkThreads == kWarp && kSelectMaxTopK == 2 * kWarp, "a lane of the walk has two candidates");

// What a CTA of the second launch keeps of the row and of the one before.
struct Candidates {
  int place[kSelectMaxTopK];
  float logit[kSelectMaxTopK];
};

// The candidates of a row of B·N, from those of its chunks. The order of places is that of the chunks' results.
__device__ void merge_chunks(const SelectParams& p, long long row, TopShared* smem, Element* found_smem,
                             Candidates* to_smem) {
  const int count = p.chunks * p.top_k;
  RowTop(smem, found_smem, p.top_k).run(p.chunk_values + row * count, 0, count);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < p.top_k) {
    const Element kept = smem->kept[thread];
    const int at = kept.place < count ? kept.place : 0;
    to_smem->place[thread] = p.chunk_places[row * count + at];
    to_smem->logit[thread] = kept.value;
  }
  __syncthreads();  // the candidates are there
}

template <int kTiles>
__device__ void score_pairs(const PairRows& rows, float* tiles_smem, int* next_gmem) {
  PairScores<kTiles>(rows, tiles_smem).run(next_gmem);
}

}  // namespace dflash

extern "C" __global__ void __launch_bounds__(dflash::kSelectThreads)
    dflash_select_scan(const __grid_constant__ dflash::SelectParams p) {
  using namespace dflash;
  DFLASH_SHARED_MEMORY(found_smem);
  __shared__ TopShared top_smem;
  const long long row = blockIdx.y;
  const float* row_gmem = p.logits + row * p.vocab;
  const int lead = static_cast<int>(reinterpret_cast<size_t>(row_gmem) / sizeof(float) % 4);
  const int first = static_cast<int>(blockIdx.x) * p.chunk_elements - lead;
  const int end = min(p.vocab, first + p.chunk_elements);
  RowTop(&top_smem, reinterpret_cast<Element*>(found_smem), p.top_k).run(row_gmem, max(first, 0), end);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= p.top_k) return;
  const Element kept = top_smem.kept[thread];
  const long long at = (row * p.chunks + blockIdx.x) * p.top_k + thread;
  p.chunk_values[at] = kept.value;
  p.chunk_places[at] = kept.place < p.vocab ? kept.place : 0;  // of what is not there
}

extern "C" __global__ void __launch_bounds__(dflash::kSelectThreads)
    dflash_select_pairs(const __grid_constant__ dflash::SelectParams p) {
  using namespace dflash;
  DFLASH_SHARED_MEMORY(smem);
  __shared__ TopShared top_smem;
  __shared__ Candidates candidates_smem[2];  // of this row, and of the one before
  const int slot = blockIdx.y;
  const long long row = 1LL * slot * p.rows + blockIdx.x;
  const bool is_first = blockIdx.x == 0;
#pragma unroll 1
  for (int back = 0; back < (is_first ? 1 : 2); ++back) {
    merge_chunks(p, row - back, &top_smem, reinterpret_cast<Element*>(smem), &candidates_smem[back]);
  }
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < p.top_k) p.candidates[row * p.top_k + thread] = candidates_smem[0].place[thread];

  PairRows rows{};
  rows.before_gmem =
      is_first ? static_cast<const bf16*>(p.anchor_row) + 1LL * slot * p.rank : static_cast<const bf16*>(p.predecessor);
  rows.before_smem = is_first ? nullptr : candidates_smem[1].place;
  rows.behind_gmem = static_cast<const bf16*>(p.successor);
  rows.behind_smem = candidates_smem[0].place;
  rows.hidden_gmem = static_cast<const bf16*>(p.hidden) + row * p.rank;
  rows.logits_smem = candidates_smem[0].logit;
  rows.count = p.top_k;
  rows.rank = p.rank;
  float* const tiles_smem = reinterpret_cast<float*>(smem);
  int* const next_gmem = p.next + row * p.top_k;
  const int tiles = (p.top_k + kPairWidth - 1) / kPairWidth;
  if (tiles <= 1) {
    score_pairs<1>(rows, tiles_smem, next_gmem);
  } else if (tiles == 2) {
    score_pairs<2>(rows, tiles_smem, next_gmem);
  } else if (tiles == 3) {
    score_pairs<3>(rows, tiles_smem, next_gmem);
  } else {
    score_pairs<4>(rows, tiles_smem, next_gmem);
  }
}

extern "C" __global__ void __launch_bounds__(dflash::kWalkThreads)
    dflash_select_walk(const __grid_constant__ dflash::SelectParams p) {
  using namespace dflash;
  const int lane = static_cast<int>(threadIdx.x);
  const long long slot = blockIdx.x;
  const bool low_present = lane < p.top_k, high_present = lane + kWarp < p.top_k;
  int at = 0;  // the candidate before; all stand for the anchor in row 0
#pragma unroll 4
  for (int j = 0; j < p.rows; ++j) {
    const long long row = (slot * p.rows + j) * p.top_k;
    const int low = low_present ? p.next[row + lane] : 0;
    const int high = high_present ? p.next[row + lane + kWarp] : 0;
    const int low_place = low_present ? p.candidates[row + lane] : 0;
    const int high_place = high_present ? p.candidates[row + lane + kWarp] : 0;
    const int next_low = __shfl_sync(kAllLanes, low, at % kWarp), next_high = __shfl_sync(kAllLanes, high, at % kWarp);
    at = at < kWarp ? next_low : next_high;
    const int place_low = __shfl_sync(kAllLanes, low_place, at % kWarp);
    const int place_high = __shfl_sync(kAllLanes, high_place, at % kWarp);
    if (lane == 0) p.places[slot * p.rows + j] = at < kWarp ? place_low : place_high;
  }
}
