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

// Of 32 assignments, one a lane, those that have this lane's expert; none for lanes without an assignment (-1).
__device__ __forceinline__ unsigned lanes_of(int expert) {
  const unsigned mine = __match_any_sync(kAllLanes, expert);
  return expert < 0 ? 0 : mine;
}

// Sorts the assignments by expert and then by number, in one CTA. Each warp takes a range of them: it counts them by
// expert, and when all have, it knows where its own of each expert go.
__device__ inline void list_groups(const MoeParams& p) {
  __shared__ int count_smem[kMaxExperts];
  __shared__ int begin_smem[kMaxExperts];
  __shared__ int place_smem[kListCounters];  // [warps, experts]: a warp's count, then its next place
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned below = (1u << lane) - 1;
  const int assignments = p.tokens * p.top_k;
  const int warps = min(kListThreads / kWarp, kListCounters / p.experts);
  const int range = (assignments + warps * kWarp - 1) / (warps * kWarp) * kWarp;
  const int first = min(warp < warps ? warp * range : assignments, assignments);
  const int last = min(first + range, assignments);
  int* const own_smem = place_smem + warp * p.experts;
  const auto expert_of = [&](int i) { return i < last ? p.chosen[i] : -1; };

  for (int i = threadIdx.x; i < warps * p.experts; i += kListThreads) place_smem[i] = 0;
  __syncthreads();
  for (int i = first; i < last; i += kWarp) {
    const int expert = expert_of(i + lane);
    const unsigned mine = lanes_of(expert);
    if (mine && (mine & below) == 0) own_smem[expert] += __popc(mine);
    __syncwarp();
  }
  __syncthreads();
  for (int expert = threadIdx.x; expert < p.experts; expert += kListThreads) {
    int count = 0;
    for (int i = 0; i < warps; ++i) count += place_smem[i * p.experts + expert];
    count_smem[expert] = count;
  }
  __syncthreads();
  if (warp == 0) make_groups(p, count_smem, begin_smem);
  __syncthreads();
  for (int expert = threadIdx.x; expert < p.experts; expert += kListThreads) {
    int place = begin_smem[expert];
    for (int i = 0; i < warps; ++i) {
      int& own = place_smem[i * p.experts + expert];
      const int count = own;
      own = place;
      place += count;
    }
  }
  __syncthreads();
  for (int i = first; i < last; i += kWarp) {
    const int expert = expert_of(i + lane);
    const unsigned mine = lanes_of(expert);
    const int place = mine ? own_smem[expert] : 0;
    __syncwarp();  // the lanes of an expert know its place before one moves it on
    if (mine) {
      const int own = place + __popc(mine & below);
      p.order[own] = i + lane;
      p.rows[own] = (i + lane) / p.top_k;
      if ((mine & below) == 0) own_smem[expert] = place + __popc(mine);
    }
    __syncwarp();
  }
}

}  // namespace dflash
