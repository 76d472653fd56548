// Small kernels for the emulator's own tests: one for each instruction, and one for each mistake that it must find.
#include <string>

#include "fp8.cuh"

using namespace dflash;

namespace {

constexpr int kStride = 16 + 8;  // elements of a row of a or b in shared memory

struct Arguments {
  const bf16* a;  // [16, 16]
  const bf16* b;  // [16, 8], or [8, 16] where its transpose is loaded
  float* c;       // [16, 8], or what a kernel has to tell
};

// c += a b by one warp. `columns`: b is given as [8, 16], so that rows of memory are columns of the product.
__device__ void product(Arguments p, bool columns) {
  DFLASH_SHARED_MEMORY(smem);
  bf16* a_smem = reinterpret_cast<bf16*>(smem);  // [16, kStride]
  bf16* b_smem = a_smem + 16 * kStride;          // [16, kStride]
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  copy_async_16(a_smem + lane / 2 * kStride + lane % 2 * 8, p.a + lane * 8, true);
  const int b_row = columns ? lane / 2 : lane, b_column = columns ? lane % 2 * 8 : 0;
  if (lane < 16) copy_async_16(b_smem + b_row * kStride + b_column, p.b + lane * 8, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();  // the other lanes' copies are there
  unsigned a_rmem[4], b_rmem[4];
  load_matrix_x4(a_rmem, a_smem + lane % 16 * kStride + lane / 16 * 8);
  if (columns)
    load_matrix_x4(b_rmem, b_smem + lane % 8 * kStride + lane / 8 % 2 * 8);
  else
    load_matrix_x4_transposed(b_rmem, b_smem + lane % 16 * kStride);
  float c_rmem[4];
  for (int j = 0; j < 4; ++j) c_rmem[j] = p.c[(g + j / 2 * 8) * 8 + 2 * t + j % 2];
  multiply_add(c_rmem, a_rmem, {b_rmem[0], b_rmem[1]});
  for (int j = 0; j < 4; ++j) p.c[(g + j / 2 * 8) * 8 + 2 * t + j % 2] = c_rmem[j];
}

// What each lane gets of the others' numbers: xor 5, up 3, down 3, from lane 7, a vote, and how many lanes have its
// number of 7; c is [6, 32].
__device__ void exchanges(Arguments p) {
  const int lane = threadIdx.x;
  p.c[lane] = __shfl_xor_sync(kAllLanes, lane, 5);
  p.c[32 + lane] = __shfl_up_sync(kAllLanes, lane, 3);
  p.c[64 + lane] = __shfl_down_sync(kAllLanes, lane, 3);
  p.c[96 + lane] = __shfl_sync(kAllLanes, lane, 7);
  p.c[128 + lane] = __popc(__ballot_sync(kAllLanes, lane % 3 == 0));
  p.c[160 + lane] = __popc(__match_any_sync(kAllLanes, lane % 7));
}

// Thread i of 64 gets the number that thread 63 - i left in shared memory.
__device__ void mirror(Arguments p, bool barrier) {
  __shared__ float left_smem[64];
  left_smem[threadIdx.x] = threadIdx.x;
  if (barrier) __syncthreads();  // the other warp's numbers are there
  p.c[threadIdx.x] = left_smem[63 - threadIdx.x];
}

// Sixteen numbers by one asynchronous copy, read after `waits` (0: no wait, 1: for all but the latest group, 2: for
// all).
__device__ void copied(Arguments p, int waits) {
  DFLASH_SHARED_MEMORY(smem);
  if (threadIdx.x == 0) {
    copy_async_16(smem, p.a, true);
    copy_async_commit();
    if (waits == 1) copy_async_wait<1>();
    if (waits == 2) copy_async_wait<0>();
  }
  __syncwarp();
  if (threadIdx.x < 8) p.c[threadIdx.x] = __bfloat162float(reinterpret_cast<bf16*>(smem)[threadIdx.x]);
}

__device__ void leave_before_the_barrier() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__device__ void split_warp() {
  if (threadIdx.x < 8)
    __ballot_sync(kAllLanes, 1);
  else
    __syncwarp();
}

__device__ void misaligned_load() {
  DFLASH_SHARED_MEMORY(smem);
  unsigned r[4];
  load_matrix_x4(r, smem + threadIdx.x * 8);
}

__device__ void load_outside() {
  DFLASH_SHARED_MEMORY(smem);
  unsigned r[4];
  load_matrix_x4(r, smem + 4096 - 16 * 31 + threadIdx.x * 16);
}

__device__ void write_outside() {
  DFLASH_SHARED_MEMORY(smem);
  smem[4096 + threadIdx.x] = 1;
}

__device__ void misaligned_source(Arguments p) {
  DFLASH_SHARED_MEMORY(smem);
  copy_async_16(smem, p.a + 1, true);
}

__global__ void kernel(const std::string& name, Arguments p) {
  if (name == "product") return product(p, false);
  if (name == "product with columns") return product(p, true);
  if (name == "exchanges") return exchanges(p);
  if (name == "mirror") return mirror(p, true);
  if (name == "mirror without a barrier") return mirror(p, false);
  if (name == "copy") return copied(p, 2);
  if (name == "copy without a wait") return copied(p, 0);
  if (name == "copy with a wait for others") return copied(p, 1);
  if (name == "leave before the barrier") return leave_before_the_barrier();
  if (name == "split warp") return split_warp();
  if (name == "misaligned load") return misaligned_load();
  if (name == "load outside") return load_outside();
  if (name == "write outside") return write_outside();
  if (name == "misaligned source") return misaligned_source(p);
}

}  // namespace

// Run a kernel by one CTA with 4096 bytes of shared memory; null, or what the emulator has found.
extern "C" const char* run_primitive(const char* name, int threads, int order, int seed, const void* a, const void* b,
                                     float* c) {
  static std::string found;
  emulator::set_order(static_cast<emulator::Order>(order), seed);
  const Arguments arguments{static_cast<const bf16*>(a), static_cast<const bf16*>(b), c};
  try {
    emulator::run(dim3(1), dim3(threads), 4096, [&] { kernel(name, arguments); });
    return nullptr;
  } catch (const emulator::Failure& failure) {
    found = failure.what();
    return found.c_str();
  }
}

// float32 to bfloat16 and back, for each of `count` numbers.
extern "C" void round_to_bfloat16(const float* from, float* to, int count) {
  for (int i = 0; i < count; ++i) to[i] = __bfloat162float(__float2bfloat16(from[i]));
}

extern "C" void round_to_fp8(const float* from, fp8* codes, float* to, int count) {
  for (int i = 0; i < count; i += 4) {
    const __nv_fp8x4_e4m3 four(make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]));
    const float4 back = static_cast<float4>(four);
    for (int j = 0; j < 4; ++j) codes[i + j] = static_cast<fp8>(four.__x >> 8 * j & 255);
    to[i] = back.x, to[i + 1] = back.y, to[i + 2] = back.z, to[i + 3] = back.w;
  }
}

// Eight bfloat16 numbers / scale as codes, and those as float16.
extern "C" void narrow_and_widen(const uint4* from, float scale, uint2* codes, uint4* to, int count) {
  for (int i = 0; i < count; ++i) {
    const uint2 both = codes[i] = narrow(from[i], scale);
    to[i] = make_uint4(widen(both.x), widen(both.x >> 16), widen(both.y), widen(both.y >> 16));
  }
}

// Two bfloat16 numbers of each register as float16.
extern "C" void bfloat16_to_half(const unsigned* from, unsigned* to, int count) {
  for (int i = 0; i < count; ++i) to[i] = to_half(from[i]);
}

// float32 to float16 and back.
extern "C" void round_to_half(const float* from, float* to, int count) {
  for (int i = 0; i < count; ++i) to[i] = float_from_half(half_from_float(from[i]));
}
