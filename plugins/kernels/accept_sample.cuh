// Sampling from a row of logits, by a CTA of kChooseThreads: top-k and top-p without a sort, and the inverse of the
// distribution in vocabulary order, as trtllm_dflash/graph/ops/sampling.py defines them.
//
//   score x = (logit - largest) / temperature, mass exp(x)
//   cut: the score above which tokens are kept is bisected in [-104, 0] by at most 32 halvings: the lowest above which
//   tokens weigh less than the limit (top-k: their number, and k; top-p: their mass, and top_p of all that top-k kept)
//   min-p: a score of log(min_p) or more is kept
//   draw: the first kept token at which the sum of masses in vocabulary order exceeds u of the whole
//
// The scan has left the mass of each chunk of the row, relative to that of its likeliest token. So the whole is known,
// and without a filter the chunk that holds the token. With one, a single pass lists what may be kept, in order.
//
// Each warp owns a contiguous range of the vocabulary, and its lanes neighbours in it. Every sum is taken in one fixed
// order: the same inputs give the same token on every run.
#pragma once

#include "accept_params.h"
#include "device.cuh"

namespace dflash {

constexpr float kFloor = -104.f;  // exp(-104) is 0 in float32: nothing at or below it can be chosen
constexpr int kBisections = 32;
constexpr int kInFlight = 8;   // loads of a lane in flight in a pass over a row
constexpr int kListed = 4096;  // tokens that shared memory holds
constexpr int kChooseWarps = kChooseThreads / kWarp;
constexpr int kListStep = kInFlight * kChooseThreads;  // tokens that the CTA looks at between two barriers

static_assert(kChooseWarps == kWarp, "one warp reads what every warp of the CTA found");

__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }

// What a sum over tokens gives.
struct Weight {
  float mass;   // the sum of exp(score)
  float count;  // exact up to 2^24
};

__device__ __forceinline__ float score_of(float logit, float max, float temperature) {
  return (logit - max) / temperature;
}

// exp(score) without a division, for every token of a row: its error is that of a score off by 5 roundings. The inverse
// of a temperature near the least float would be infinite: both sides of the division are scaled there.
struct Masses {
  float max, scale, inverse;

  __device__ __forceinline__ Masses(float max, float temperature) : max(max) {
    scale = temperature < 1e-30f ? 0x1p64f : 1.f;
    inverse = 1.44269504f / (temperature * scale);  // log2(e)
  }
  // What is NaN has none, nor what is below 2^-200 of the largest.
  __device__ __forceinline__ float of(float logit) const {
    return exp2f(fmaxf((logit - max) * scale * inverse, -200.f));
  }
};

// What a CTA of choose shares. `found` has an entry for each warp, twice: a pass may write one half while slower warps
// still read what the pass before left in the other, so that one barrier a pass is enough.
struct Shared {
  Weight found[2][kChooseWarps];
  int counts[2][kChooseWarps];  // likewise, of the tokens that each warp adds to the list
  float scores[kListed];
  int ids[kListed];
};

// The tokens of a row that can still be chosen, in vocabulary order: the whole row, or those listed in shared memory.
struct Tokens {
  Shared* smem;
  const float* logits_gmem;  // [V]
  float max;
  float temperature;
  int size;
  bool listed;
  int passes;  // so far; its parity says which half of smem->found is whose

  __device__ __forceinline__ float load(int i) const { return listed ? smem->scores[i] : logits_gmem[i]; }
  __device__ __forceinline__ float score(float loaded) const {
    return listed ? loaded : score_of(loaded, max, temperature);
  }
  // What is loaded and not greater than this has no score above `above`, so that most tokens need no division. The
  // margin is more than all the roundings here and in score(): under 4e-7 of either term or, among denormals, 1e-44.
  __device__ __forceinline__ float bound(float above) const {
    const float wide = above * temperature;
    return listed ? above : max + wide - (1e-6f * (fabsf(max) + fabsf(wide)) + 1e-37f);
  }
};

__device__ __forceinline__ int lanes_count(int x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// What a lane has of a group of tokens that begins at `group` for it; -infinity from `last` on.
__device__ __forceinline__ void load_group(const Tokens& tokens, int group, int last, float (&loaded)[kInFlight]) {
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    loaded[i] = group + i * kWarp < last ? tokens.load(group + i * kWarp) : -kInfinity;
  }
}

// The weight of tokens [begin, end) whose score is greater than `above`, each warp's share by itself; [kChooseWarps].
template <bool kMass>
__device__ const Weight* weigh(Tokens& tokens, int begin, int end, float above) {
  const int share = (end - begin + kChooseWarps - 1) / kChooseWarps;
  const int first = min(end, begin + share * warp_of_thread());
  const int last = min(end, first + share);
  const float bound = tokens.bound(above);
  Weight weight = {0.f, 0.f};
  for (int group = first + lane_of_thread(); group < last; group += kInFlight * kWarp) {
    float loaded[kInFlight];
    load_group(tokens, group, last, loaded);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (!(loaded[i] > bound)) continue;
      const float x = tokens.score(loaded[i]);
      if (!(x > above)) continue;
      if (kMass) weight.mass += expf(x);
      weight.count += 1.f;
    }
  }
  weight = {kMass ? lanes_sum(weight.mass) : 0.f, lanes_sum(weight.count)};
  Weight* found = tokens.smem->found[tokens.passes++ % 2];
  if (lane_of_thread() == 0) found[warp_of_thread()] = weight;
  __syncthreads();  // every warp's share is there
  return found;
}

// The same over all tokens and warps; every thread gets it.
template <bool kMass>
__device__ Weight weigh_all(Tokens& tokens, float above) {
  const Weight share = weigh<kMass>(tokens, 0, tokens.size, above)[lane_of_thread()];
  return {kMass ? lanes_sum(share.mass) : 0.f, lanes_sum(share.count)};
}

// List the tokens of the row whose score is greater than `above`, in order, as far as the list has room; return the
// weight of all of them. One pass, a step of kListStep tokens after the other: the warps' counts say where each writes.
__device__ Weight list_above(Tokens& tokens, float above) {
  const int warp_first = kInFlight * kWarp * warp_of_thread() + lane_of_thread();
  const float bound = tokens.bound(above);
  float mass = 0.f;
  int listed = 0;
  float loaded[kInFlight];
  load_group(tokens, warp_first, tokens.size, loaded);
  for (int first = 0, step = 0; first < tokens.size; first += kListStep, ++step) {
    float scores[kInFlight];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      scores[i] = loaded[i] > bound ? tokens.score(loaded[i]) : -kInfinity;
      if (scores[i] > above) mass += expf(scores[i]);
      count += __popc(__ballot_sync(kAllLanes, scores[i] > above));
    }
    load_group(tokens, first + kListStep + warp_first, tokens.size, loaded);  // on their way while the warps meet
    int* counts = tokens.smem->counts[step % 2];
    if (lane_of_thread() == 0) counts[warp_of_thread()] = count;
    __syncthreads();  // every warp's count is there
    const int of_lane = counts[lane_of_thread()];
    int at = listed + lanes_count(lane_of_thread() < warp_of_thread() ? of_lane : 0);
    listed += lanes_count(of_lane);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const unsigned kept = __ballot_sync(kAllLanes, scores[i] > above);
      const int to = at + __popc(kept & ((1u << lane_of_thread()) - 1));
      if (scores[i] > above && to < kListed) {
        tokens.smem->scores[to] = scores[i];
        tokens.smem->ids[to] = first + warp_first + i * kWarp;
      }
      at += __popc(kept);
    }
  }
  mass = lanes_sum(mass);
  Weight* found = tokens.smem->found[tokens.passes++ % 2];
  if (lane_of_thread() == 0) found[warp_of_thread()] = {mass, 0.f};
  __syncthreads();  // every warp's share is there, and the whole list
  return {lanes_sum(found[lane_of_thread()].mass), static_cast<float>(listed)};
}

// The score above which tokens are kept, bisected as the body does it: just below the lowest token that has less than
// `limit` of weight above it. Weight is mass or number.
template <bool kMass>
__device__ float cut(Tokens& tokens, float limit) {
  float low = kFloor, high = 0.f;
  float above_low = static_cast<float>(tokens.size), above_high = 0.f;  // at most, until they are counted
  // With a single token left between low and high, what is kept no longer changes: below that token the weight is that
  // above low and has that answer; from it on, that above high and has that answer.
  for (int i = 0; i < kBisections && above_low - above_high > 1.f; ++i) {
    const float middle = (low + high) * 0.5f;
    const Weight weight = weigh_all<kMass>(tokens, middle);
    const bool few = (kMass ? weight.mass : weight.count) < limit;
    (few ? high : low) = middle;
    (few ? above_high : above_low) = weight.count;
  }
  return low;
}

// A score that some three quarters of kListed tokens exceed, judged by every n-th token of the row.
__device__ float likely(Tokens& tokens) {
  if (tokens.size <= kListed) return kFloor;
  const int size = tokens.size;
  for (int i = static_cast<int>(threadIdx.x); i < kListed; i += kChooseThreads) {
    tokens.smem->scores[i] = tokens.score(tokens.load(static_cast<int>(1LL * i * size / kListed)));
  }
  __syncthreads();  // the whole sample is there
  tokens.listed = true;
  tokens.size = kListed;
  const float found = cut<false>(tokens, 0.75f * kListed * kListed / static_cast<float>(size));
  tokens.listed = false;
  tokens.size = size;
  return found;
}

// What the scan has found of a row.
struct Chunks {
  const float* found_gmem;  // [count, 2]: the largest logit, and the mass relative to that of its token
  int count;
};

// A range of tokens, the mass in front of it, and what the sum of masses has to exceed; below 0 that is not known.
struct Range {
  int begin, end;
  float before, target;
};

// The first chunk of the row at which the sum of masses exceeds `target` or, where none lets it, the last that has any
// mass; `total` is the sum up to its end. Every warp finds it for itself.
__device__ Range find_chunk(const Tokens& tokens, const Chunks& chunks, float target, float* total) {
  int chosen = 0;
  float before = 0.f, sum = 0.f;
  for (int first = 0; first < chunks.count && !(sum > target); first += kWarp) {
    const int own = first + lane_of_thread();
    float mass = 0.f;
    if (own < chunks.count) {
      const float x = score_of(chunks.found_gmem[2 * own], tokens.max, tokens.temperature);
      mass = x > kFloor ? chunks.found_gmem[2 * own + 1] * expf(x) : 0.f;
    }
    for (int lane = 0; lane < kWarp && !(sum > target); ++lane) {
      const float share = __shfl_sync(kAllLanes, mass, lane);
      if (!(share > 0.f)) continue;
      chosen = first + lane;
      before = sum;
      sum += share;
    }
  }
  *total = sum;
  return {chosen * kScanElements, min(tokens.size, (chosen + 1) * kScanElements), before, target};
}

// The score above which top-k (0: off) and then top-p (1: off) keep tokens; one of them is on. `total`: of the row.
__device__ float cut_off(Tokens& tokens, float total, float top_k, float top_p) {
  // Passes over a list are much shorter than those over the row, and give the same answers where all that the first cut
  // keeps is in the list: asked about a score that the list does not reach down to, both have the weight. Where it is
  // not (thousands of tokens are to be kept), the passes go over the row.
  const Weight above = list_above(tokens, likely(tokens));
  const bool enough = top_k > 0.f ? above.count >= top_k : above.mass >= top_p * total;
  if (enough && above.count <= kListed) {
    tokens.listed = true;
    tokens.size = static_cast<int>(above.count);
  }

  float floor = kFloor;
  if (top_k > 0.f) {
    floor = cut<false>(tokens, top_k);
    total = weigh_all<true>(tokens, floor).mass;
  }
  // What top-k dropped need not be left out here: where it lies above a middle, what top-k kept is above it too, and
  // that alone has more mass than the limit.
  return top_p < 1.f ? fmaxf(floor, cut<true>(tokens, top_p * total)) : floor;
}

// The score above which min-p (0: off) keeps tokens: just below that of a token of `min_p` times the largest
// probability.
__device__ __forceinline__ float min_p_floor(float min_p) {
  return min_p > 0.f ? nextafterf(logf(fminf(min_p, 1.f)), -kInfinity) : -kInfinity;
}

// The token that the uniform number `u` falls on among those scored above `floor`: the range that holds it is divided
// among the warps, in order, until it is one token wide.
__device__ int draw(Tokens& tokens, float floor, float u, Range range) {
  int begin = range.begin, end = range.end;
  float before = range.before, target = range.target;
  while (end - begin > 1) {
    const Weight* found = weigh<true>(tokens, begin, end, floor);
    if (target < 0.f) {
      float total = 0.f;
      for (int warp = 0; warp < kChooseWarps; ++warp) total += found[warp].mass;
      target = u * total;
    }
    // The first share that exceeds the target or, where rounding lets none, the last that has any mass.
    int chosen = 0;
    float sum = before;
    for (int warp = 0; warp < kChooseWarps && !(sum > target); ++warp) {
      if (!(found[warp].mass > 0.f)) continue;
      chosen = warp;
      before = sum;
      sum += found[warp].mass;
    }
    const int share = (end - begin + kChooseWarps - 1) / kChooseWarps;
    begin += chosen * share;
    end = min(end, begin + share);
  }
  return tokens.listed ? tokens.smem->ids[begin] : begin;
}

}  // namespace dflash
