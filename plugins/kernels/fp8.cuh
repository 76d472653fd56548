// FP8 (E4M3) codes of bfloat16 numbers, and back. What CUDA's header offers, the emulator offers under the same names.
//
// From sm_89 on the machine converts; before that CUDA's header does it in software, rightly and slowly.
#pragma once

#include "device.cuh"
#ifndef DFLASH_EMULATOR
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

// Eight FP8 codes as bfloat16, which holds each exactly.
__device__ __forceinline__ uint4 widen(uint2 codes) {
  __nv_fp8x4_e4m3 low, high;
  low.__x = codes.x;
  high.__x = codes.y;
  const float4 first = static_cast<float4>(low), second = static_cast<float4>(high);
  return make_uint4(pack(first.x, first.y), pack(first.z, first.w), pack(second.x, second.y), pack(second.z, second.w));
}

}  // namespace dflash
