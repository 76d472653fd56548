// The formats of weights, 16 bytes at a time, as operands of tensor-core products in bfloat16.
//
// E2M1 codes are expanded in registers. The sign goes to bit 15 and the other three bits to bits 8 to 6, where bfloat16
// has the end of its exponent and the start of its mantissa: that is the code's number · 2^-126, its subnormal 0.5
// included. One multiplication with 2^126 times the block's scale makes it the weight, exactly. Eight codes of a word
// cost 13 integer instructions and four multiplications of pairs.
//
// A pair is codes p and p+4 of a word, which need the same shifts. So what they are multiplied with stands in that
// order too: eights of elements as 0 4 1 5 2 6 3 7 ("the products' order"). bfloat16 weights stay as they are, and so
// does what they are multiplied with.
//
// E4M3 codes are expanded likewise, in their order: a byte permutation puts two codes and copies of their signs into a
// register, a shift puts sign, exponent and mantissa where bfloat16 has them, and a product with 2^120 makes them the
// code's number, exactly. Four codes cost six integer instructions and two multiplications. Their scale is float32, of
// a block or a row, and comes to sums of products: a weight that was rounded with its scale would be another.
#pragma once

#include "device.cuh"
#include "moe_params.h"

namespace dflash {

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
__device__ __forceinline__ void expand_codes(unsigned (&pairs)[4], unsigned codes) {
  constexpr unsigned kLow = 0x000f000fu, kHigh = 0x00f000f0u, kFields = 0x81c081c0u;
  constexpr unsigned kFromLow = (1u << 12) + (1u << 6), kFromHigh = (1u << 8) + (1u << 2);
  pairs[0] = (codes & kLow) * kFromLow & kFields;
  pairs[1] = (codes & kHigh) * kFromHigh & kFields;
  pairs[2] = (codes >> 8 & kLow) * kFromLow & kFields;
  pairs[3] = (codes >> 8 & kHigh) * kFromHigh & kFields;
}

template <int kFormat>
constexpr bool kHasProductsOrder = has_products_order(kFormat);

// Where element i of a row stands in the products' order.
template <int kFormat>
__device__ __forceinline__ int place_of(int i) {
  if constexpr (kHasProductsOrder<kFormat>) {
    const int j = i % 8;
    return i - j + (j < 4 ? 2 * j : 2 * j - 7);
  }
  return i;
}

// Eight bfloat16 elements in the products' order of four-bit codes.
__device__ __forceinline__ uint4 in_products_order(uint4 eight) {
  const auto low = [](unsigned a, unsigned b) { return (a & 0xffffu) | b << 16; };
  const auto high = [](unsigned a, unsigned b) { return a >> 16 | (b & 0xffff0000u); };
  return make_uint4(low(eight.x, eight.z), high(eight.x, eight.z), low(eight.y, eight.w), high(eight.y, eight.w));
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
  static constexpr bool kMayBeLarge = false;
  uint4 numbers;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char*) {
    numbers = load_once_16(block);
  }
  __device__ __forceinline__ bool is_large() const { return false; }
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
  static constexpr bool kMayBeLarge = true;
  static constexpr unsigned kLargest = 128;
  uint4 codes;
  unsigned scale;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char* own_scale) {
    codes = load_once_16(block);
    scale = __ldg(own_scale);
  }

  // 2^126 · 2^(scale - 127) is more than bfloat16 holds. Rare: weights of 4 and more.
  __device__ __forceinline__ bool is_large() const { return scale > kLargest; }

  // Where one block of a warp is large it must be so for all: `kLarge` takes a second multiplication.
  template <bool kLarge>
  __device__ __forceinline__ void piece(unsigned (&pairs)[4], int i) const {
    constexpr unsigned kBoth = 0x10001u, kNan = 0x7fc0, kOne = 127;
    const unsigned factor = (kLarge ? min(scale, kLargest) : scale) * (kBoth << 7) + (126 << 7) * kBoth;
    expand_codes(pairs, word_of(codes, i));
#pragma unroll
    for (unsigned& pair : pairs) pair = multiply_pairs(pair, factor);
    if (!kLarge) return;
    const unsigned rest = (scale == 255 ? kNan : (is_large() ? scale - 1 : kOne) << 7) * kBoth;  // 2^(scale - 128)
#pragma unroll
    for (unsigned& pair : pairs) pair = multiply_pairs(pair, rest);
  }

  static __device__ __forceinline__ float worth(const float*, int) { return 1.f; }
};

// 32 codes and two E4M3 scales of 16. A weight's part in a product is 2^-8 of code · scale, which bfloat16 holds
// exactly; 2^8 and the expert's scale come to the sum.
template <>
struct MoeBlock<kMoeNvfp4> {
  static constexpr int kPieces = 4;
  static constexpr int kScaleBytes = 2;
  static constexpr bool kIsScaledLater = false;
  static constexpr bool kMayBeLarge = false;
  uint4 codes;
  unsigned scales;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char* own_scales) {
    codes = load_once_16(block);
    scales = __ldg(reinterpret_cast<const unsigned short*>(own_scales));
  }
  __device__ __forceinline__ bool is_large() const { return false; }

  template <bool>
  __device__ __forceinline__ void piece(unsigned (&pairs)[4], int i) const {
    const unsigned code = scales >> (i / 2 * 8) & 0xff;
    // E4M3's exponent and mantissa, where float32 has the ends of them: the scale's number · 2^-120.
    const float number = __uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f;
    const float factor = (code & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000u) : number * 0x1p118f;
    const unsigned both = pack(factor, factor);
    expand_codes(pairs, word_of(codes, i));
#pragma unroll
    for (unsigned& pair : pairs) pair = multiply_pairs(pair, both);
  }

  static __device__ __forceinline__ float worth(const float* scale_2, int expert) { return scale_2[expert] * 0x1p8f; }
};

// 16 E4M3 codes, and the scale of the block or the row that they are in: that of the sum of products with a chunk of
// them. A code of NaN counts as 480: files that have one are refused when they are read.
template <>
struct MoeBlock<kMoeFp8> {
  static constexpr int kPieces = 2;
  static constexpr bool kIsScaledLater = true;
  static constexpr bool kMayBeLarge = false;
  uint4 codes;
  float scale;

  __device__ __forceinline__ void load(const unsigned char* block, const unsigned char* own_scale) {
    codes = load_once_16(block);
    scale = __ldg(reinterpret_cast<const float*>(own_scale));
  }
  __device__ __forceinline__ bool is_large() const { return false; }

  __device__ __forceinline__ void piece(unsigned (&pairs)[4], int i) const {
    constexpr unsigned kFields = 0x87f087f0u, k2To120 = 0x7b807b80u;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned word = word_of(codes, 2 * i + j / 2);
      const unsigned spread = j % 2 ? spread_bytes<2>(word) : spread_bytes<0>(word);
      pairs[j] = multiply_pairs(spread << 4 & kFields, k2To120);
    }
  }

  static __device__ __forceinline__ float worth(const float*, int) { return 1.f; }
};

}  // namespace dflash
