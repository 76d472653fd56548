// The formats of weights, 16 bytes at a time, as operands of tensor-core products in bfloat16.
//
// Codes are expanded in registers (convert.cuh). Those of four bits come in pairs that need not be neighbours. What
// they are multiplied with stands in the order of the pairs too: "the products' order". bfloat16 weights and FP8 codes
// stay in theirs, and so does what they are multiplied with.
//
// The scales of four-bit codes are part of the weight, exactly. That of FP8 codes is float32, of a block or a row, and
// comes to sums of products: a weight that was rounded with its scale would be another.
#pragma once

#include "convert.cuh"
#include "moe_params.h"

namespace dflash {

template <int kFormat>
constexpr bool kHasProductsOrder = has_products_order(kFormat);

// Where element i of a row stands in the products' order.
template <int kFormat>
__device__ __forceinline__ int place_of(int i) {
  if constexpr (kHasProductsOrder<kFormat>) {
    return i / 8 * 8 + place_in_eight(i % 8);
  }
  return i;
}

// 16 bytes of a row: `kPieces` eights of elements. load() asks for them and their scale; piece() gives the products'
// operands of one of them, times worth(), which is left to be done to the sum.
template <int kFormat>
struct MoeBlock;

template <>
struct MoeBlock<kMoeBfloat16> {
  static constexpr int kPieces = 1;
  static constexpr int kScaleBytes = 0;
  static constexpr bool kIsScaledLater = false;
  static constexpr bool kMayBeRare = false;
  uint4 numbers;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char*) {
    numbers = load_once_16(block);
  }
  __device__ __forceinline__ bool is_rare() const { return false; }
  template <bool>
  __device__ __forceinline__ void piece(unsigned (&pairs)[4], int) const {
    pairs[0] = numbers.x, pairs[1] = numbers.y, pairs[2] = numbers.z, pairs[3] = numbers.w;
  }
  static __device__ __forceinline__ float worth(const float*, int) { return 1.f; }
};

__device__ __forceinline__ unsigned word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// 32 codes and their scale 2^(scale - 127).
template <>
struct MoeBlock<kMoeMxfp4> {
  static constexpr int kPieces = 4;
  static constexpr int kScaleBytes = 1;  // for each 16 of codes
  static constexpr bool kIsScaledLater = false;
  static constexpr bool kMayBeRare = true;
  static constexpr unsigned kLargest = 128;
  uint4 codes;
  unsigned scale;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char* own_scale) {
    codes = load_once_16(block);
    scale = __ldg(own_scale);
  }

  // A scale that takes more than the usual way. For conversions: a weight that is subnormal, infinite or NaN. For
  // integer instructions: 2^126 · 2^(scale - 127) is more than bfloat16 holds, with weights of 4 and more.
  __device__ __forceinline__ bool is_rare() const {
    constexpr unsigned kFirst = 2, kLast = 252;  // 0.5 is 2^-126 with the one, and 6 is finite with the other
    return kConverts ? scale - kFirst > kLast - kFirst : scale > kLargest;
  }

  // Where one block of a warp is rare it must be so for all: `kRare` takes a multiplication more.
  template <bool kRare>
  __device__ __forceinline__ void piece(unsigned (&pairs)[4], int i) const {
    const unsigned word = word_of(codes, i);
    if constexpr (kConverts) {
      convert_fp4(pairs, word, kRare ? kScaleOfOne : scale);
      if (kRare) multiply_all(pairs, scale == 0 ? kSmallest : scale == 255 ? kNan : scale << 7);
    } else {
      expand_fp4(pairs, word);
      multiply_all(pairs, ((kRare ? min(scale, kLargest) : scale) + 126) << 7);
      if (kRare)
        multiply_all(pairs, scale == 255 ? kNan : (is_rare() ? scale - 1 : kScaleOfOne) << 7);  // 2^(scale-128)
    }
  }

  static __device__ __forceinline__ float worth(const float*, int) { return 1.f; }

 private:
  static constexpr unsigned kNan = 0x7fc0, kSmallest = 0x0040;  // as bfloat16; 2^-127 is subnormal

  static __device__ __forceinline__ void multiply_all(unsigned (&pairs)[4], unsigned factor) {
#pragma unroll
    for (unsigned& pair : pairs) pair = multiply_pairs(pair, factor * 0x10001u);
  }
};

// 32 codes and two E4M3 scales of 16. A weight's part in a product is 2^-8 of code · scale, which bfloat16 holds
// exactly; 2^8 and the expert's scale come to the sum.
template <>
struct MoeBlock<kMoeNvfp4> {
  static constexpr int kPieces = 4;
  static constexpr int kScaleBytes = 2;
  static constexpr bool kIsScaledLater = false;
  static constexpr bool kMayBeRare = false;
  uint4 codes;
  unsigned scales;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char* own_scales) {
    codes = load_once_16(block);
    scales = __ldg(reinterpret_cast<const unsigned short*>(own_scales));
  }
  __device__ __forceinline__ bool is_rare() const { return false; }

  template <bool>
  __device__ __forceinline__ void piece(unsigned (&pairs)[4], int i) const {
    const unsigned word = word_of(codes, i), factors = i / 2 ? both<1>() : both<0>();
    if constexpr (kConverts) {
      convert_fp4(pairs, word, kScaleOfOne);
    } else {
      expand_fp4(pairs, word);
    }
#pragma unroll
    for (unsigned& pair : pairs) pair = multiply_pairs(pair, factors);
  }

  static __device__ __forceinline__ float worth(const float* scale_2, int expert) { return scale_2[expert] * 0x1p8f; }

 private:
  // 2^-8 of scale kNumber, for both codes of a pair; times 2^126 where those are times 2^-126.
  template <int kNumber>
  __device__ __forceinline__ unsigned both() const {
    if constexpr (kConverts) {
      constexpr unsigned k2ToMinus8 = 0x3b803b80u;
      return __byte_perm(multiply_pairs(convert_fp8(scales), k2ToMinus8), 0, kNumber ? 0x3232 : 0x1010);
    } else {
      const unsigned code = scales >> (kNumber * 8) & 0xff;
      // E4M3's exponent and mantissa, where float32 has the ends of them: the scale's number · 2^-120.
      const float number = __uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f;
      const float factor = (code & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000u) : number * 0x1p118f;
      return pack(factor, factor);
    }
  }
};

// 16 E4M3 codes, and the scale of the block or the row that they are in: that of the sum of products with a chunk of
// them. A code of NaN counts as 480, or as NaN where it is converted: files that have one are refused when they are
// read.
template <>
struct MoeBlock<kMoeFp8> {
  static constexpr int kPieces = 2;
  static constexpr bool kIsScaledLater = true;
  static constexpr bool kMayBeRare = false;
  uint4 codes;
  float scale;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char* own_scale) {
    codes = load_once_16(block);
    scale = __ldg(reinterpret_cast<const float*>(own_scale));
  }
  __device__ __forceinline__ bool is_rare() const { return false; }

  __device__ __forceinline__ void piece(unsigned (&pairs)[4], int i) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned word = word_of(codes, 2 * i + j / 2);
      if constexpr (kConverts) {
        pairs[j] = convert_fp8(word >> (j % 2 * 16));
      } else {
        pairs[j] = j % 2 ? expand_fp8<1>(word) : expand_fp8<0>(word);
      }
    }
  }

  static __device__ __forceinline__ float worth(const float*, int) { return 1.f; }
};

}  // namespace dflash
