// Runs the kernels of plugins/kernels on the CPU: the proof of their numerics on a machine without a GPU.
//
// One CTA after another; each of its threads is a fiber, which runs from one warp-wide operation or barrier to the
// next. What a GPU leaves open is made as bad as it may be, so that a missing barrier or wait shows as a wrong result:
//   - shared memory is full of NaN when a CTA starts;
//   - an asynchronous copy lands when its thread waits for it, and until then its destination is full of NaN;
//   - a warp runs as far ahead of the others as it can, in the order that set_order selects.
// One launch at a time in a process. run() throws Failure, with the place in the kernel, for a barrier that can never
// complete, lanes of a warp at different operations, a shared-memory address of a copy or matrix load that is
// misaligned or outside, a misaligned source of a copy, and a write behind the dynamic shared memory.
//
// Not emulated: time, bank conflicts, operations of parts of a warp side by side, races between CTAs that run at the
// same time (only their order), and how tensor cores add (here by k, in float32). A plain read of uninitialised or
// freed global memory is not noticed: tests poison what must not be read.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

#include "cuda_names.h"

#define DFLASH_SHARED_MEMORY(name) unsigned char* name = emulator::shared_memory()

namespace emulator {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The order of CTAs, of the warps that can go on, and of the lanes of a warp.
enum class Order { kForward, kReverse, kRandom };

// For the launches that follow. In random order a copy reads its source early or late, by chance; else late.
void set_order(Order order, uint64_t seed);

// Run `thread` as every thread of a grid.
void run(dim3 grid, dim3 block, int shared_bytes, const std::function<void()>& thread);

// A line of a kernel: as a default argument, the caller's.
struct Place {
  const char* file;
  int line;
};
constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

constexpr int kLanes = 32;
unsigned char* shared_memory();
[[noreturn]] void fail(const char* what, const std::string& why, Place place);

// 16 bytes for a copy or a matrix's row lie in the shared memory, and are aligned.
void check_shared(const void* at, const char* what, Place place);

// Wait until all lanes of `mask` are at this operation. The last of them gets what each brought, by lane, and must call
// leave(); the others get null when it has. `what` names the operation.
void** arrive(const char* what, Place place, unsigned mask, void* brought);
void leave();

template <typename Brought, typename Operation>
inline void together(const char* what, Place place, unsigned mask, Brought& mine, Operation operation) {
  if (void** lanes = arrive(what, place, mask, &mine)) {
    operation(reinterpret_cast<Brought**>(lanes));
    leave();
  }
}

uint32_t shuffle(const char* what, Place place, unsigned mask, uint32_t value, int from);
unsigned match(const char* what, Place place, unsigned mask, uint32_t value);
unsigned ballot(const char* what, Place place, unsigned mask, bool predicate);
void barrier(Place place);
void copy_wait(int pending);

inline int lane() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) % kLanes;
}

// `value` of lane `from`, or the own one where there is no such lane.
template <typename T>
inline T shuffle_as(const char* what, Place place, unsigned mask, T value, int from) {
  const int source = from >= 0 && from < kLanes ? from : lane();
  return bits_as<T>(shuffle(what, place, mask, bits_as<uint32_t>(value), source));
}

}  // namespace emulator

namespace dflash {

// The instructions of device.cuh.
void copy_async_16(void* to_smem, const void* from_gmem, bool present, emulator::Place place = emulator::here());
void copy_async_commit();
template <int kPending>
inline void copy_async_wait() {
  emulator::copy_wait(kPending);
}
void load_matrix_x4(unsigned (&r)[4], const void* row_smem, emulator::Place place = emulator::here());
void load_matrix_x4_transposed(unsigned (&r)[4], const void* row_smem, emulator::Place place = emulator::here());
void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                  emulator::Place place = emulator::here());
void multiply_add_half(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                       emulator::Place place = emulator::here());

}  // namespace dflash

inline void __syncthreads(emulator::Place place = emulator::here()) { emulator::barrier(place); }
inline void __syncwarp(unsigned mask = ~0u, emulator::Place place = emulator::here()) {
  emulator::ballot("__syncwarp", place, mask, false);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Place place = emulator::here()) {
  return emulator::ballot("__ballot_sync", place, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, emulator::Place place = emulator::here()) {
  return emulator::ballot("__any_sync", place, mask, predicate != 0) != 0;
}
inline unsigned __match_any_sync(unsigned mask, int value, emulator::Place place = emulator::here()) {
  return emulator::match("__match_any_sync", place, mask, static_cast<uint32_t>(value));
}
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int from, emulator::Place place = emulator::here()) {
  return emulator::shuffle_as("__shfl_sync", place, mask, value, from % emulator::kLanes);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, emulator::Place place = emulator::here()) {
  return emulator::shuffle_as("__shfl_xor_sync", place, mask, value, emulator::lane() ^ bits);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, int distance, emulator::Place place = emulator::here()) {
  return emulator::shuffle_as("__shfl_up_sync", place, mask, value, emulator::lane() - distance);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, int distance, emulator::Place place = emulator::here()) {
  return emulator::shuffle_as("__shfl_down_sync", place, mask, value, emulator::lane() + distance);
}
