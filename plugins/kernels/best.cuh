// The largest of numbers and where it first stands, across the lanes of a warp.
#pragma once

#include "device.cuh"

namespace dflash {

struct Best {
  float value;
  int index;
};

// The larger of two; among equals the one that stands first, as ONNX ArgMax has it. Never NaN if `a` and `b` are not.
__device__ __forceinline__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

__device__ __forceinline__ Best lanes_best(Best best) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Best other = {__shfl_xor_sync(kAllLanes, best.value, step), __shfl_xor_sync(kAllLanes, best.index, step)};
    best = better(best, other);
  }
  return best;
}

}  // namespace dflash
