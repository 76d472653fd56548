// Codes of four (E2M1) and eight bits (E4M3) as pairs of bfloat16, in registers: exactly, in one of two ways.
//
// By integer instructions, on every GPU. E2M1: the sign goes to bit 15 and the other three bits to bits 8 to 6, where
// bfloat16 has the end of its exponent and the start of its mantissa: that is the code's number · 2^-126, its subnormal
// 0.5 included. One multiplication with 2^126 times the block's scale makes it the weight. Eight codes of a word cost
// 13 integer instructions and four multiplications of pairs. E4M3: a byte permutation puts two codes and copies of
// their signs into a register, a shift puts sign, exponent and mantissa where bfloat16 has them, and a product with
// 2^120 makes them the code's number. Four codes cost six integer instructions and two multiplications.
//
// By conversions, where kConverts: two codes an instruction. Those of E2M1 take a power of two besides.
//
// The two ways give the same bits, but for E4M3's code of NaN, which integer instructions make 480. They differ in
// which codes of a word come in pairs, and so in the order of what these are multiplied with ("the products' order").
#pragma once

#include "device.cuh"

namespace dflash {

// From which CUDA on (major · 100 + minor) PTX has the conversions. They are of Blackwell's family targets alone:
// sm_100f, sm_120f and their like. nvrtc.py reads the number too, and takes a family target where NVRTC is as new.
constexpr int kConversionCuda = 1302;

#if defined(DFLASH_EMULATED_CONVERSIONS)
constexpr bool kConverts = true;
#elif defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH__ >= 1000
constexpr bool kConverts = __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= kConversionCuda;
#else
constexpr bool kConverts = false;
#endif

constexpr unsigned kScaleOfOne = 127;  // 2^(scale - 127) is 1

// Two numbers of a register times those of another, to the nearest bfloat16; subnormal ones count.
__device__ __forceinline__ unsigned multiply_pairs(unsigned a, unsigned b) {
  union Pair {
    unsigned bits;
    __nv_bfloat162 numbers;
  };
  const Pair left = {a}, right = {b};
  Pair product;
  product.numbers = __hmul2(left.numbers, right.numbers);
  return product.bits;
}

// Codes p and p+4 of eight, as a pair of numbers · 2^-126, in pairs[p]. A product with two powers of two is two shifts
// in one instruction: one puts the sign where it belongs, the other the rest.
__device__ __forceinline__ void expand_fp4(unsigned (&pairs)[4], unsigned codes) {
  constexpr unsigned kLow = 0x000f000fu, kHigh = 0x00f000f0u, kFields = 0x81c081c0u;
  constexpr unsigned kFromLow = (1u << 12) + (1u << 6), kFromHigh = (1u << 8) + (1u << 2);
  pairs[0] = (codes & kLow) * kFromLow & kFields;
  pairs[1] = (codes & kHigh) * kFromHigh & kFields;
  pairs[2] = (codes >> 8 & kLow) * kFromLow & kFields;
  pairs[3] = (codes >> 8 & kHigh) * kFromHigh & kFields;
}

// Two E4M3 codes, the lower or the upper ones of four, as a pair of numbers.
template <int kHalf>
__device__ __forceinline__ unsigned expand_fp8(unsigned codes) {
  constexpr unsigned kFields = 0x87f087f0u, k2To120 = 0x7b807b80u;
  return multiply_pairs(spread_bytes<2 * kHalf>(codes) << 4 & kFields, k2To120);
}

#ifdef DFLASH_EMULATOR

// What PTX says of the two conversions, number for number.
inline float number_of_fp4(unsigned code) {
  constexpr float kNumbers[8] = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f};
  return code & 8 ? -kNumbers[code & 7] : kNumbers[code & 7];
}
inline void convert_fp4(unsigned (&pairs)[4], unsigned codes, unsigned scale) {
  const float worth = scale == 255 ? __uint_as_float(0x7fc00000u) : ldexpf(1.f, static_cast<int>(scale) - 127);
  const auto byte = [=](int i) {
    return pack(number_of_fp4(codes >> 8 * i & 15) * worth, number_of_fp4(codes >> (8 * i + 4) & 15) * worth);
  };
  pairs[0] = byte(0), pairs[1] = byte(2), pairs[2] = byte(1), pairs[3] = byte(3);
}
inline unsigned convert_fp8(unsigned codes) {
  return pack(float_from_e4m3(codes & 0xff), float_from_e4m3(codes >> 8 & 0xff));
}

#else

// Bytes 0, 2, 1, 3 of eight E2M1 codes, two neighbours each, times 2^(scale - 127). Callers see to it that every
// product is 0 or a normal number: it is exact then, however the machine rounds and whatever it does with other
// numbers.
__device__ __forceinline__ void convert_fp4(unsigned (&pairs)[4], unsigned codes, unsigned scale) {
  const unsigned short both = static_cast<unsigned short>(scale * 0x101);
  asm("{\n"
      ".reg .b8 first, second, third, fourth;\n"
      "mov.b32 {first, second, third, fourth}, %4;\n"
      "cvt.rn.scaled::n2::ue8m0.bf16x2.e2m1x2 %0, first, %5;\n"
      "cvt.rn.scaled::n2::ue8m0.bf16x2.e2m1x2 %1, third, %5;\n"
      "cvt.rn.scaled::n2::ue8m0.bf16x2.e2m1x2 %2, second, %5;\n"
      "cvt.rn.scaled::n2::ue8m0.bf16x2.e2m1x2 %3, fourth, %5;\n"
      "}\n"
      : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
      : "r"(codes), "h"(both));
}

// The two E4M3 codes in the low half of `codes`.
__device__ __forceinline__ unsigned convert_fp8(unsigned codes) {
  unsigned pair;
  asm("cvt.rn.bf16x2.e4m3x2 %0, %1;\n" : "=r"(pair) : "h"(static_cast<unsigned short>(codes)));
  return pair;
}

#endif  // DFLASH_EMULATOR

// Where element j of eight stands in the products' order: as 0 4 1 5 2 6 3 7 for codes p and p+4 of a word, which need
// the same shifts, and as 0 1 4 5 2 3 6 7 for its bytes. Four of them go into one product, the same four in both.
__device__ __forceinline__ int place_in_eight(int j) {
  return kConverts ? (j & 1) | (j & 2) << 1 | (j & 4) >> 1 : j < 4 ? 2 * j : 2 * j - 7;
}

// Eight bfloat16 elements in the products' order of four-bit codes.
__device__ __forceinline__ uint4 in_products_order(uint4 eight) {
  if constexpr (kConverts) {
    return make_uint4(eight.x, eight.z, eight.y, eight.w);
  } else {
    const auto low = [](unsigned a, unsigned b) { return (a & 0xffffu) | b << 16; };
    const auto high = [](unsigned a, unsigned b) { return a >> 16 | (b & 0xffff0000u); };
    return make_uint4(low(eight.x, eight.z), high(eight.x, eight.z), low(eight.y, eight.w), high(eight.y, eight.w));
  }
}

}  // namespace dflash
