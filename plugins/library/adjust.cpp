// The launcher of DFlashAdjust: check, plan, launch (library.cpp has those of attention and acceptance).

#include "adjust_params.h"

#include "dflash.h"
#include "guard.h"
#include "launch.h"

extern "C" {
void dflash_adjust_count(dflash::AdjustParams);
void dflash_adjust_rows(dflash::AdjustParams);
void dflash_adjust_few(dflash::AdjustParams);
}

namespace dflash {
namespace {

constexpr int kGridLimit = 65535;  // of CUDA, in y and z

struct AdjustTensors {
  const DFlashTensor *logits, *history, *input_ids, *num_known, *past_len, *adjusts, *prompt_len;
  const DFlashTensor *repetition_penalty, *frequency_penalty, *presence_penalty;
  const DFlashTensor *bias_ids, *bias_values, *bad_words, *token_mask, *adjusted;
};

void adjust(const AdjustTensors& t, void* workspace, int64_t workspace_bytes, void* stream) {
  Symbol B("B"), R("R"), V("V"), H("H"), S("S"), K("K"), W("W"), N("N"), M("M"), one("1", {1});
  expect(t.logits, "logits", DFLASH_FLOAT32, {B, R, V});
  expect(t.history, "history", DFLASH_FLOAT32, {B, one, H, one});
  expect(t.input_ids, "input_ids", DFLASH_INT64, {B, S});
  expect(t.num_known, "num_known", DFLASH_INT32, {B});
  expect(t.past_len, "past_len", DFLASH_INT32, {B});
  expect(t.adjusts, "adjusts", DFLASH_INT32, {B});
  expect(t.prompt_len, "prompt_len", DFLASH_INT32, {B});
  expect(t.repetition_penalty, "repetition_penalty", DFLASH_FLOAT32, {B});
  expect(t.frequency_penalty, "frequency_penalty", DFLASH_FLOAT32, {B});
  expect(t.presence_penalty, "presence_penalty", DFLASH_FLOAT32, {B});
  expect(t.bias_ids, "bias_ids", DFLASH_INT32, {B, K});
  expect(t.bias_values, "bias_values", DFLASH_FLOAT32, {B, K});
  expect(t.bad_words, "bad_words", DFLASH_INT32, {B, W, N});
  expect(t.token_mask, "token_mask", DFLASH_INT32, {B, R, M});
  expect(t.adjusted, "adjusted", DFLASH_FLOAT32, {B, R, V});
  require(S.value() <= H.value(), "input_ids.shape[1] (S): got ", S.value(), ", expected at most H, ", H.value());
  require(32LL * M.value() >= V.value(), "token_mask.shape[2] (M): got ", M.value(), ", expected a bit for each of V, ",
          V.value());
  const int64_t rows = int64_t{B.value()} * R.value();
  require(rows <= kGridLimit, "B x R: got ", rows, ", expected at most ", kGridLimit);
  const AdjustPlan plan = adjust_plan(B.value(), V.value());
  expect_workspace(workspace, workspace_bytes, plan.workspace_bytes);

  AdjustParams p{};
  p.logits = data<const float>(t.logits);
  p.history = data<float>(t.history);
  p.input_ids = data<const long long>(t.input_ids);
  p.num_known = data<const int>(t.num_known);
  p.past_len = data<const int>(t.past_len);
  p.adjusts = data<const int>(t.adjusts);
  p.prompt_len = data<const int>(t.prompt_len);
  p.repetition_penalty = data<const float>(t.repetition_penalty);
  p.frequency_penalty = data<const float>(t.frequency_penalty);
  p.presence_penalty = data<const float>(t.presence_penalty);
  p.bias_ids = data<const int>(t.bias_ids);
  p.bias_values = data<const float>(t.bias_values);
  p.bad_words = data<const int>(t.bad_words);
  p.token_mask = data<const int>(t.token_mask);
  p.adjusted = data<float>(t.adjusted);
  p.counts = static_cast<int*>(workspace);
  p.rows = R.value();
  p.width = S.value();
  p.vocab = V.value();
  p.length = H.value();
  p.biases = K.value();
  p.words = W.value();
  p.word_tokens = N.value();
  p.mask_words = M.value();
  const int all_rows = static_cast<int>(rows);
  launch("dflash_adjust_count", dflash_adjust_count, dim3(B.value()), kCountThreads, 0, p, stream);
  launch("dflash_adjust_rows", dflash_adjust_rows, dim3(plan.chunks, all_rows), kRowThreads, 0, p, stream);
  launch("dflash_adjust_few", dflash_adjust_few, dim3(all_rows), kFewThreads, 0, p, stream);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_adjust(const DFlashTensor* logits, const DFlashTensor* history, const DFlashTensor* input_ids,
                  const DFlashTensor* num_known, const DFlashTensor* past_len, const DFlashTensor* adjusts,
                  const DFlashTensor* prompt_len, const DFlashTensor* repetition_penalty,
                  const DFlashTensor* frequency_penalty, const DFlashTensor* presence_penalty,
                  const DFlashTensor* bias_ids, const DFlashTensor* bias_values, const DFlashTensor* bad_words,
                  const DFlashTensor* token_mask, const DFlashTensor* adjusted, void* workspace,
                  int64_t workspace_bytes, void* stream) {
  return guarded("dflash_adjust", [&] {
    adjust({logits, history, input_ids, num_known, past_len, adjusts, prompt_len, repetition_penalty, frequency_penalty,
            presence_penalty, bias_ids, bias_values, bad_words, token_mask, adjusted},
           workspace, workspace_bytes, stream);
  });
}

int dflash_adjust_plan(int32_t batch, int32_t vocab, DFlashAdjustPlan* plan) {
  return guarded("dflash_adjust_plan", [&] {
    require(batch > 0 && vocab > 0 && plan, "every number must be at least 1, and the plan not null");
    const AdjustPlan made = adjust_plan(batch, vocab);
    *plan = {made.chunks, 0, made.workspace_bytes};
  });
}

int64_t dflash_adjust_params_bytes(void) { return sizeof(AdjustParams); }
}
