// The launcher of DFlashGatedDelta: check, plan, launch (library.cpp has those of attention and acceptance).

#include "gated_delta_params.h"

#include "dflash.h"
#include "guard.h"
#include "launch.h"

extern "C" {
void dflash_gated_delta_rows(dflash::GatedDeltaParams);
void dflash_gated_delta_rule(dflash::GatedDeltaParams);
}

namespace dflash {
namespace {

constexpr int kGridLimit = 65535;  // of CUDA, in y and z

struct GatedDeltaTensors {
  const DFlashTensor *qkv, *gates, *conv_weight, *a_log, *dt_bias, *window, *state;
  const DFlashTensor *past_len, *state_len, *num_known, *out;
};

void expect_columns(const char* name, const Symbol& symbol, int64_t expected, Line line = this_line()) {
  require({symbol.value() == expected, line}, name, ": got ", symbol.value(), " columns, expected ", expected);
}

// The params of a launch but for its workspace.
GatedDeltaParams checked(const GatedDeltaTensors& t, int key_heads) {
  Symbol B("B"), S("S"), C("C"), G("2Hv"), R("R"), W("C+2Hv"), Hv("Hv"), one("1", {1});
  Symbol D("head_dim", {kDeltaHeadDim}), Kc("Kc", {kDeltaConvKernel});
  expect(t.qkv, "qkv", DFLASH_BFLOAT16, {B, S, C});
  expect(t.gates, "gates", DFLASH_BFLOAT16, {B, S, G});
  expect(t.conv_weight, "conv_weight", DFLASH_BFLOAT16, {C, one, Kc});
  expect(t.a_log, "a_log", DFLASH_FLOAT32, {Hv});
  expect(t.dt_bias, "dt_bias", DFLASH_FLOAT32, {Hv});
  expect(t.window, "window", DFLASH_BFLOAT16, {B, one, R, W});
  expect(t.state, "state", DFLASH_FLOAT32, {B, Hv, D, D});
  expect(t.past_len, "past_len", DFLASH_INT32, {B});
  expect(t.state_len, "state_len", DFLASH_INT32, {B});
  expect(t.num_known, "num_known", DFLASH_INT32, {B});
  expect(t.out, "out", DFLASH_BFLOAT16, {B, S, Hv, D});
  require(key_heads >= 1 && Hv.value() % key_heads == 0, "key_heads: got ", key_heads, ", expected a divisor of Hv, ",
          Hv.value());
  const int64_t channels = (2LL * key_heads + Hv.value()) * kDeltaHeadDim;
  expect_columns("qkv.shape[2] (C)", C, channels);
  expect_columns("gates.shape[2] (2Hv)", G, 2LL * Hv.value());
  expect_columns("window.shape[3] (C+2Hv)", W, channels + 2LL * Hv.value());
  require(R.value() >= kDeltaHistory, "window.shape[2] (R): got ", R.value(), ", expected at least ", kDeltaHistory);
  require(B.value() <= kGridLimit && Hv.value() <= kGridLimit, "B and Hv: got ", B.value(), " and ", Hv.value(),
          ", expected at most ", kGridLimit);

  GatedDeltaParams p{};
  p.qkv = t.qkv->data;
  p.gates = t.gates->data;
  p.conv_weight = t.conv_weight->data;
  p.a_log = data<const float>(t.a_log);
  p.dt_bias = data<const float>(t.dt_bias);
  p.window = t.window->data;
  p.state = data<float>(t.state);
  p.past_len = data<const int>(t.past_len);
  p.state_len = data<const int>(t.state_len);
  p.num_known = data<const int>(t.num_known);
  p.out = t.out->data;
  p.batch = B.value();
  p.rows = S.value();
  p.window_rows = R.value();
  p.key_heads = key_heads;
  p.value_heads = Hv.value();
  return p;
}

void gated_delta(const GatedDeltaTensors& tensors, const DFlashGatedDeltaOptions* options, void* workspace,
                 int64_t workspace_bytes, void* stream) {
  require(options != nullptr, "options: got null");
  GatedDeltaParams p = checked(tensors, options->key_heads);
  const GatedDeltaPlan plan = gated_delta_plan(p.batch, p.rows, p.window_rows, p.key_heads, p.value_heads);
  require(plan.shared_bytes <= kDeltaMaxSharedBytes, "window.shape[2] (R): got ", p.window_rows, " rows, which with ",
          p.value_heads, " value heads need ", plan.shared_bytes, " bytes of shared memory, expected at most ",
          kDeltaMaxSharedBytes);
  expect_workspace(workspace, workspace_bytes, plan.workspace_bytes);
  auto* const begin = static_cast<unsigned char*>(workspace);
  p.q_rows = reinterpret_cast<float*>(begin + plan.q_rows);
  p.k_rows = reinterpret_cast<float*>(begin + plan.k_rows);
  p.v_rows = reinterpret_cast<float*>(begin + plan.v_rows);
  p.gate_rows = reinterpret_cast<float*>(begin + plan.gate_rows);
  p.row_limit = plan.row_limit;
  launch("dflash_gated_delta_rows", dflash_gated_delta_rows, dim3(plan.row_vectors, plan.row_chunks, p.batch),
         kDeltaRowThreads, plan.shared_bytes, p, stream);
  launch("dflash_gated_delta_rule", dflash_gated_delta_rule, dim3(plan.rule_blocks, p.value_heads, p.batch),
         kDeltaRuleThreads, 0, p, stream);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_gated_delta(const DFlashTensor* qkv, const DFlashTensor* gates, const DFlashTensor* conv_weight,
                       const DFlashTensor* a_log, const DFlashTensor* dt_bias, const DFlashTensor* window,
                       const DFlashTensor* state, const DFlashTensor* past_len, const DFlashTensor* state_len,
                       const DFlashTensor* num_known, const DFlashTensor* out, const DFlashGatedDeltaOptions* options,
                       void* workspace, int64_t workspace_bytes, void* stream) {
  return guarded("dflash_gated_delta", [&] {
    gated_delta({qkv, gates, conv_weight, a_log, dt_bias, window, state, past_len, state_len, num_known, out}, options,
                workspace, workspace_bytes, stream);
  });
}

int dflash_gated_delta_plan(int32_t batch, int32_t rows, int32_t window_rows, int32_t key_heads, int32_t value_heads,
                            DFlashGatedDeltaPlan* plan) {
  return guarded("dflash_gated_delta_plan", [&] {
    require(batch > 0 && rows > 0 && window_rows > 0 && key_heads > 0 && value_heads > 0 && plan,
            "every number must be at least 1, and the plan not null");
    const GatedDeltaPlan made = gated_delta_plan(batch, rows, window_rows, key_heads, value_heads);
    *plan = {made.row_limit,      made.row_vectors, made.row_chunks, made.rule_blocks, made.shared_bytes, 0,
             made.workspace_bytes};
  });
}

int64_t dflash_gated_delta_params_bytes(void) { return sizeof(GatedDeltaParams); }
}
