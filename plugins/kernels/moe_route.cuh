// Who goes where: each token's experts and their shares, and the assignments sorted by expert.
#pragma once

#include "moe_weights.cuh"

namespace dflash {

// An expert and its logit as a number that grows with it. NaN is below everything, and -0 is 0.
struct Candidate {
  unsigned rank;
  int expert;
};

// The higher logit is first; of equals the lower expert, as ONNX TopK has it.
__device__ __forceinline__ bool is_before(Candidate a, Candidate b) {
  return a.rank > b.rank || (a.rank == b.rank && a.expert < b.expert);
}

__device__ __forceinline__ unsigned rank_of(float logit) {
  const unsigned bits = __float_as_uint(logit + 0.f);
  if (logit != logit) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The first of a token's experts behind `previous`, by one warp. There is one: top_k is at most their number.
__device__ inline Candidate next_expert(const MoeParams& p, const float* logits, Candidate previous) {
  Candidate best = {0, kMaxExperts};  // behind every expert
  for (int expert = threadIdx.x % kWarp; expert < p.experts; expert += kWarp) {
    const Candidate own = {rank_of(logits[expert]), expert};
    if (is_before(previous, own) && is_before(own, best)) best = own;
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Candidate other = {__shfl_xor_sync(kAllLanes, best.rank, step),
                             __shfl_xor_sync(kAllLanes, best.expert, step)};
    if (is_before(other, best)) best = other;
  }
  return best;
}

// One token's experts, the first for lane 0, and what each counts.
__device__ inline void choose_experts(const MoeParams& p, int token) {
  const int lane = threadIdx.x % kWarp;
  const float* logits = p.router_logits + index_t(token) * p.experts;
  Candidate previous = {~0u, -1}, own = previous;
  for (int choice = 0; choice < p.top_k; ++choice) {
    previous = next_expert(p, logits, previous);
    if (choice == lane) own = previous;
  }
  const bool is_choice = lane < p.top_k;
  const float logit = is_choice ? logits[own.expert] : 0.f;
  const float largest = __shfl_sync(kAllLanes, logit, 0);
  const float weight = is_choice ? expf(logit - largest) : 0.f;
  float sum = weight;
  if (!p.normalize) {
    sum = 0.f;
    for (int expert = lane; expert < p.experts; expert += kWarp) sum += expf(logits[expert] - largest);
  }
  sum = lanes_sum(sum);
  if (!is_choice) return;
  const index_t assignment = index_t(token) * p.top_k + lane;
  p.chosen[assignment] = own.expert;
  p.shares[assignment] = weight / sum;
}

// A CTA for each token: its first warp chooses experts while the others put x into the products' order.
template <int kFormat>
__device__ void route(const MoeParams& p) {
  const int token = blockIdx.x, thread = threadIdx.x;
  if (thread < kWarp) return choose_experts(p, token);
  if (!kHasProductsOrder<kFormat>) return;
  const int eights = p.hidden / 8;
  const uint4* x = static_cast<const uint4*>(p.x) + index_t(token) * eights;
  uint4* ordered = static_cast<uint4*>(p.ordered_x) + index_t(token) * eights;
  for (int i = thread - kWarp; i < eights; i += kRouteThreads - kWarp) ordered[i] = in_products_order(x[i]);
}

// Which of 32 assignments are an expert's, for all lanes of a warp; past the last none is.
__device__ __forceinline__ unsigned mine_of_32(const int* chosen, int first, int assignments, int expert) {
  const int assignment = first + static_cast<int>(threadIdx.x % kWarp);
  return __ballot_sync(kAllLanes, assignment < assignments && chosen[assignment] == expert);
}

// Where each expert's places begin, and the groups of those that have some, from their counts: by one warp.
__device__ inline void make_groups(const MoeParams& p, const int* count_smem, int* begin_smem) {
  const int lane = threadIdx.x % kWarp;
  const int groups = min(p.experts, p.tokens * p.top_k);
  int4* out = reinterpret_cast<int4*>(p.groups);
  int places = 0, made = 0;
  for (int first = 0; first < p.experts; first += kWarp) {
    const int expert = first + lane;
    const int count = expert < p.experts ? count_smem[expert] : 0;
    int end = count;  // of the places of this and the lower lanes
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int below = __shfl_up_sync(kAllLanes, end, step);
      if (lane >= step) end += below;
    }
    const unsigned used = __ballot_sync(kAllLanes, count > 0);
    const int begin = places + end - count;
    if (expert < p.experts) begin_smem[expert] = begin;
    if (count > 0) out[made + __popc(used & ((1u << lane) - 1))] = make_int4(expert, begin, begin + count, 0);
    places += __shfl_sync(kAllLanes, end, kWarp - 1);
    made += __popc(used);
  }
  for (int group = made + lane; group < groups; group += kWarp) out[group] = make_int4(0, 0, 0, 0);
}

// Sorts the assignments by expert and then by number, in one CTA: each warp counts and places those of its experts.
__device__ inline void list_groups(const MoeParams& p) {
  __shared__ int count_smem[kMaxExperts];
  __shared__ int begin_smem[kMaxExperts];
  constexpr int kWarps = kListThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int assignments = p.tokens * p.top_k;
  for (int expert = warp; expert < p.experts; expert += kWarps) {
    int count = 0;
    for (int i = 0; i < assignments; i += kWarp) count += __popc(mine_of_32(p.chosen, i, assignments, expert));
    if (lane == 0) count_smem[expert] = count;
  }
  __syncthreads();
  if (warp == 0) make_groups(p, count_smem, begin_smem);
  __syncthreads();
  for (int expert = warp; expert < p.experts; expert += kWarps) {
    int place = begin_smem[expert];
    const int end = place + count_smem[expert];
    for (int i = 0; i < assignments && place < end; i += kWarp) {
      const unsigned mine = mine_of_32(p.chosen, i, assignments, expert);
      if (mine >> lane & 1) {
        const int own = place + __popc(mine & ((1u << lane) - 1));
        p.order[own] = i + lane;
        p.rows[own] = (i + lane) / p.top_k;
      }
      place += __popc(mine);
    }
  }
}

}  // namespace dflash
