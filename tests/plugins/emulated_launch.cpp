// Starts one kernel of the emulated library from its address and parameters, as cuLaunchKernel does on a GPU.
#include <cstring>
#include <utility>

#include "emulator.h"

// Parameters of so many bytes. A structure of more than 16 is passed in memory whatever its fields are (System V ABI).
template <size_t kBytes>
struct alignas(8) Params {
  unsigned char bytes[kBytes];
};

constexpr size_t kUnit = 8;    // all structures have pointers, and so this alignment
constexpr size_t kLeast = 24;  // bytes
constexpr size_t kSizes = 64;  // 24 bytes to 528

template <size_t kBytes>
static void start(void* kernel, const unsigned* grid, int threads, int shared_bytes, const void* params) {
  const auto function = reinterpret_cast<void (*)(Params<kBytes>)>(kernel);
  Params<kBytes> given;
  std::memcpy(given.bytes, params, kBytes);
  emulator::run(dim3(grid[0], grid[1], grid[2]), dim3(threads), shared_bytes, [&] { function(given); });
}

using Start = void (*)(void*, const unsigned*, int, int, const void*);

template <size_t... kIndex>
static Start start_of(size_t bytes, std::index_sequence<kIndex...>) {
  Start found = nullptr;
  ((bytes == kLeast + kUnit * kIndex ? void(found = start<kLeast + kUnit * kIndex>) : void()), ...);
  return found;
}

extern "C" int start_kernel(void* kernel, const unsigned* grid, int threads, int shared_bytes, const void* params,
                            int params_bytes) {
  const Start found = start_of(static_cast<size_t>(params_bytes), std::make_index_sequence<kSizes>());
  if (found == nullptr) return 1;
  try {
    found(kernel, grid, threads, shared_bytes, params);
    return 0;
  } catch (const emulator::Failure&) {
    return 1;
  }
}
