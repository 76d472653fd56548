// The launcher of DFlashArgmax: check, plan, launch (library.cpp has those of attention and acceptance).

#include "accept_params.h"
#include "argmax_params.h"

#include "dflash.h"
#include "guard.h"
#include "launch.h"

extern "C" {
void dflash_argmax_scan(dflash::ArgmaxParams);
void dflash_argmax_choose(dflash::ArgmaxParams);
}

namespace dflash {
namespace {

constexpr int kGridLimit = 65535;  // of CUDA, in y and z

struct ArgmaxTensors {
  const DFlashTensor *logits, *temperature, *top_p, *top_k, *min_p, *noise_key, *next_len, *tokens, *places;
};

void argmax(const ArgmaxTensors& t, void* workspace, int64_t workspace_bytes, void* stream) {
  Symbol B("B"), N("N"), V("V"), four("4", {4});
  expect(t.logits, "logits", DFLASH_BFLOAT16, {N, V});
  expect(t.temperature, "temperature", DFLASH_FLOAT32, {B});
  expect(t.top_p, "top_p", DFLASH_FLOAT32, {B});
  expect(t.top_k, "top_k", DFLASH_INT32, {B});
  expect(t.min_p, "min_p", DFLASH_FLOAT32, {B});
  expect(t.noise_key, "noise_key", DFLASH_INT64, {B, four});
  expect(t.next_len, "next_len", DFLASH_INT32, {B});
  if (t.tokens) expect(t.tokens, "tokens", DFLASH_INT64, {V});
  expect(t.places, "places", DFLASH_INT64, {N});
  require(N.value() <= kGridLimit, "N: got ", N.value(), " rows, expected at most ", kGridLimit);
  require(N.value() % B.value() == 0, "N: got ", N.value(), " rows, expected a multiple of ", B.value(), " slots");
  const ArgmaxPlan plan = argmax_plan(N.value(), V.value());
  expect_workspace(workspace, workspace_bytes, plan.workspace_bytes);

  ArgmaxParams p{};
  p.logits = t.logits->data;
  p.temperature = data<const float>(t.temperature);
  p.top_p = data<const float>(t.top_p);
  p.top_k = data<const int>(t.top_k);
  p.min_p = data<const float>(t.min_p);
  p.noise_key = data<const long long>(t.noise_key);
  p.next_len = data<const int>(t.next_len);
  p.tokens = t.tokens ? data<const long long>(t.tokens) : nullptr;
  p.places = data<long long>(t.places);
  p.chunk_found = static_cast<float*>(workspace);
  p.chunk_choice = reinterpret_cast<int*>(p.chunk_found + 2LL * N.value() * plan.chunks);
  p.slot_rows = N.value() / B.value();
  p.vocab = V.value();
  p.chunks = plan.chunks;
  const auto rows = static_cast<unsigned>(N.value());
  launch("dflash_argmax_scan", dflash_argmax_scan, dim3(plan.chunks, rows), kScanThreads, 0, p, stream);
  launch("dflash_argmax_choose", dflash_argmax_choose, dim3(rows), kChooseThreads, 0, p, stream);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_argmax(const DFlashTensor* logits, const DFlashTensor* temperature, const DFlashTensor* top_p,
                  const DFlashTensor* top_k, const DFlashTensor* min_p, const DFlashTensor* noise_key,
                  const DFlashTensor* next_len, const DFlashTensor* tokens, const DFlashTensor* places, void* workspace,
                  int64_t workspace_bytes, void* stream) {
  return guarded("dflash_argmax", [&] {
    argmax({logits, temperature, top_p, top_k, min_p, noise_key, next_len, tokens, places}, workspace, workspace_bytes,
           stream);
  });
}

int dflash_argmax_plan(int32_t rows, int32_t vocab, DFlashArgmaxPlan* plan) {
  return guarded("dflash_argmax_plan", [&] {
    require(rows > 0 && vocab > 0 && plan, "every number must be at least 1, and the plan not null");
    const ArgmaxPlan made = argmax_plan(rows, vocab);
    *plan = {made.chunks, 0, made.workspace_bytes};
  });
}

int64_t dflash_argmax_params_bytes(void) { return sizeof(ArgmaxParams); }
}
