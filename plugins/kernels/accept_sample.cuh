// The tokens of a row that top-k, top-p and min-p keep, found by a CTA of kChooseThreads without a sort, and the best
// of them by noise, as trtllm_dflash/graph/ops/sampling.py defines them.
//
//   score x = (logit - largest) / temperature, mass exp(x)
//   cut: the score above which tokens are kept is bisected in [-104, 0] by at most 32 halvings: the lowest above which
//   tokens weigh less than the limit (top-k: their number, and k; top-p: their mass, and top_p of all that top-k kept)
//   min-p: a score of log(min_p) or more is kept
//
// The scan has left the mass of each chunk of the row, relative to that of its likeliest token. So the whole is known.
// A single pass lists what may be kept.
//
// Each warp owns a contiguous range of the vocabulary, and its lanes neighbours in it. Every sum is taken in one fixed
// order: the same inputs give the same token on every run.
#pragma once

#include "accept_params.h"
#include "best.cuh"
#include "device.cuh"
#include "gumbel.cuh"

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

// A logit that is not greater than this has no score above `above`, so that most tokens need no division. The margin is
// more than all the roundings here and in score_of: under 4e-7 of either term or, among denormals, 1e-44.
__device__ __forceinline__ float score_bound(float max, float temperature, float above) {
  const float wide = above * temperature;
  return max + wide - (1e-6f * (fabsf(max) + fabsf(wide)) + 1e-37f);
}

__device__ __forceinline__ float widened(float logit) { return logit; }
__device__ __forceinline__ float widened(unsigned short logit) {
  return __uint_as_float(static_cast<unsigned>(logit) << 16);
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
  Best best[kChooseWarps];
  float scores[kListed];
  int ids[kListed];
};

// The tokens of a row that can still be chosen, in vocabulary order: the whole row, or those listed in shared memory.
template <class T>
struct Tokens {
  Shared* smem;
  const T* logits_gmem;  // [V]
  float max;
  float temperature;
  int size;
  bool listed;
  int passes;  // so far; its parity says which half of smem->found is whose

  __device__ __forceinline__ float load(int i) const { return listed ? smem->scores[i] : widened(logits_gmem[i]); }
  __device__ __forceinline__ int place(int i) const { return listed ? smem->ids[i] : i; }
  __device__ __forceinline__ float score(float loaded) const {
    return listed ? loaded : score_of(loaded, max, temperature);
  }
  // What is loaded and not greater than this has no score above `above`.
  __device__ __forceinline__ float bound(float above) const {
    return listed ? above : score_bound(max, temperature, above);
  }
};

__device__ __forceinline__ int lanes_count(int x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// What a lane has of a group of tokens that begins at `group` for it; -infinity from `last` on.
template <class T>
__device__ __forceinline__ void load_group(const Tokens<T>& tokens, int group, int last, float (&loaded)[kInFlight]) {
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    loaded[i] = group + i * kWarp < last ? tokens.load(group + i * kWarp) : -kInfinity;
  }
}

// The weight of the tokens whose score is greater than `above`; every thread gets it.
template <bool kMass, class T>
__device__ Weight weigh(Tokens<T>& tokens, float above) {
  const int share = (tokens.size + kChooseWarps - 1) / kChooseWarps;
  const int first = min(tokens.size, share * warp_of_thread());
  const int last = min(tokens.size, first + share);
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
  const Weight of_lane = found[lane_of_thread()];
  return {kMass ? lanes_sum(of_lane.mass) : 0.f, lanes_sum(of_lane.count)};
}

// List the tokens of the row whose score is greater than `above`, in order, as far as the list has room; return the
// weight of all of them. One pass, a step of kListStep tokens after the other: the warps' counts say where each writes.
template <class T>
__device__ Weight list_above(Tokens<T>& tokens, float above) {
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
template <bool kMass, class T>
__device__ float cut(Tokens<T>& tokens, float limit) {
  float low = kFloor, high = 0.f;
  float above_low = static_cast<float>(tokens.size), above_high = 0.f;  // at most, until they are counted
  // With a single token left between low and high, what is kept no longer changes: below that token the weight is that
  // above low and has that answer; from it on, that above high and has that answer.
  for (int i = 0; i < kBisections && above_low - above_high > 1.f; ++i) {
    const float middle = (low + high) * 0.5f;
    const Weight weight = weigh<kMass>(tokens, middle);
    const bool few = (kMass ? weight.mass : weight.count) < limit;
    (few ? high : low) = middle;
    (few ? above_high : above_low) = weight.count;
  }
  return low;
}

// A score that some three quarters of kListed tokens exceed, judged by every n-th token of the row.
template <class T>
__device__ float likely(Tokens<T>& tokens) {
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

// The mass of a row from those of its chunks; every warp finds it for itself.
__device__ inline float total_mass(const float* found_gmem, int chunks, float max, float temperature) {
  float mass = 0.f;
  for (int chunk = lane_of_thread(); chunk < chunks; chunk += kWarp) {
    const float x = score_of(found_gmem[2 * chunk], max, temperature);
    if (x > kFloor) mass += found_gmem[2 * chunk + 1] * expf(x);
  }
  return lanes_sum(mass);
}

// The score above which top-k (0: off) and then top-p (1: off) keep tokens; one of them is on. `total`: of the row.
template <class T>
__device__ float cut_off(Tokens<T>& tokens, float total, float top_k, float top_p) {
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
    total = weigh<true>(tokens, floor).mass;
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

// Where the best by noise of the tokens scored above `floor` stands.
template <class T, class AnyRow>
__device__ int draw(const Tokens<T>& tokens, float floor, const AnyRow& row, const Noise& noise) {
  floor = fmaxf(floor, kHopeless);
  const float bound = tokens.bound(floor);
  Best best = {-kInfinity, row.vocab - 1};
  for (int first = kInFlight * kWarp * warp_of_thread() + lane_of_thread(); first < tokens.size; first += kListStep) {
    float loaded[kInFlight];
    load_group(tokens, first, tokens.size, loaded);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (!(loaded[i] > bound)) continue;
      const float x = tokens.score(loaded[i]);
      const int place = tokens.place(first + i * kWarp);
      if (x > floor) best = better(best, {x + noise(row.token(place)), place});
    }
  }
  best = lanes_best(best);
  if (lane_of_thread() == 0) tokens.smem->best[warp_of_thread()] = best;
  __syncthreads();  // every warp's best is there
  return lanes_best(tokens.smem->best[lane_of_thread()]).index;
}

// Where the choice of a row stands whose slot filters; `max` is its largest logit.
template <class T, class AnyRow, class Settings>
__device__ int choose_filtered(const AnyRow& row, const Settings& sampling, float max, const Noise& noise,
                               Shared* smem) {
  const float temperature = sampling.temperature;
  Tokens<T> tokens = {smem, row.logits_gmem, max, temperature, row.vocab, false, 0};
  float floor = min_p_floor(sampling.min_p);
  if (sampling.cuts()) {
    const float total = total_mass(row.found_gmem, row.chunks, max, temperature);
    floor = fmaxf(floor, cut_off(tokens, total, static_cast<float>(sampling.top_k), sampling.top_p));
  }
  return draw(tokens, floor, row, noise);
}

}  // namespace dflash
