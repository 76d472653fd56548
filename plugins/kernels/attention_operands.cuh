// How the operands of the tensor cores' products come out of shared memory, for each type of cache.
//
// A fragment's layout is in device.cuh: g = lane / 4, t = lane % 4. The sum over a product's sixteen positions may take
// them in any order that both operands have, and columns of the result may stand for any dimensions that are then
// written there.
#pragma once

#include "attention_keys.cuh"

namespace dflash {

template <int kHeadDim, typename Cache>
struct Operands;

// bfloat16 is multiplied as it is.
template <int kHeadDim>
struct Operands<kHeadDim, bf16> {
  static constexpr int kQueryStride = kHeadDim + kRowPadding;
  static constexpr int kStride = kHeadDim + kRowPadding;
  static constexpr int kKeyDims = 16;    // dimensions of 16 keys that one load brings
  static constexpr int kValueDims = 16;  // likewise of 16 values

  // Begin the copy of eight dimensions of a row of q, or zeros.
  static __device__ void copy_query(bf16* row_smem, int column, const bf16* from_gmem, bool present) {
    copy_async_16(row_smem + column, from_gmem, present);
  }

  // Of the 16 keys from `keys_smem` on, their dimensions from there on: b[i][j] has the positions of step i of the sum,
  // and eight keys from 8j on.
  static __device__ __forceinline__ void load_keys(FragmentB (&b)[1][2], const bf16* keys_smem, int lane) {
    unsigned r[4];  // keys 0…7 at 0…, at 8…, keys 8…15 at 0…, at 8…
    load_matrix_x4(r, keys_smem + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
#pragma unroll
    for (int j = 0; j < 2; ++j) b[0][j][0] = r[2 * j], b[0][j][1] = r[2 * j + 1];
  }

  // Of the 16 values from `values_smem` on, their dimensions from there on: b[n] has eight columns of the result.
  static __device__ __forceinline__ void load_values(FragmentB (&b)[2], const bf16* values_smem, int lane) {
    unsigned r[4];  // values 0…7 and 8…15 at 0…, then at 8…
    load_matrix_x4_transposed(r, values_smem + lane % 16 * kStride + lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < 2; ++n) b[n][0] = r[2 * n], b[n][1] = r[2 * n + 1];
  }

  // The dimension of element c of a lane's row, in fragment n of the result.
  static __device__ __forceinline__ int dimension(int n, int c, int lane) { return n * 8 + lane % 4 * 2 + c; }

  static __device__ __forceinline__ unsigned pack_weights(float low, float high) { return pack(low, high); }
  static __device__ __forceinline__ void multiply(FragmentC& c, const FragmentA& a, const FragmentB& b) {
    multiply_add(c, a, b);
  }
};

// FP8 codes are widened to float16, which holds each exactly; q and the weights become float16 as well. A lane gets
// four codes of a key at once. So dimensions 4t, 4t+1 of every sixteen stand where 2t, 2t+1 do in bfloat16, and 4t+2,
// 4t+3 where 2t+8, 2t+9 do; q is stored in that order. Of values a lane gets dimensions 2g and 2g+1: fragments of the
// result have the even and the odd ones of sixteen.
template <int kHeadDim>
struct Operands<kHeadDim, fp8> {
  static constexpr int kQueryStride = kHeadDim + kRowPadding;
  static constexpr int kStride = kHeadDim + 16;
  static constexpr int kKeyDims = 32;
  static constexpr int kValueDims = 32;

  static __device__ void copy_query(bf16* row_smem, int column, const bf16* from_gmem, bool present) {
    const uint4 chunk = present ? load_chunk(from_gmem, 0) : make_uint4(0, 0, 0, 0);
    bf16* to = row_smem + column / 16 * 16 + column % 16 / 2;
    *reinterpret_cast<uint2*>(to) = make_uint2(to_half(chunk.x), to_half(chunk.z));
    *reinterpret_cast<uint2*>(to + 8) = make_uint2(to_half(chunk.y), to_half(chunk.w));
  }

  static __device__ __forceinline__ void load_keys(FragmentB (&b)[2][2], const fp8* keys_smem, int lane) {
    unsigned r[4];  // keys 0…7 at 0…, at 16…, keys 8…15 at 0…, at 16…
    load_matrix_x4(r, keys_smem + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 16);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        b[i][j][0] = widen(r[2 * j + i]);
        b[i][j][1] = widen(r[2 * j + i] >> 16);
      }
    }
  }

  static __device__ __forceinline__ void load_values(FragmentB (&b)[4], const fp8* values_smem, int lane) {
    unsigned r[4];  // values 0…7 and 8…15 at 0…, then at 16…; of each two values, two dimensions
    load_matrix_x4_transposed(r, values_smem + lane % 16 * kStride + lane / 16 * 16);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned sorted = __byte_perm(r[j], 0, 0x3120);  // both values of one dimension, then of the next
      b[j / 2 * 2][j % 2] = widen(sorted);
      b[j / 2 * 2 + 1][j % 2] = widen(sorted >> 16);
    }
  }

  static __device__ __forceinline__ int dimension(int n, int c, int lane) {
    return n / 2 * 16 + lane % 4 * 4 + c * 2 + n % 2;
  }

  static __device__ __forceinline__ unsigned pack_weights(float low, float high) { return pack_half(low, high); }
  static __device__ __forceinline__ void multiply(FragmentC& c, const FragmentA& a, const FragmentB& b) {
    multiply_add_half(c, a, b);
  }
};

}  // namespace dflash
