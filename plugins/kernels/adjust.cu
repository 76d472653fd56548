// DFlashAdjust: the logits of slots that ask for penalties, biases, bad words or a mask. The meaning stands in
// graph/ops/adjust.py, shapes in adjust_params.h. Three launches:
//   dflash_adjust_count  grid (B), 1024 threads: writes the step's tokens into the history; where the slot has
//                        penalties, counts the tokens of its text in a table over the vocabulary
//   dflash_adjust_rows   grid (chunks, B·R), 256 threads: a row with penalties by the table, and the mask
//   dflash_adjust_few    grid (B·R), 256 threads: the row's few tokens that have more than that: a bias, or a place
//                        among the drafts before the row; then the bad words
// A CTA of a slot that asks for nothing ends at once, and its part of `adjusted` stays as it is: DFlashAccept reads the
// logits there. What a token becomes is one function of its logit, so it does not matter who computes it, nor whether
// two threads write the same.
#include "adjust_params.h"
#include "device.cuh"

namespace dflash {

constexpr int kFewWarps = kFewThreads / kWarp;

// What is known of one row's penalties.
struct Penalties {
  bool any;
  float repetition, frequency, presence;

  __device__ __forceinline__ Penalties(const AdjustParams& p, int slot)
      : any(p.adjusts[slot] & kPenalties),
        repetition(p.repetition_penalty[slot]),
        frequency(p.frequency_penalty[slot]),
        presence(p.presence_penalty[slot]) {}

  // `count` of the table, and how often the token stands among the drafts before the row. Each operation is rounded,
  // as in the body: no product is added unrounded.
  __device__ __forceinline__ float of(float x, int count, int drafts) const {
    const int in_answer = (count & ~kInPrompt) + drafts;
    if (!any || (count == 0 && drafts == 0)) return x;
    x = x > 0.f ? __fdiv_rn(x, repetition) : __fmul_rn(x, repetition);
    x = __fsub_rn(x, __fmul_rn(frequency, static_cast<float>(in_answer)));
    return __fsub_rn(x, __fmul_rn(presence, in_answer > 0 ? 1.f : 0.f));
  }
};

__device__ __forceinline__ bool is_allowed(const AdjustParams& p, long long row, int token) {
  return static_cast<unsigned>(p.token_mask[row * p.mask_words + token / 32]) >> token % 32 & 1;
}

// The token at a position of the text that row `row` of a slot may see; -2 where none stands.
__device__ __forceinline__ long long token_at(const AdjustParams& p, int slot, int position) {
  const int past = p.past_len[slot];
  if (position < 0 || position - past >= p.width) return -2;
  if (position >= past) return p.input_ids[1LL * slot * p.width + position - past];
  return position < p.length ? static_cast<long long>(p.history[1LL * slot * p.length + position]) : -2;
}

}  // namespace dflash

extern "C" __global__ void __launch_bounds__(dflash::kCountThreads)
    dflash_adjust_count(const __grid_constant__ dflash::AdjustParams p) {
  using namespace dflash;
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = static_cast<int>(blockIdx.x);
  const int past = p.past_len[slot];
  float* const history_gmem = p.history + 1LL * slot * p.length;
  const long long* const ids_gmem = p.input_ids + 1LL * slot * p.width;
  for (int i = thread; i < p.width; i += kCountThreads) {
    // A length that cannot be right writes nothing else's memory.
    if (past >= 0 && past < p.length - i) history_gmem[past + i] = static_cast<float>(ids_gmem[i]);
  }
  if (!(p.adjusts[slot] & kPenalties)) return;
  int* const counts_gmem = p.counts + 1LL * slot * p.vocab;
  for (int i = thread; i < p.vocab; i += kCountThreads) counts_gmem[i] = 0;
  __syncthreads();  // the table is empty, and the whole text there
  const int prompt = p.prompt_len[slot];
  const int end = min(past + min(p.num_known[slot], p.width), p.length);
  for (int i = thread; i < end; i += kCountThreads) {
    const int token = static_cast<int>(history_gmem[i]);
    if (static_cast<unsigned>(token) >= static_cast<unsigned>(p.vocab)) continue;
    if (i < prompt) {
      atomicOr(counts_gmem + token, kInPrompt);
    } else {
      atomicAdd(counts_gmem + token, 1);
    }
  }
}

extern "C" __global__ void __launch_bounds__(dflash::kRowThreads)
    dflash_adjust_rows(const __grid_constant__ dflash::AdjustParams p) {
  using namespace dflash;
  const long long row = blockIdx.y;
  const int slot = static_cast<int>(blockIdx.y) / p.rows;
  const int adjusts = p.adjusts[slot];
  if (adjusts == 0) return;
  const Penalties penalties(p, slot);
  const int begin = static_cast<int>(blockIdx.x) * kRowElements;
  const int end = min(p.vocab, begin + kRowElements);
  const int* const counts_gmem = p.counts + 1LL * slot * p.vocab;
  for (int token = begin + static_cast<int>(threadIdx.x); token < end; token += kRowThreads) {
    float x = p.logits[row * p.vocab + token];
    if (penalties.any) x = penalties.of(x, counts_gmem[token], 0);
    if (adjusts & kMask && !is_allowed(p, row, token)) x = -kInfinity;
    p.adjusted[row * p.vocab + token] = x;
  }
}

extern "C" __global__ void __launch_bounds__(dflash::kFewThreads)
    dflash_adjust_few(const __grid_constant__ dflash::AdjustParams p) {
  using namespace dflash;
  const int thread = static_cast<int>(threadIdx.x);
  const long long row = blockIdx.x;
  const int slot = static_cast<int>(blockIdx.x) / p.rows;
  const int adjusts = p.adjusts[slot];
  if (adjusts == 0) return;
  const Penalties penalties(p, slot);
  const int known = p.num_known[slot];
  const long long* const path_gmem = p.input_ids + 1LL * slot * p.width + known;  // drafts before the row
  const int drafts = max(0, min(static_cast<int>(row) % p.rows, p.width - known));
  const int* const ids_gmem = p.bias_ids + 1LL * slot * p.biases;
  const float* const values_gmem = p.bias_values + 1LL * slot * p.biases;
  const int* const counts_gmem = p.counts + 1LL * slot * p.vocab;
  const auto adjust = [&](int token, float bias) {
    float x = __fadd_rn(p.logits[row * p.vocab + token], bias);
    if (penalties.any) {
      int along = 0;
      for (int i = 0; i < drafts; ++i) along += path_gmem[i] == token;
      x = penalties.of(x, counts_gmem[token], along);
    }
    if (adjusts & kMask && !is_allowed(p, row, token)) x = -kInfinity;
    p.adjusted[row * p.vocab + token] = x;
  };
  const int num_biases = adjusts & kBiases ? p.biases : 0;
  for (int i = thread; i < num_biases; i += kFewThreads) {
    const int token = ids_gmem[i];
    // Entries that repeat the first are left to it.
    const bool is_own =
        static_cast<unsigned>(token) < static_cast<unsigned>(p.vocab) && (i == 0 || token != ids_gmem[0]);
    if (is_own) adjust(token, values_gmem[i]);
  }
  // A warp for each draft: its lanes look for the draft's bias.
  for (int i = thread / kWarp; penalties.any && i < drafts; i += kFewWarps) {
    const long long token = path_gmem[i];
    if (token < 0 || token >= p.vocab) continue;
    int place = num_biases;
    for (int k = thread % kWarp; k < num_biases; k += kWarp) place = ids_gmem[k] == token ? min(place, k) : place;
    for (int step = kWarp / 2; step > 0; step /= 2) place = min(place, __shfl_xor_sync(kAllLanes, place, step));
    if (thread % kWarp == 0) adjust(static_cast<int>(token), place < num_biases ? values_gmem[place] : 0.f);
  }
  if (!(adjusts & kBadWords)) return;
  __syncthreads();  // no logit is written any more that a word forbids
  const int position = p.past_len[slot] + known + static_cast<int>(row) % p.rows;
  for (int w = thread; w < p.words; w += kFewThreads) {
    const int* const word_gmem = p.bad_words + (1LL * slot * p.words + w) * p.word_tokens;
    const int last = word_gmem[p.word_tokens - 1];
    bool fits = static_cast<unsigned>(last) < static_cast<unsigned>(p.vocab);
    for (int back = 1; fits && back < p.word_tokens; ++back) {
      const int token = word_gmem[p.word_tokens - 1 - back];
      if (token < 0) break;
      fits = token_at(p, slot, position - back) == token;
    }
    if (fits) p.adjusted[row * p.vocab + last] = -kInfinity;
  }
}
