// CUDA's names on the CPU: keywords, vectors, bfloat16, FP8, and functions of one thread. What a warp does together
// stands in emulator.h.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A section of its own, so that the emulator finds these variables and can poison them for each CTA.
#define __shared__ static __attribute__((section("dflash_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Set before a thread goes on; no thread sees another's.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
  if (x != x) return {0x7fff};
  const uint32_t bits = bits_as<uint32_t>(x);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to the nearest, ties to even
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return __floats2bfloat162_rn(__bfloat162float(a.x) * __bfloat162float(b.x),
                               __bfloat162float(a.y) * __bfloat162float(b.y));
}
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {__bfloat162float(x.x), __bfloat162float(x.y)}; }

using __nv_fp8_storage_t = unsigned char;
// E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, and all ones is NaN.
inline __nv_fp8_storage_t e4m3_from_float(float x) {
  const unsigned sign = bits_as<uint32_t>(x) >> 24 & 0x80, nan = 0x7f, largest = 0x7e;
  if (x != x) return static_cast<__nv_fp8_storage_t>(nan);
  const float size = fabsf(x);
  if (size > 448.f) return static_cast<__nv_fp8_storage_t>(sign | largest);  // saturates, infinity too
  const int exponent = size < 0x1p-6f ? -6 : ilogbf(size);
  const auto steps = static_cast<int>(nearbyintf(ldexpf(size, 3 - exponent)));  // to the nearest, ties to even
  return static_cast<__nv_fp8_storage_t>(sign | static_cast<unsigned>((exponent + 6) * 8 + steps));
}
inline float float_from_e4m3(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  if ((code & 0x7f) == 0x7f) return bits_as<float>(0x7fffffffu);
  const float size =
      exponent ? ldexpf(static_cast<float>(8 + mantissa), exponent - 10) : ldexpf(static_cast<float>(mantissa), -9);
  return code & 0x80 ? -size : size;
}
// The nearest float16, ties to even; infinity from 65520 on.
inline uint16_t half_from_float(float x) {
  const auto sign = static_cast<uint16_t>(bits_as<uint32_t>(x) >> 16 & 0x8000);
  const float size = fabsf(x);
  if (x != x) return 0x7fff;
  if (size >= 65520.f) return static_cast<uint16_t>(sign | 0x7c00);
  const int exponent = size < 0x1p-14f ? -14 : ilogbf(size);
  const auto steps = static_cast<int>(nearbyintf(ldexpf(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + steps));
}
inline float float_from_half(unsigned half) {
  const int exponent = static_cast<int>(half >> 10 & 31), mantissa = static_cast<int>(half & 1023);
  if (exponent == 31)
    return bits_as<float>((half & 0x8000) << 16 | 0x7f800000u | static_cast<unsigned>(mantissa) << 13);
  const float size =
      exponent ? ldexpf(static_cast<float>(1024 + mantissa), exponent - 25) : ldexpf(static_cast<float>(mantissa), -24);
  return half & 0x8000 ? -size : size;
}
struct __half_raw {
  uint16_t x;
};
struct alignas(4) __half2 {
  __half_raw x, y;
};
struct alignas(4) __half2_raw {
  uint16_t x, y;
};
inline __half2 __floats2half2_rn(float x, float y) { return {{half_from_float(x)}, {half_from_float(y)}}; }
enum __nv_fp8_interpretation_t { __NV_E4M3 };
inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(uint16_t codes, __nv_fp8_interpretation_t) {
  return {half_from_float(float_from_e4m3(codes & 255)), half_from_float(float_from_e4m3(codes >> 8))};
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned found = 0;
  for (int i = 0; i < 4; ++i) found |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return found;
}
struct __nv_fp8x4_e4m3 {
  uint32_t __x;
  __nv_fp8x4_e4m3() = default;
  explicit __nv_fp8x4_e4m3(float4 f)
      : __x(e4m3_from_float(f.x) | e4m3_from_float(f.y) << 8 | e4m3_from_float(f.z) << 16 |
            static_cast<uint32_t>(e4m3_from_float(f.w)) << 24) {}
  explicit operator float4() const {
    return {float_from_e4m3(__x & 255), float_from_e4m3(__x >> 8 & 255), float_from_e4m3(__x >> 16 & 255),
            float_from_e4m3(__x >> 24)};
  }
};

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T>
inline T __ldg(const T* at) {
  return *at;
}
template <typename T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
// Threads give way only where they wait, so nothing comes between.
template <typename T>
inline T atomicAdd(T* at, T value) {
  const T old = *at;
  *at = old + value;
  return old;
}
inline int atomicOr(int* at, int value) {
  const int old = *at;
  *at = old | value;
  return old;
}
