// Starts one kernel of the emulated library from its address and parameters, as cuLaunchKernel does on a GPU.
#include "accept_params.h"
#include "adjust_params.h"
#include "argmax_params.h"
#include "attention_params.h"
#include "block_linear_params.h"
#include "emulator.h"
#include "gated_delta_params.h"
#include "lookup_params.h"
#include "moe_params.h"
#include "select_params.h"

using namespace dflash;
// The size of a kernel's parameters says whose they are, so no two may have one size.
template <typename... Params>
constexpr bool all_differ() {
  const size_t sizes[] = {sizeof(Params)...};
  for (size_t i = 0; i < sizeof...(Params); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (sizes[i] == sizes[j]) return false;
    }
  }
  return true;
}
static_assert(all_differ<AcceptParams, AdjustParams, ArgmaxParams, AttentionParams, BlockLinearParams, GatedDeltaParams,
                         LookupParams, MoeParams, SelectParams>());

template <typename Params>
static void start(void* kernel, const unsigned* grid, int threads, int shared_bytes, const void* params) {
  const auto function = reinterpret_cast<void (*)(Params)>(kernel);
  const Params& given = *static_cast<const Params*>(params);
  emulator::run(dim3(grid[0], grid[1], grid[2]), dim3(threads), shared_bytes, [&] { function(given); });
}

extern "C" int start_kernel(void* kernel, const unsigned* grid, int threads, int shared_bytes, const void* params,
                            int params_bytes) {
  try {
    if (params_bytes == sizeof(AttentionParams)) {
      start<AttentionParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(MoeParams)) {
      start<MoeParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(GatedDeltaParams)) {
      start<GatedDeltaParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(ArgmaxParams)) {
      start<ArgmaxParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(LookupParams)) {
      start<LookupParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(SelectParams)) {
      start<SelectParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(BlockLinearParams)) {
      start<BlockLinearParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(AdjustParams)) {
      start<AdjustParams>(kernel, grid, threads, shared_bytes, params);
    } else if (params_bytes == sizeof(AcceptParams)) {
      start<AcceptParams>(kernel, grid, threads, shared_bytes, params);
    } else {
      return 1;
    }
    return 0;
  } catch (const emulator::Failure&) {
    return 1;
  }
}
