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

#ifdef DFLASH_EMULATOR

inline int device_processors() { return 132; }  // an H200's: plans are those of a large GPU

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

inline int device_processors() {
  int device = 0, processors = 0;
  cuda(cudaGetDevice(&device), "asking for the current device");
  cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for its multiprocessors");
  return processors;
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
