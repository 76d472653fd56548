// The noise of a token at a position of a slot, as trtllm_dflash/graph/ops/noise.py defines it: bit for bit the same
// up to its logarithms.
#pragma once

#include "device.cuh"

namespace dflash {

constexpr unsigned kPrime = 0x7fffffffu;  // 2^31 - 1
constexpr int kKeyWords = 4;
constexpr float kNoiseScale = 0x1.fffffep-32f;  // 2^-31 (1 - 2^-24)
// Noise lies within (-2.9, 22.2): a token whose score is this far below another's has no chance beside it.
constexpr float kHopeless = -25.25f;

// x mod kPrime of x < 2^62: the upper bits count as much as the lower ones, since 2^31 mod kPrime is 1.
__device__ __forceinline__ unsigned remainder_of(unsigned long long x) {
  const unsigned sum = static_cast<unsigned>(x & kPrime) + static_cast<unsigned>(x >> 31);
  return sum >= kPrime ? sum - kPrime : sum;
}

__device__ __forceinline__ unsigned times(unsigned a, unsigned b) {
  return remainder_of(static_cast<unsigned long long>(a) * b);
}

// A round of mixing x < kPrime.
__device__ __forceinline__ unsigned mixed(unsigned x, int round) {
  const unsigned constant = round == 0 ? 1779033703u : round == 1 ? 1150833019u : 1013904242u;
  x = remainder_of(static_cast<unsigned long long>(x) + constant);
  const unsigned square = times(x, x);
  return times(times(square, square), x);
}

// The noise of all tokens at a position.
struct Noise {
  unsigned lanes[kKeyWords];

  __device__ __forceinline__ Noise(const long long* key_gmem, long long position) {
#pragma unroll
    for (int i = 0; i < kKeyWords; ++i) {
      lanes[i] = remainder_of(static_cast<unsigned long long>(key_gmem[i] + position));
#pragma unroll
      for (int round = 0; round < kKeyWords - 1; ++round) lanes[i] = mixed(lanes[i], round);
    }
  }

  // Whole numbers in [0, kPrime).
  __device__ __forceinline__ unsigned bits(unsigned token) const {
    unsigned long long sum = lanes[kKeyWords - 1];
#pragma unroll
    for (int i = 0; i < kKeyWords - 1; ++i) {
      token = mixed(token, i);
      sum += static_cast<unsigned long long>(lanes[i]) * (token / 2);  // below 2^61 each
    }
    return remainder_of((sum & kPrime) + (sum >> 31));
  }

  __device__ __forceinline__ float operator()(unsigned token) const {
    const float u = (static_cast<float>(bits(token)) + 0.5f) * kNoiseScale;
    return -logf(u < 0x1p-8f ? u * (u * 0.5f + 1.f) : -logf(1.f - u));
  }
};

}  // namespace dflash
