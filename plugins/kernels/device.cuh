// What the kernels use of the machine: asynchronous copies, matrix loads, tensor-core products, warp reductions.
//
// Each instruction is one function, so that the emulator (plugins/emulator) can stand in for the GPU: the kernels
// themselves are the same source on both.
#pragma once

#ifdef DFLASH_EMULATOR
#include "emulator.h"
#else
#include <cuda_bf16.h>
#define DFLASH_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace dflash {

using bf16 = __nv_bfloat16;
using index_t = long long;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);  // NVRTC has no <limits>

// A tile of an m16n8k16 product as one thread holds it. g = lane / 4, t = lane % 4; each register is two bf16:
//   a: rows g, g+8, g, g+8; columns 2t.., 2t.., 2t+8.., 2t+8..     (16 x 16)
//   b: rows 2t.., 2t+8..; column g                                 (16 x 8)
//   c: rows g, g, g+8, g+8; columns 2t, 2t+1, 2t, 2t+1             (16 x 8)
using FragmentA = unsigned[4];
using FragmentB = unsigned[2];
using FragmentC = float[4];

#ifndef DFLASH_EMULATOR

// Copy 16 bytes to shared memory without waiting; zeros where there is nothing to copy (the address is not read then).
__device__ __forceinline__ void copy_async_16(void* to_smem, const void* from_gmem, bool present) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_smem));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from_gmem), "r"(present ? 16 : 0));
}

// Close the group of copies that this thread has begun.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n"); }

// Wait until at most `kPending` of this thread's latest groups are under way. Others' copies need a barrier besides.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 2-byte elements: lane l gives the address of row l % 8 of matrix l / 8, and gets in register j
// elements 2t, 2t+1 of row g of matrix j.
__device__ __forceinline__ void load_matrix_x4(unsigned (&r)[4], const void* row_smem) {
  const unsigned row = static_cast<unsigned>(__cvta_generic_to_shared(row_smem));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// The same, each matrix transposed: register j gets elements of rows 2t, 2t+1 in column g of matrix j.
__device__ __forceinline__ void load_matrix_x4_transposed(unsigned (&r)[4], const void* row_smem) {
  const unsigned row = static_cast<unsigned>(__cvta_generic_to_shared(row_smem));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// c += a b on the tensor cores, float32 accumulation.
__device__ __forceinline__ void multiply_add(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with operands of float16.
__device__ __forceinline__ void multiply_add_half(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif  // DFLASH_EMULATOR

// 16 bytes that this CTA reads once, and whose neighbours are read soon: past the first cache, 128 bytes at a time.
__device__ __forceinline__ uint4 load_once_16(const void* from_gmem) {
#ifdef DFLASH_EMULATOR
  return *static_cast<const uint4*>(from_gmem);
#else
  uint4 r;  // volatile: it must be on its way before what follows, not when it is needed
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(from_gmem));
  return r;
#endif
}

// Bytes kFirst and kFirst + 1 of a word, each as the low half of 16 bits whose upper half is full of its highest bit.
template <int kFirst>
__device__ __forceinline__ unsigned spread_bytes(unsigned word) {
#ifdef DFLASH_EMULATOR
  const auto spread = [word](int i) {
    const unsigned byte = word >> 8 * i & 0xff;
    return byte & 0x80 ? byte | 0xff00 : byte;
  };
  return spread(kFirst) | spread(kFirst + 1) << 16;
#else
  unsigned r;
  asm("prmt.b32 %0, %1, 0, %2;\n" : "=r"(r) : "r"(word), "n"(0x9180 + 0x2222 * (kFirst / 2)));
  return r;
#endif
}

// The same number, in a register: compilers compute addresses anew wherever they are used, and cannot know that a
// lane's own number comes out of a shuffle.
__device__ __forceinline__ int kept(int x) { return __shfl_sync(kAllLanes, x, static_cast<int>(threadIdx.x) % kWarp); }

// The same address; what is added to it is not reordered with what made it.
__device__ __forceinline__ const unsigned char* kept(const unsigned char* at) {
#ifndef DFLASH_EMULATOR
  asm volatile("" : "+l"(at));
#endif
  return at;
}

// 2^x to float32's last few bits; 0 for -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef DFLASH_EMULATOR
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Two floats as one register of two bf16, the first in the low half.
__device__ __forceinline__ unsigned pack(float low, float high) {
  union {
    __nv_bfloat162 pair;
    unsigned bits;
  } packed = {__floats2bfloat162_rn(low, high)};
  return packed.bits;
}

// Reductions over aligned groups of `kLanes` lanes; every lane gets the result, and always in the same order.
template <int kLanes = kWarp>
__device__ __forceinline__ float lanes_max(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

template <int kLanes = kWarp>
__device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

}  // namespace dflash
