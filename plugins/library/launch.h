// How a kernel is started: by CUDA, or in the emulator. The launchers do not know which.
#pragma once

#include <stdexcept>
#include <string>

#include "dflash.h"

#ifdef DFLASH_EMULATOR
#include "emulator.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace dflash {

struct LaunchFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename Params>
using Kernel = void (*)(Params);

// Of a device: multiprocessors, and the shared memory of each.
struct Processors {
  int count;
  int shared_bytes;
};

#ifdef DFLASH_EMULATOR

// An H200's: plans are those of a large GPU.
inline Processors device_processors() { return {132, 228 << 10}; }

template <typename Params>
inline void launch(const char* name, Kernel<Params> kernel, dim3 grid, int threads, int shared_bytes,
                   const Params& params, void*) {
  try {
    emulator::run(grid, dim3(threads), shared_bytes, [&] { kernel(params); });
  } catch (const emulator::Failure& failure) {
    throw LaunchFailed(std::string(name) + ": " + failure.what());
  }
}

#else

inline void cuda(cudaError_t error, const char* doing) {
  if (error != cudaSuccess) throw LaunchFailed(std::string(doing) + ": " + cudaGetErrorString(error));
}

inline Processors device_processors() {
  int device = 0;
  Processors found{};
  cuda(cudaGetDevice(&device), "asking for the current device");
  cuda(cudaDeviceGetAttribute(&found.count, cudaDevAttrMultiProcessorCount, device), "asking for its multiprocessors");
  cuda(cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
       "asking for their shared memory");
  return found;
}

template <typename Params>
inline void launch(const char* name, Kernel<Params> kernel, dim3 grid, int threads, int shared_bytes,
                   const Params& params, void* stream) {
  const void* function = reinterpret_cast<const void*>(kernel);
  constexpr int kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  cuda(cudaLaunchKernel(function, grid, dim3(threads), arguments, shared_bytes, static_cast<cudaStream_t>(stream)),
       name);
}

#endif

}  // namespace dflash
