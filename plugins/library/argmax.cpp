// The launcher of DFlashArgmax: check, plan, launch (library.cpp has those of attention and acceptance).

#include "argmax_params.h"

#include "dflash.h"
#include "guard.h"
#include "launch.h"

extern "C" {
void dflash_argmax_scan(dflash::ArgmaxParams);
void dflash_argmax_merge(dflash::ArgmaxParams);
}

namespace dflash {
namespace {

constexpr int kGridLimit = 65535;  // of CUDA, in y and z

void argmax(const DFlashTensor* logits, const DFlashTensor* places, void* workspace, int64_t workspace_bytes,
            void* stream) {
  Symbol N("N"), V("V");
  expect(logits, "logits", DFLASH_BFLOAT16, {N, V});
  expect(places, "places", DFLASH_INT64, {N});
  require(N.value() <= kGridLimit, "N: got ", N.value(), " rows, expected at most ", kGridLimit);
  const ArgmaxPlan plan = argmax_plan(N.value(), V.value());
  expect_workspace(workspace, workspace_bytes, plan.workspace_bytes);

  ArgmaxParams p{};
  p.logits = logits->data;
  p.places = data<long long>(places);
  p.chunk_max = static_cast<float*>(workspace);
  p.chunk_argmax = reinterpret_cast<int*>(p.chunk_max + 1LL * N.value() * plan.chunks);
  p.rows = N.value();
  p.vocab = V.value();
  p.chunks = plan.chunks;
  launch("dflash_argmax_scan", dflash_argmax_scan, dim3(plan.chunks, p.rows), kArgmaxThreads, 0, p, stream);
  launch("dflash_argmax_merge", dflash_argmax_merge, dim3(plan.merge_blocks), kArgmaxMergeThreads, 0, p, stream);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_argmax(const DFlashTensor* logits, const DFlashTensor* places, void* workspace, int64_t workspace_bytes,
                  void* stream) {
  return guarded("dflash_argmax", [&] { argmax(logits, places, workspace, workspace_bytes, stream); });
}

int dflash_argmax_plan(int32_t rows, int32_t vocab, DFlashArgmaxPlan* plan) {
  return guarded("dflash_argmax_plan", [&] {
    require(rows > 0 && vocab > 0 && plan, "every number must be at least 1, and the plan not null");
    const ArgmaxPlan made = argmax_plan(rows, vocab);
    *plan = {made.chunks, made.merge_blocks, made.workspace_bytes};
  });
}

int64_t dflash_argmax_params_bytes(void) { return sizeof(ArgmaxParams); }
}
