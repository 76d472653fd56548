// FP8 (E4M3) codes of bfloat16 numbers, and as float16. What CUDA's header offers, the emulator offers under the same
// names.
//
// From sm_89 on the machine converts; before that CUDA's header does it in software, rightly and slowly.
#pragma once

#include "device.cuh"
#ifndef DFLASH_EMULATOR
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#endif

namespace dflash {

using fp8 = __nv_fp8_storage_t;  // a code, one byte

// Two bf16 of a register, the first from the low half.
__device__ __forceinline__ float2 unpack(unsigned bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// Eight numbers / scale as the nearest FP8 codes (E4M3, ties to even, 448 where it is exceeded). The division is exact
// to the last bit: whoever else divides so gets the same codes.
__device__ __forceinline__ uint2 narrow(uint4 numbers, float scale) {
  const unsigned pairs[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
  unsigned codes[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 low = unpack(pairs[2 * i]), high = unpack(pairs[2 * i + 1]);
    codes[i] = __nv_fp8x4_e4m3(make_float4(low.x / scale, low.y / scale, high.x / scale, high.y / scale)).__x;
  }
  return make_uint2(codes[0], codes[1]);
}

// Two FP8 codes, in the low half of `codes`, as two float16 of a register: each is exact.
__device__ __forceinline__ unsigned widen(unsigned codes) {
  union {
    __half2_raw pair;
    unsigned bits;
  } wide = {__nv_cvt_fp8x2_to_halfraw2(static_cast<unsigned short>(codes), __NV_E4M3)};
  return wide.bits;
}

// Two floats as one register of two float16, the first in the low half.
__device__ __forceinline__ unsigned pack_half(float low, float high) {
  union {
    __half2 pair;
    unsigned bits;
  } packed = {__floats2half2_rn(low, high)};
  return packed.bits;
}

// Two bfloat16 of a register as float16: finite ones beyond its range become its largest, those below 2^-14 lose bits.
__device__ __forceinline__ float within_half(float x) {
  constexpr float kLargest = 65504.f;
  return fabsf(x) > kLargest && fabsf(x) < kInfinity ? copysignf(kLargest, x) : x;
}
__device__ __forceinline__ unsigned to_half(unsigned pair) {
  const float2 numbers = unpack(pair);
  return pack_half(within_half(numbers.x), within_half(numbers.y));
}

}  // namespace dflash
