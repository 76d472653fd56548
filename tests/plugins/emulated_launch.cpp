// Starts one kernel of the emulated library from its address and parameters, as cuLaunchKernel does on a GPU.
#include "accept_params.h"
#include "attention_params.h"
#include "emulator.h"
#include "moe_params.h"

template <typename Params>
static void start(void* kernel, const unsigned* grid, int threads, int shared_bytes, const void* params) {
  const auto function = reinterpret_cast<void (*)(Params)>(kernel);
  const Params& given = *static_cast<const Params*>(params);
  emulator::run(dim3(grid[0], grid[1], grid[2]), dim3(threads), shared_bytes, [&] { function(given); });
}

extern "C" int start_kernel(void* kernel, const unsigned* grid, int threads, int shared_bytes, const void* params,
                            int params_bytes) {
  try {
    if (params_bytes == sizeof(dflash::AttentionParams)) {
      start<dflash::AttentionParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(dflash::MoeParams)) {
      start<dflash::MoeParams>(kernel, grid, threads, shared_bytes, params);
    } else {
      start<dflash::AcceptParams>(kernel, grid, threads, shared_bytes, params);
    }
    return 0;
  } catch (const emulator::Failure&) {
    return 1;
  }
}
