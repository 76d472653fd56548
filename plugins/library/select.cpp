// The launcher of DFlashSelect: check, plan, launch (library.cpp has those of attention and acceptance).

#include "select_params.h"

#include "dflash.h"
#include "guard.h"
#include "launch.h"

extern "C" {
void dflash_select_scan(dflash::SelectParams);
void dflash_select_pairs(dflash::SelectParams);
void dflash_select_walk(dflash::SelectParams);
}

namespace dflash {
namespace {

constexpr int kGridLimit = 65535;  // of CUDA, in y and z

void expect_top_k(int top_k, int vocab, Line line = this_line()) {
  const int limit = vocab < kSelectMaxTopK ? vocab : kSelectMaxTopK;
  require({top_k >= 1 && top_k <= limit, line}, "top_k: got ", top_k, ", expected 1 to ", limit);
}

void select(const DFlashTensor* logits, const DFlashTensor* hidden, const DFlashTensor* anchor_row,
            const DFlashTensor* predecessor, const DFlashTensor* successor, const DFlashTensor* places, int top_k,
            void* workspace, int64_t workspace_bytes, void* stream) {
  Symbol B("B"), N("N"), V("V"), R("R");
  expect(logits, "logits", DFLASH_FLOAT32, {B, N, V});
  expect(hidden, "hidden", DFLASH_BFLOAT16, {B, N, R});
  expect(anchor_row, "anchor_row", DFLASH_BFLOAT16, {B, R});
  expect(predecessor, "predecessor", DFLASH_BFLOAT16, {V, R});
  expect(successor, "successor", DFLASH_BFLOAT16, {V, R});
  expect(places, "places", DFLASH_INT64, {B, N});
  expect_top_k(top_k, V.value());
  const int64_t all_rows = int64_t{B.value()} * N.value();
  require(all_rows <= kGridLimit, "B x N: got ", all_rows, " rows, expected at most ", kGridLimit);
  const SelectPlan plan = select_plan(B.value(), N.value(), V.value(), top_k);
  expect_workspace(workspace, workspace_bytes, plan.workspace_bytes);

  auto* const begin = static_cast<unsigned char*>(workspace);
  SelectParams p{};
  p.logits = data<const float>(logits);
  p.hidden = hidden->data;
  p.anchor_row = anchor_row->data;
  p.predecessor = predecessor->data;
  p.successor = successor->data;
  p.places = data<long long>(places);
  p.chunk_values = reinterpret_cast<float*>(begin);
  p.chunk_places = reinterpret_cast<int*>(begin + plan.chunk_places);
  p.candidates = reinterpret_cast<int*>(begin + plan.candidates);
  p.next = reinterpret_cast<int*>(begin + plan.next);
  p.batch = B.value();
  p.rows = N.value();
  p.vocab = V.value();
  p.rank = R.value();
  p.top_k = top_k;
  p.chunks = plan.chunks;
  p.chunk_elements = plan.chunk_elements;
  launch("dflash_select_scan", dflash_select_scan, dim3(plan.chunks, p.batch * p.rows), kSelectThreads,
         plan.shared_bytes, p, stream);
  launch("dflash_select_pairs", dflash_select_pairs, dim3(p.rows, p.batch), kSelectThreads, plan.shared_bytes, p,
         stream);
  launch("dflash_select_walk", dflash_select_walk, dim3(p.batch), kWalkThreads, 0, p, stream);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_select(const DFlashTensor* logits, const DFlashTensor* hidden, const DFlashTensor* anchor_row,
                  const DFlashTensor* predecessor, const DFlashTensor* successor, const DFlashTensor* places,
                  const DFlashSelectOptions* options, void* workspace, int64_t workspace_bytes, void* stream) {
  return guarded("dflash_select", [&] {
    require(options != nullptr, "options: got null");
    select(logits, hidden, anchor_row, predecessor, successor, places, options->top_k, workspace, workspace_bytes,
           stream);
  });
}

int dflash_select_plan(int32_t batch, int32_t rows, int32_t vocab, int32_t top_k, DFlashSelectPlan* plan) {
  return guarded("dflash_select_plan", [&] {
    require(batch > 0 && rows > 0 && vocab > 0 && plan, "every number must be at least 1, and the plan not null");
    expect_top_k(top_k, vocab);
    const SelectPlan made = select_plan(batch, rows, vocab, top_k);
    *plan = {made.chunks, made.chunk_elements, made.shared_bytes, 0, made.workspace_bytes};
  });
}

int64_t dflash_select_params_bytes(void) { return sizeof(SelectParams); }
}
