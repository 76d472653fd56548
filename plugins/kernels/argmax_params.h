// The parameters of the DFlashArgmax kernels, and how their work is divided. Plain C++, read by kernels, launchers and
// tests.
#pragma once

namespace dflash {

struct ArgmaxParams {
  const void* logits;          // [N, V] bfloat16, N/B rows of each slot
  const float* temperature;    // [B], 0: argmax
  const float* top_p;          // [B], 1: off
  const int* top_k;            // [B], 0: off
  const float* min_p;          // [B], 0: off
  const long long* noise_key;  // [B, 4], numbers below 2^31
  const int* next_len;         // [B]: the anchor's position; row r of a slot is r+1 behind
  const long long* tokens;     // [V]: those that the logits are of; null: 0, 1, 2, …
  long long* places;           // [N]
  float* chunk_found;          // [N, chunks, 2]: the largest logit; where the slot filters, the mass; workspace
  int* chunk_choice;           // [N, chunks]: where the largest stands, or the best by noise; workspace
  int slot_rows;               // N/B
  int vocab;                   // V
  int chunks;                  // CTAs that share a row
};

constexpr int kArgmaxElements = 16376;  // logits of a chunk: 8 loads of 16 bytes for each thread, but for one

struct ArgmaxPlan {
  int chunks;
  long long workspace_bytes;  // chunk_found, chunk_choice
};

inline ArgmaxPlan argmax_plan(int rows, int vocab) {
  ArgmaxPlan plan{};
  plan.chunks = (vocab + kArgmaxElements - 1) / kArgmaxElements;
  plan.workspace_bytes = 12LL * rows * plan.chunks;
  return plan;
}

}  // namespace dflash
