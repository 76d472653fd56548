// Which token a row of logits becomes, in two parts: what a CTA finds in a chunk of the row, and what the chunks of a
// row give together. graph/ops/sampling.py defines it. T is float, or unsigned short for the bits of a bfloat16.
//
//   choice = the largest logit where temperature <= 0, else the largest of (logit - largest) / temperature + noise
//            among the tokens that top-k, top-p and min-p keep; the first of equals
//
// A chunk has the same tokens whatever address its row begins at. Its best by noise is found relative to its own
// largest logit, and compared with those of other chunks relative to the row's: so a row's choice depends on the row
// alone.
#pragma once

#include "accept_sample.cuh"
#include "best.cuh"

namespace dflash {

constexpr int kScanWarps = kScanThreads / kWarp;
constexpr int kScanLoads = 8;  // of 16 bytes for each thread

static_assert(kWarp % kScanWarps == 0, "one warp reads what every warp of the CTA found");

__device__ __forceinline__ bool is_nan(float x) { return x != x; }

// A slot's settings.
struct Sampling {
  float temperature, top_p, min_p;
  int top_k;

  template <class Params>
  __device__ __forceinline__ Sampling(const Params& p, int slot)
      : temperature(p.temperature[slot]), top_p(p.top_p[slot]), min_p(p.min_p[slot]), top_k(p.top_k[slot]) {}

  __device__ __forceinline__ bool samples() const { return temperature > 0.f; }
  __device__ __forceinline__ bool cuts() const { return top_k > 0 || top_p < 1.f; }
  __device__ __forceinline__ bool filters() const { return cuts() || min_p > 0.f; }
};

// A row of logits, and what its chunks have found: the largest logit and, where the slot filters, the mass; and where
// the largest first stands, or in a slot that samples without a filter the best by noise.
template <class T>
struct Row {
  const T* logits_gmem;          // [vocab]
  const long long* tokens_gmem;  // [vocab], or null: 0, 1, 2, …
  float* found_gmem;             // [chunks, 2]
  int* choice_gmem;              // [chunks]
  int vocab, chunks;

  template <class Params>
  __device__ __forceinline__ Row(const Params& p, const T* logits_gmem, const long long* tokens_gmem, long long row)
      : logits_gmem(logits_gmem + row * p.vocab),
        tokens_gmem(tokens_gmem),
        found_gmem(p.chunk_found + 2 * row * p.chunks),
        choice_gmem(p.chunk_choice + row * p.chunks),
        vocab(p.vocab),
        chunks(p.chunks) {}

  __device__ __forceinline__ unsigned token(int at) const {
    return static_cast<unsigned>(tokens_gmem ? tokens_gmem[at] : at);
  }
};

// The largest of the warps' bests; every warp finds it.
__device__ __forceinline__ Best cta_best(Best best, Best* found_smem) {
  if (static_cast<int>(threadIdx.x) % kWarp == 0) found_smem[threadIdx.x / kWarp] = best;
  __syncthreads();  // every warp's best is there
  return lanes_best(found_smem[static_cast<int>(threadIdx.x) % kWarp % kScanWarps]);
}

// Elements [begin, end) of a row, in vectors from the last multiple of 16 bytes at or before them. What is not theirs
// is NaN, which is neither the largest, nor equal to it, nor has a score or mass.
template <class T>
struct Chunk {
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kElements = kVector * (kScanLoads * kScanThreads - 1);  // wherever the row begins

  int begin, end, first;
  uint4 loaded[kScanLoads];

  __device__ __forceinline__ Chunk(const Row<T>& row, int index)
      : begin(index * kElements), end(min(row.vocab, (index + 1) * kElements)) {
    const int lead = static_cast<int>(reinterpret_cast<size_t>(row.logits_gmem) / sizeof(T) % kVector);
    first = begin - lead + kVector * static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kScanLoads; ++i) loaded[i] = load(row.logits_gmem, at(i));
  }

  __device__ __forceinline__ int at(int i) const { return first + i * kVector * kScanThreads; }

  __device__ __forceinline__ uint4 load(const T* row_gmem, int from) const {
    if (from >= begin && from + kVector <= end) return *reinterpret_cast<const uint4*>(row_gmem + from);
    constexpr unsigned none = sizeof(T) == 2 ? 0x7fff7fffu : 0x7fffffffu;
    unsigned words[4] = {none, none, none, none};
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (from + j < begin || from + j >= end) continue;
      if constexpr (sizeof(T) == 2) {
        const unsigned bits = static_cast<unsigned>(row_gmem[from + j]);
        words[j / 2] = j % 2 ? (words[j / 2] & 0xffffu) | bits << 16 : (words[j / 2] & 0xffff0000u) | bits;
      } else {
        words[j] = __float_as_uint(row_gmem[from + j]);
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  __device__ __forceinline__ float logit(int i, int j) const {
    const unsigned words[4] = {loaded[i].x, loaded[i].y, loaded[i].z, loaded[i].w};
    if constexpr (sizeof(T) == 4) return __uint_as_float(words[j]);
    const unsigned word = words[j / 2 % 4];
    return __uint_as_float(j % 2 ? word & 0xffff0000u : word << 16);
  }

  // The largest that this warp has. A NaN of the chunk makes it infinite.
  __device__ __forceinline__ Best largest() const {
    bool bad = false;
    float most = -kInfinity;
#pragma unroll
    for (int i = 0; i < kScanLoads; ++i) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        most = fmaxf(most, logit(i, j));
        bad = bad || (is_nan(logit(i, j)) && at(i) + j >= begin && at(i) + j < end);
      }
    }
    most = lanes_max(most);
    int index = end - 1;
    // From back to front, so that the first of equals is what remains.
#pragma unroll
    for (int i = kScanLoads - 1; i >= 0; --i) {
#pragma unroll
      for (int j = kVector - 1; j >= 0; --j) index = logit(i, j) == most ? at(i) + j : index;
    }
    return lanes_best({bad ? kInfinity : most, index});
  }

  // The best by score and noise that this warp has. Logits are read again, from the cache: unrolled over what is
  // loaded, noise would be a long piece of code.
  __device__ Best noisiest(const Row<T>& row, Best most, float temperature, const Noise& noise) const {
    Best best = {-kInfinity, most.index};
    const float bound = score_bound(most.value, temperature, kHopeless);
    for (int at = begin + static_cast<int>(threadIdx.x); at < end; at += kScanThreads) {
      const float logit = widened(row.logits_gmem[at]);
      if (!(logit > bound)) continue;
      const float x = score_of(logit, most.value, temperature);
      if (x > kHopeless) best = better(best, {x + noise(row.token(at)), at});
    }
    return lanes_best(best);
  }

  // The mass that this thread has; likewise.
  __device__ float mass(const Row<T>& row, const Masses& masses) const {
    float sum = 0.f;
    for (int at = begin + static_cast<int>(threadIdx.x); at < end; at += kScanThreads) {
      sum += masses.of(widened(row.logits_gmem[at]));
    }
    return sum;
  }
};

// What a CTA of the scan does: chunk blockIdx.x of the row, whose token stands at `position`.
template <class T>
__device__ void scan_chunk(const Row<T>& row, const Sampling& sampling, const long long* key_gmem, long long position) {
  __shared__ Best largest_smem[kScanWarps], noisiest_smem[kScanWarps];
  __shared__ float mass_smem[kScanWarps];
  const Chunk<T> chunk(row, static_cast<int>(blockIdx.x));
  const Best most = cta_best(chunk.largest(), largest_smem);
  Best best = most;
  float mass = 0.f;
  if (sampling.samples() && sampling.filters()) {
    mass = lanes_sum(chunk.mass(row, Masses(most.value, sampling.temperature)));
    if (threadIdx.x % kWarp == 0) mass_smem[threadIdx.x / kWarp] = mass;
    __syncthreads();  // every warp's mass is there
    mass = 0.f;
    for (int warp = 0; warp < kScanWarps; ++warp) mass += mass_smem[warp];
  } else if (sampling.samples()) {
    const Noise noise(key_gmem, position);
    best = cta_best(chunk.noisiest(row, most, sampling.temperature, noise), noisiest_smem);
  }
  if (threadIdx.x > 0) return;
  row.found_gmem[2 * blockIdx.x] = most.value;
  row.found_gmem[2 * blockIdx.x + 1] = mass;
  row.choice_gmem[blockIdx.x] = best.index;
}

// What the CTA of a row does: merge its chunks, and filter where the slot does. Where no logit is the largest number,
// or one is NaN, the choice is any, and comes back as ~choice.
template <class T>
__device__ int choose(const Row<T>& row, const Sampling& sampling, const long long* key_gmem, long long position,
                      Shared* smem) {
  // Every warp merges the chunks for itself: they are few, and no barrier is needed.
  Best most = {-kInfinity, row.vocab};
  for (int chunk = lane_of_thread(); chunk < row.chunks; chunk += kWarp) {
    most = better(most, {row.found_gmem[2 * chunk], row.choice_gmem[chunk]});
  }
  most = lanes_best(most);
  if (!(fabsf(most.value) < kInfinity)) return ~most.index;
  if (!sampling.samples()) return most.index;
  const Noise noise(key_gmem, position);
  if (sampling.filters()) return choose_filtered<T>(row, sampling, most.value, noise, smem);
  Best best = {-kInfinity, most.index};
  for (int chunk = lane_of_thread(); chunk < row.chunks; chunk += kWarp) {
    const int at = row.choice_gmem[chunk];
    const float x = score_of(widened(row.logits_gmem[at]), most.value, sampling.temperature);
    best = better(best, {x + noise(row.token(at)), at});
  }
  return lanes_best(best).index;
}

}  // namespace dflash
